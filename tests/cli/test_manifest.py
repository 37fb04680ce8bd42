"""``./hyperflow manifest`` for people and for programs, on a machine that has no Airflow."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]
SEED = ROOT / "tests/manifest/seed-example.json"
# All that the command line for manifests needs besides the standard library.
NEEDED = ("pydantic", "pydantic_core", "annotated_types", "typing_extensions.py", "typing_inspection", "yaml", "_yaml")
SHOWING = ("rich", "pygments")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that finds those libraries only, and an Airflow that cannot be imported."""
    site, folder = Path(sysconfig.get_path("purelib")), tmp_path_factory.mktemp("libraries")
    for name in (*NEEDED, *SHOWING):
        (folder / name).symlink_to(site / name)
    (folder / "airflow.py").write_text("raise ImportError('there is no Airflow here')\n")
    path = f"{folder}:{ROOT / 'plugins'}"
    return {"PATH": os.environ["PATH"], "PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}


@pytest.fixture
def manifest(bare: dict[str, str]) -> Any:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        interpreter = str(Path(sys.base_prefix, "bin", "python3"))  # not the virtual environment's
        command = [interpreter, "-m", "hyperflow.cli", "manifest", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=bare, timeout=120)

    return run


@pytest.fixture
def export(tmp_path: Path) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(tmp_path / "web.qcow2"), "1M"], check=True)
    return tmp_path


def test_this_python_has_no_airflow_indeed(bare: dict[str, str]) -> None:
    done = subprocess.run(
        [Path(sys.base_prefix, "bin", "python3"), "-c", "import airflow"], capture_output=True, check=False, env=bare
    )
    assert done.returncode == 1
    assert b"there is no Airflow here" in done.stderr


def test_force_makes_a_faulty_manifest_anew_whatever_its_name(manifest: Any, export: Path) -> None:
    faulty = export / "web01.json"
    faulty.write_text('{"manifest_version": "1.0", "disks": [')
    done = manifest("build", export, "--output", faulty, "--force")
    assert done.returncode == 0, done.stdout
    assert manifest("validate", faulty).returncode == 0


@pytest.mark.parametrize("name", ["web.qcow2", "web.ovf", "notes.json"])
def test_force_replaces_manifests_and_nothing_else(manifest: Any, export: Path, name: str) -> None:
    if not (export / name).exists():
        (export / name).write_text('{"of": "somebody"}')
    before = (export / name).read_bytes()
    refused = manifest("build", export, "--output", export / name, "--force")
    assert refused.returncode == 2
    assert "a file that is no manifest" in refused.stdout
    assert (export / name).read_bytes() == before


def test_a_manifest_is_built_validated_shown_and_verified(manifest: Any, export: Path) -> None:
    built = manifest("build", export)
    assert built.returncode == 0, built.stderr
    file, disk = export / "artifact-manifest.json", export / "web.qcow2"
    document = json.loads(file.read_text())
    assert document["disks"][0]["checksum"] == f"sha256:{hashlib.sha256(disk.read_bytes()).hexdigest()}"
    for action in ("validate", "show", "verify"):
        done = manifest(action, file)
        assert (done.returncode, done.stderr) == (0, ""), action
        assert f"{file}: valid, 1 disk(s)" in done.stdout
    shown = manifest("show", file).stdout
    assert "web.qcow2" in shown
    assert str(disk) not in shown  # relative to the manifest's folder
    with disk.open("ab") as more:
        more.write(b"x")
    assert manifest("validate", file).returncode == 0
    changed = manifest("verify", file)
    assert changed.returncode == 1
    assert "disk-0: size differs" in changed.stdout


def test_programs_get_one_json_object(manifest: Any, export: Path) -> None:
    built = json.loads(manifest("build", export, "--json", "--no-checksums", "--output", export / "m.yaml").stdout)
    file = export / "m.yaml"
    assert (built["file"], built["valid"], built["boot_disk"]) == (str(file), True, "disk-0")
    assert "checksum" not in built["manifest"]["disks"][0]
    shown = json.loads(manifest("show", file, "--json").stdout)
    assert shown["manifest"] == built["manifest"]
    assert shown["images"] == {"disk-0": "disk-0.qcow2"}
    assert shown["stages"] is None
    assert shown["concerns"] == ["disks[0] disk-0: no checksum, so a change since the export cannot be seen"]
    verified = json.loads(manifest("verify", file, "--json").stdout)
    assert [(disk["disk_id"], disk["verdict"], disk["good"]) for disk in verified["disks"]] == [
        ("disk-0", "no checksum", True)
    ]
    file.write_text(file.read_text().replace("bytes:", "byte:"))
    refused = manifest("validate", file, "--json")
    assert refused.returncode == 1
    answer = json.loads(refused.stdout)
    assert answer["valid"] is False
    (fault,) = answer["faults"]
    assert (fault["path"], fault["found"]) == ("disks[0].bytes", "nothing")
    assert fault["line"] > 1


def test_the_schema_that_is_printed_is_the_published_one(manifest: Any) -> None:
    printed = manifest("schema").stdout
    assert printed == (ROOT / "include/schemas/artifact-manifest-v1.0.schema.json").read_text()
    jsonschema.Draft7Validator.check_schema(json.loads(printed))


def test_the_seeds_example_is_shown_with_all_that_a_person_looks_for(manifest: Any) -> None:
    shown = manifest("show", SEED).stdout
    for word in ("production-app-server", "16 GiB", "uefi", "100.0 GiB", "boots", "disk-1.qcow2", "Export method: ovf"):
        assert word in shown


def test_a_manifest_that_is_there_is_replaced_only_when_that_is_asked_for(manifest: Any, export: Path) -> None:
    file = export / "artifact-manifest.json"
    file.write_text("mine")
    refused = manifest("build", export)
    assert refused.returncode == 2
    assert "--force" in refused.stdout
    assert file.read_text() == "mine"
    assert manifest("build", export, "--force").returncode == 0
    assert json.loads(file.read_text())["manifest_version"] == "1.0"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("build", "/nowhere"), 2),
        (("validate",), 2),
        ((), 2),
        (("shew", "x"), 2),
        (("validate", "/nowhere.json"), 1),
        (("verify", "/dev/zero"), 1),
        (("show", "/"), 1),
        (("build", "/proc/self"), 1),
    ],
)
def test_exit_status_tells_wrong_usage_from_an_invalid_manifest(
    manifest: Any, arguments: tuple[str, ...], status: int
) -> None:
    done = manifest(*arguments)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_a_terminal_that_has_not_every_letter_is_written_to_all_the_same(
    bare: dict[str, str], manifest: Any, tmp_path: Path
) -> None:
    document = json.loads(SEED.read_text())
    document["source"]["vm_name"] = "Größe \U0001f600"
    (tmp_path / "m.json").write_text(json.dumps(document))
    bare["PYTHONIOENCODING"] = "ascii"
    try:
        done = manifest("show", tmp_path / "m.json")
    finally:
        del bare["PYTHONIOENCODING"]
    assert (done.returncode, done.stderr) == (0, "")
    assert "Gr\\xf6\\xdfe \\U0001f600" in done.stdout


def test_a_hostile_manifest_is_shown_and_never_obeyed(manifest: Any, tmp_path: Path) -> None:
    document = json.loads(SEED.read_text())
    document["source"]["vm_name"] = "[bold]web\x1b[2J\u202e\n[/]"
    document["notes"] = ["\x1b]8;;http://evil\x07[link=http://evil]x"]
    file = tmp_path / os.fsdecode(b"[red]\xff\x1b.json")
    file.write_text(json.dumps(document))
    for action in ("validate", "show", "verify"):
        done = manifest(action, file)
        assert "Traceback" not in done.stderr
        assert not {"\x1b", "\u202e", "\x07"} & set(done.stdout)
    assert "[bold]web\\x1b[2J\\u202e\\n[/]" in manifest("show", file).stdout
