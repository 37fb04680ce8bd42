"""docker-compose.yaml is what a production is started from: whole, and without a secret in it."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from hyperflow.cli import migrate, wave

FILE = Path(__file__).resolve().parents[1] / "docker-compose.yaml"
PAGE = FILE.parent / "docs" / "production.md"
UID = 50000  # AIRFLOW_UID's default
COMPONENTS = {
    "airflow-apiserver": "api-server",
    "airflow-scheduler": "scheduler",
    "airflow-dag-processor": "dag-processor",
    "airflow-triggerer": "triggerer",
    "airflow-worker": "celery worker",
}
SECRETS = (
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
    "AIRFLOW_FERNET_KEY",
    "AIRFLOW_JWT_SECRET",
    "AIRFLOW_SECRET_KEY",
    "AIRFLOW_ADMIN_PASSWORD",
)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document = yaml.safe_load(FILE.read_text())
    assert isinstance(document, dict)
    return document


def test_docker_compose_accepts_the_file_once_the_secrets_are_set() -> None:
    command = ["docker-compose", "--file", str(FILE), "config", "--quiet"]
    secrets = dict.fromkeys(SECRETS, "a-secret")
    done = subprocess.run(command, env={**os.environ, **secrets}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("missing", SECRETS)
def test_docker_compose_names_a_secret_that_is_not_set(missing: str) -> None:
    command = ["docker-compose", "--file", str(FILE), "config", "--quiet"]
    secrets = {name: "a-secret" for name in SECRETS if name != missing}
    done = subprocess.run(command, env={**os.environ, **secrets}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert missing in done.stderr


@pytest.mark.parametrize(("setting", "workers"), [({}, 1), ({"AIRFLOW_WORKERS": "3"}, 3)])
def test_there_are_as_many_workers_as_the_environment_says_whatever_up_is_told(
    setting: dict[str, str], workers: int
) -> None:
    command = ["docker-compose", "--file", str(FILE), "config"]
    environment = {**os.environ, **dict.fromkeys(SECRETS, "a-secret"), **setting}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert yaml.safe_load(said)["services"]["airflow-worker"]["scale"] == workers


def test_docker_compose_has_the_commands_that_the_page_names() -> None:
    told = subprocess.run(["docker-compose", "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"^  (\w+) ", told.partition("Commands:")[2], re.MULTILINE))
    named = set(re.findall(r"docker compose (\w+)", PAGE.read_text()))
    assert named
    assert named <= known


def test_every_component_of_airflow_runs_with_a_health_check(compose: dict[str, Any]) -> None:
    for service, command in COMPONENTS.items():
        assert compose["services"][service]["command"] == command
        assert compose["services"][service]["healthcheck"]["test"]


def test_every_secret_is_required_from_the_environment_and_has_no_default() -> None:
    text = FILE.read_text()
    for name in SECRETS:
        assert f"${{{name}:?" in text, f"{name} is not required"
        assert f"${{{name}:-" not in text, f"{name} has a default"


def test_nothing_listens_beyond_loopback(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(re.match(r"127\.0\.0\.1:", port) for port in published)


def test_what_is_mounted_is_in_the_project(compose: dict[str, Any]) -> None:
    sources = {volume.split(":")[0] for volume in compose["services"]["airflow-worker"]["volumes"]}
    for source in sources:
        if source.startswith("./"):
            assert (FILE.parent / source).is_dir(), source


def test_every_component_sees_the_records_and_may_write_into_the_folder_of_plans(compose: dict[str, Any]) -> None:
    for service in COMPONENTS:
        mounts = [volume.rsplit(":", 1) for volume in compose["services"][service]["volumes"]]
        assert ["hyperflow-records", "/opt/airflow/records"] in mounts
        assert ["${HYPERFLOW_PLANS_DIRECTORY:-./include/plans}", "/opt/airflow/include/plans"] in mounts
        settings = compose["services"][service]["environment"]
        assert settings["AIRFLOW__HYPERFLOW__RECORDS_FOLDER"] == "/opt/airflow/records"


def test_the_command_line_waits_for_a_plan_until_airflow_has_read_it(compose: dict[str, Any]) -> None:
    settings = compose["services"]["airflow-dag-processor"]["environment"]
    interval = float(settings["AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL"])
    assert min(migrate.DAG_LIMIT, wave.READ_LIMIT) >= 2 * interval  # reading takes its time, too


def test_the_image_has_the_versions_that_the_tests_run_with() -> None:
    """But for one that FAB does not take."""
    tested, built = (_locked(FILE.with_name(name)) for name in ("requirements.txt", "requirements-production.txt"))
    other = {name for name in tested.keys() & built.keys() if tested[name] != built[name]}
    assert other == {"python-dateutil"}
    assert "requirements-production.txt" in FILE.with_name("Dockerfile").read_text()


def test_the_image_has_all_that_hyperflow_itself_needs() -> None:
    wanted = FILE.with_name("requirements.in").read_text().partition("# tests and linters")[0]
    names = {re.split(r"[<=>;]", line)[0].lower() for line in wanted.splitlines() if line and not line.startswith("#")}
    assert names <= _locked(FILE.with_name("requirements-production.txt")).keys()


def test_after_the_steps_of_its_page_the_containers_can_read_the_key_and_others_no_secret(tmp_path: Path) -> None:
    steps = re.findall(r"^((?: {7}.+\n)+)", PAGE.read_text().partition("## Users")[0], re.MULTILINE)
    script = textwrap.dedent("".join(steps))
    subprocess.run(["sh", "-e", "-c", f"umask 022\n{script}"], cwd=tmp_path, check=True)
    found = {name: (tmp_path / name).stat() for name in (".env", "ssh", "ssh/id_ed25519")}
    modes = {name: stat.S_IMODE(status.st_mode) for name, status in found.items()}
    assert modes == {".env": 0o600, "ssh": 0o755, "ssh/id_ed25519": 0o600}
    assert found["ssh/id_ed25519"].st_uid == UID


def _locked(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\n]+)", path.read_text(), re.MULTILINE))
