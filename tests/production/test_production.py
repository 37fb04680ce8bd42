"""docker-compose.yaml as it is, on a Docker engine: a wave through it, one of two workers killed in the middle."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hyperflow.cli.limits import limits
from hyperflow.cli.wave import survey, wave
from hyperflow.kvmhost import domains
from hyperflow.plans.survey import read_survey
from rich.console import Console

from lab import inventory, lab
from lab.running import QUICK
from tests.production.conftest import Production
from tests.production.stack import WORKERS, until

pytestmark = pytest.mark.production

PLAN = "production"
WAVE = f"wave.{PLAN}.one"
VMS = [f"small{number:02d}" for number in range(1, 6)]
APPROVER, OUTSIDER = "alice", "mallory"
PASSWORD = "known-to-this-test"


@dataclass(frozen=True)
class Played:
    """What was seen while the wave ran.

    :param killed: host name of the worker that was killed
    :param victims: tasks that it worked on then
    :param tries: every try of every task of the VMs' runs
    :param kept: plans that were kept for their runs while these worked
    """

    run_id: str
    state: str
    killed: str
    victims: list[dict[str, Any]]
    tries: list[dict[str, Any]]
    kept: list[str]


@pytest.fixture(scope="module")
def approver(production: Production) -> str:
    """Make two users: one who may operate DAGs, and one who may see nothing. FAB's id of the first."""
    for user, role in ((APPROVER, "Op"), (OUTSIDER, "Public")):
        names = {"username": user, "first_name": user, "last_name": "Test", "email": f"{user}@example.com"}
        body = {**names, "password": PASSWORD, "roles": [{"name": role}]}
        production.bench.api.request("POST", "/auth/fab/v1/users", json=body)
    claims = token_of(production, APPROVER).split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(claims + "=="))["sub"])


@pytest.fixture(scope="module")
def plan(production: Production, approver: str) -> Path:
    """A plan with a wave that needs an approval, where Airflow has read it."""
    folders = production.bench.folders
    file = folders.plans / f"{PLAN}.yaml"
    settings = {
        "host": {
            "connection": lab.HOST_CONNECTION,
            "staging_directory": str(folders.staging / PLAN),
            "output_directory": str(folders.images / PLAN),
        },
        "profile_overrides": QUICK,
        "people": {APPROVER: {"id": approver, "name": "Alice"}},
        "waves": [{"name": "one", "members": ["*"], "max_in_flight": 4, "approval": {"by": [APPROVER]}}],
    }
    chosen = [{"inventory_path": f"{inventory.SMALL_FOLDER}/{vm}"} for vm in VMS]
    production.bench.write_plan(PLAN, chosen, **settings)
    until(lambda: production.bench.api.has_dag(WAVE))
    return file


@pytest.fixture(scope="module")
def played(production: Production, plan: Path) -> Played:
    """Start the wave as people do, kill a worker that works on it, and see it to its end."""
    bench, stack = production.bench, production.stack
    assert survey(plan, bench.api, Console()) == 0
    assert limits([plan], apply=True, endpoint=stack.endpoint) == 0
    for dag_id in bench.dags_of(PLAN):
        bench.api.unpause(dag_id)
    assert wave("start", plan, "one", asked={"skip_boot"}, wait=False, endpoint=stack.endpoint) == 0
    run_id = bench.api.last_run(WAVE)
    assert run_id is not None
    approve(production, run_id)
    workers = {container[:12]: container for container in stack.containers("airflow-worker")}
    until_both_worked(production, set(workers))
    killed, victims = kill_a_worker(production, workers)
    state = bench.wait(WAVE, run_id)
    kept = [path.name for path in (plan.parent / ".running").glob("*/*/*.yaml")]  # for some minutes more
    return Played(run_id, state, killed, victims, tries(production), kept)


def approve(production: Production, run_id: str) -> None:
    """Say yes as the plan's approver."""
    path = f"/api/v2/dags/{WAVE}/dagRuns/{run_id}/taskInstances/approve"
    until(lambda: production.bench.api.request("GET", path)["state"] == "awaiting_input")
    answer = {"chosen_options": ["Approve"], "params_input": {}}
    production.stack.api(APPROVER, PASSWORD).request("PATCH", f"{path}/-1/hitlDetails", json=answer)


def tasks(production: Production, **query: Any) -> list[dict[str, Any]]:
    """Tasks of the VMs' runs, as the API tells of them."""
    request = production.bench.api.request
    paths = [f"/api/v2/dags/{dag_id}/dagRuns/~/taskInstances" for dag_id in production.bench.dags_of(PLAN)]
    return [task for path in paths for task in request("GET", path, params=query)["task_instances"]]


def path_of(task: dict[str, Any]) -> str:
    """A task's path in the API."""
    return f"/api/v2/dags/{task['dag_id']}/dagRuns/{task['dag_run_id']}/taskInstances/{task['task_id']}"


def tries(production: Production) -> list[dict[str, Any]]:
    """Every try of every task of the VMs' runs."""
    found: list[dict[str, Any]] = []
    for task in tasks(production):
        mapped = f"/{task['map_index']}" if task["map_index"] >= 0 else ""
        found += production.bench.api.request("GET", f"{path_of(task)}{mapped}/tries")["task_instances"]
    return found


def until_both_worked(production: Production, workers: set[str]) -> None:
    """Wait until each worker has finished a task."""
    until(lambda: {task["hostname"] for task in tasks(production, state="success")} >= workers)


def kill_a_worker(production: Production, workers: dict[str, str]) -> tuple[str, list[dict[str, Any]]]:
    """Kill the container of a worker while tasks work in it.

    :param workers: host name -> container
    :return: the host name, and the tasks that were cut: they are still called running when nobody works on them
    """
    busy: list[str] = []

    def somebody_works() -> bool:
        busy.extend(task["hostname"] for task in tasks(production, state="running") if task["hostname"] in workers)
        return bool(busy)

    until(somebody_works)
    ((killed, _),) = Counter(busy).most_common(1)
    production.stack.engine.docker("kill", workers[killed])
    return killed, [task for task in tasks(production, state="running") if task["hostname"] == killed]


def token_of(production: Production, user: str) -> str:
    """Log in as one of the two users."""
    credentials = {"username": user, "password": PASSWORD}
    answer = httpx.post(f"{production.stack.url}/auth/token", json=credentials, timeout=60)
    return str(answer.raise_for_status().json()["access_token"])


def report_of(production: Production, run_id: str, user: str | None) -> httpx.Response:
    """Ask for the wave's report as one of the two users, or as nobody."""
    address = f"{production.stack.url}/hyperflow/runs/{WAVE}/{run_id}/wave-report.json"
    headers = {"Authorization": f"Bearer {token_of(production, user)}"} if user else {}
    return httpx.get(address, headers=headers, timeout=60)


def test_every_health_check_is_good_with_two_workers(production: Production, played: Played) -> None:
    """Seen before the wave, when the stack came up; the worker that was killed stays down, as docker kill means it."""
    assert len(production.stack.containers("airflow-worker")) == WORKERS - 1
    assert production.bench.api.import_errors() == []


def test_a_plans_check_knows_fabs_users_by_their_number(production: Production, approver: str) -> None:
    assert production.bench.api.unknown_people([approver, APPROVER, "999"]) == ["999", APPROVER]


def test_the_survey_and_the_plans_of_running_waves_are_kept_beside_the_plans(plan: Path, played: Played) -> None:
    assert set(read_survey(plan, PLAN).vms) == set(VMS)
    assert f"{PLAN}.yaml" in played.kept


def test_a_worker_was_killed_while_it_worked_and_both_had_had_tasks(played: Played) -> None:
    assert played.victims
    hosts = {each["hostname"] for each in played.tries if each["hostname"]}
    assert played.killed in hosts
    assert len(hosts) == WORKERS


def test_the_wave_reports_every_vm_as_moved_and_who_approved(production: Production, played: Played) -> None:
    answer = report_of(production, played.run_id, APPROVER)
    report = answer.raise_for_status().json()
    assert {vm["slug"]: vm["outcome"] for vm in report["vms"]} == dict.fromkeys(VMS, "unproven")
    assert (report["summary"]["failed"], report["summary"]["not_started"]) == (0, 0)
    assert [decision["by"] for decision in report["decisions"]] == [APPROVER]
    assert played.state == "success"


def test_every_vm_was_migrated_once_and_nothing_is_left(production: Production, played: Played) -> None:
    names = [one.name for one in domains.every_domain("qemu:///system")]
    for vm in VMS:
        runs = production.bench.api.request("GET", f"/api/v2/dags/migrate.{PLAN}.{vm}/dagRuns")["dag_runs"]
        assert [run["state"] for run in runs] == ["success"]
        assert [name for name in names if name.startswith(vm)] == [vm]
        assert (production.bench.folders.images / PLAN / vm / "disk-0.qcow2").is_file()
        assert production.left(PLAN, vm) == []


def test_the_logs_of_the_worker_that_is_gone_can_still_be_read(production: Production, played: Played) -> None:
    done = [each for each in played.tries if (each["hostname"], each["state"]) == (played.killed, "success")]
    assert done
    for task in done:
        query = {"full_content": True, "map_index": task["map_index"]}
        path = f"{path_of(task)}/logs/{task['try_number']}"
        answer = production.bench.api.request("GET", path, params=query, headers={"Accept": "application/json"})
        assert any(line.get("level") == "info" for line in answer["content"]), answer


def test_a_page_of_records_is_for_whom_fab_lets_see_the_dag(production: Production, played: Played) -> None:
    assert report_of(production, played.run_id, APPROVER).status_code == httpx.codes.OK
    assert report_of(production, played.run_id, OUTSIDER).status_code == httpx.codes.FORBIDDEN
    assert report_of(production, played.run_id, None).status_code == httpx.codes.UNAUTHORIZED


def test_the_first_run_of_the_file_names_no_password_in_a_log(production: Production, played: Played) -> None:
    said = production.stack.compose("logs", "--no-color")
    secrets = [value for name, value in production.stack.environment.items() if name.endswith(("PASSWORD", "_SECRET"))]
    assert [secret for secret in secrets if secret in said] == []


def test_what_is_published_listens_on_loopback_only(production: Production) -> None:
    published = [
        binding["HostIp"]
        for one in production.stack.described()
        for bindings in one["NetworkSettings"]["Ports"].values()
        for binding in bindings or []
    ]
    assert published == ["127.0.0.1"]
    assert yaml.safe_load((production.stack.folder / "override.yaml").read_text()).keys() == {"services"}


def test_a_backup_of_the_database_can_be_restored(production: Production, played: Played) -> None:
    """As docs/production.md has it, but into another database."""
    dump = "pg_dump -U airflow -Fc airflow >/tmp/dump && createdb -U airflow copy && pg_restore -U airflow -d copy"
    count = "psql -U airflow -d {} -Atc 'SELECT count(*) FROM task_instance'"
    script = f"{dump} /tmp/dump && {count.format('airflow')} && {count.format('copy')}"
    counts = production.stack.compose("exec", "-T", "postgres", "sh", "-c", script).split()
    assert len(set(counts)) == 1
    assert int(counts[0]) > len(VMS)
