"""``./hyperflow`` as a person types it: what it says and how it exits."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAN = (ROOT / "include/example-plan.yaml").read_text()


def hyperflow(*arguments: str) -> tuple[int, str]:
    """Run the command line; exit status, and all it printed."""
    done = subprocess.run(
        [str(ROOT / "hyperflow"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    disk = tmp_path / "web01-disk1.vmdk"
    disk.write_bytes(b"KDMV" + bytes(1000))
    document = {
        "manifest_version": "1.0",
        "disks": [
            {
                "id": "disk-0",
                "source_format": "vmdk",
                "bytes": 1004,
                "local_path": str(disk),
                "checksum": f"sha256:{hashlib.sha256(disk.read_bytes()).hexdigest()}",
            }
        ],
    }
    path = tmp_path / "artifact-manifest.json"
    path.write_text(json.dumps(document))
    return path


def test_a_good_plan_passes() -> None:
    status, said = hyperflow("plan", "check", str(ROOT / "include/example-plan.yaml"))
    assert status == 0
    assert "plan example, 2 VM(s)" in said


def test_an_airflow_that_is_named_and_cannot_be_asked_is_told_also_of_a_plan_that_needs_no_pools(
    tmp_path: Path,
) -> None:
    nowhere = str(tmp_path / "none.json")
    status, said = hyperflow("plan", "check", str(ROOT / "include/example-plan.yaml"), "--airflow", nowhere)
    assert status == 69
    assert "plan example, 2 VM(s)" in said
    assert f"pools, approvers and connections were not looked at: {nowhere}: not found" in said
    (tmp_path / "plan.yaml").write_text(PLAN.replace("connection: kvm01", "conection: kvm01"))
    assert hyperflow("plan", "check", str(tmp_path / "plan.yaml"), "--airflow", nowhere)[0] == 2


def test_a_plan_beside_that_cannot_be_read_is_named_and_no_fault_of_the_checked_one(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    (tmp_path / "b.yaml").write_text("plan: [")
    status, said = hyperflow("plan", "check", str(tmp_path / "plan.yaml"))
    assert status == 0
    assert "b.yaml beside it has faults and was not compared" in said


def test_a_vm_that_is_in_no_wave_is_named_and_no_fault(tmp_path: Path) -> None:
    plan, nowhere = tmp_path / "plan.yaml", str(tmp_path / "none.json")
    plan.write_text(PLAN + "waves: [{name: one, members: [web01]}]\n")
    status, said = hyperflow("plan", "check", str(plan))
    assert status == 0
    assert f"{plan}: 1 of 2 VMs is in no wave: db01" in said
    assert "1 of 2 VMs is in no wave: db01" in hyperflow("wave", "check", str(plan), "one", "--airflow", nowhere)[1]


def test_every_fault_of_every_plan_is_listed_and_the_status_is_2(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(PLAN.replace("connection: kvm01", "conection: kvm01").replace("name: web01", "nmae: web01"))
    second.write_text("plan: [")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/kvm-migration.yaml").write_text((ROOT / "include/profiles/kvm-migration.yaml").read_text())
    status, said = hyperflow("plan", "check", str(first), str(second))
    assert status == 2
    for word in ("connection (did you mean that?)", "name (did you mean that?)", "second.yaml", "line"):
        assert word in said


def test_a_manifest_is_validated_and_its_disks_verified(manifest: Path) -> None:
    assert hyperflow("manifest", "validate", str(manifest))[0] == 0
    status, said = hyperflow("manifest", "verify", str(manifest))
    assert status == 0
    assert "disk-0: matches" in said


def test_a_changed_disk_fails_the_verification_only(manifest: Path) -> None:
    (manifest.parent / "web01-disk1.vmdk").write_bytes(b"KDMV" + bytes(999) + b"x")
    assert hyperflow("manifest", "validate", str(manifest))[0] == 0
    status, said = hyperflow("manifest", "verify", str(manifest))
    assert status == 1
    assert "digest differs" in said


@pytest.mark.parametrize("content", ["", "{", "[]", '{"manifest_version": "1.0"}', "\x00\x01", "[" * 100_000])
def test_what_is_no_manifest_is_refused_in_words(content: str, tmp_path: Path) -> None:
    path = tmp_path / "artifact-manifest.json"
    path.write_text(content)
    status, said = hyperflow("manifest", "validate", str(path))
    assert status == 1
    assert "found" in said
    assert "Traceback" not in said


def test_without_an_airflow_a_migration_says_how_to_name_one(tmp_path: Path) -> None:
    status, said = hyperflow("migrate", "example", "web01", "--airflow", str(tmp_path / "none.json"))
    assert status == 69
    assert "--airflow" in said


def test_an_airflow_that_does_not_answer_is_told_from_one_that_is_not_named(tmp_path: Path) -> None:
    endpoint = tmp_path / "airflow.json"
    endpoint.write_text(json.dumps({"url": "http://127.0.0.1:9", "user": "a", "password": "b"}))
    status, said = hyperflow("migrate", "example", "web01", "--airflow", str(endpoint))
    assert status == 69
    assert "no answer" in said


def test_a_vm_that_the_plan_does_not_have_is_named_with_those_it_has() -> None:
    status, said = hyperflow("migrate", str(ROOT / "include/example-plan.yaml"), "web02")
    assert status == 2
    assert "web02" in said
    assert "web01" in said


def test_a_fault_with_what_looks_like_markup_is_shown_as_it_is(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.replace("name: web01", 'name: "[/x]"', 1).replace("connection: kvm01", 'connection: "[/y]"'))
    for arguments in (("migrate", str(plan), "x"), ("rollback", str(plan), "x"), ("plan", "check", str(plan))):
        status, said = hyperflow(*arguments)
        assert status == 2
        assert 'found "[/y]"' in said
        assert "Traceback" not in said


@pytest.mark.parametrize("command", ["migrate", "rollback", "finalize"])
@pytest.mark.parametrize("plan", ["inlcude/plans/x.yaml", "x.yml", "./autumn"])
def test_a_file_that_is_not_there_is_not_taken_for_a_plans_name(command: str, plan: str, tmp_path: Path) -> None:
    status, said = hyperflow(command, plan, "web01", "--airflow", str(tmp_path / "none.json"))
    assert status == 2
    assert said.strip() == f"{plan}: PLAN: found no such file, expected the file of a plan, or the name of one"


@pytest.mark.parametrize(("dates", "expected"), [("2020-01-01T22:00", 1), ("2099-01-01T22:00", 69)])
def test_what_is_wrong_with_a_wave_counts_also_without_an_airflow(tmp_path: Path, dates: str, expected: int) -> None:
    plan = tmp_path / "plan.yaml"
    waves = f"time_zone: UTC\nwaves: [{{name: one, members: [web01], schedule: {{at: [{dates}]}}}}]\n"
    plan.write_text(PLAN + waves)
    status, said = hyperflow("wave", "check", str(plan), "one", "--airflow", str(tmp_path / "none.json"))
    assert status == expected
    assert "were not looked at" in said
    assert ("found dates that are over" in said) == (expected == 1)


def test_a_waves_check_names_the_other_waves_that_start_with_it(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    at = "schedule: {at: [2099-01-01T22:00]}"
    waves = f"waves: [{{name: one, members: [web01], {at}}}, {{name: two, members: [db01], {at}}}]\n"
    plan.write_text(f"{PLAN}time_zone: UTC\n{waves}")
    said = hyperflow("wave", "check", str(plan), "one", "--airflow", str(tmp_path / "none.json"))[1]
    assert "other waves of the plan start at the same minute, and share hosts and pools with it: two (Thu 2099" in said


def test_a_survey_is_not_asked_for_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    status, said = hyperflow("wave", "survey", "plnas/x.yaml", "--airflow", str(tmp_path / "none.json"))
    assert status == 2
    assert "plnas/x.yaml: found no such file" in said


@pytest.mark.parametrize(
    "command", [["explain"], ["plan", "check", "include/example-plan.yaml"], ["manifest", "schema"]]
)
def test_a_full_standard_output_is_told_in_a_sentence(command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [ROOT / "hyperflow", *command], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "standard output: No space left on device; not all was written"
    assert "Traceback" not in done.stderr


def test_what_standard_output_cannot_write_is_told_in_a_sentence(tmp_path: Path) -> None:
    plan = tmp_path / "pl\u00e4n.yaml"
    plan.write_text(PLAN)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [ROOT / "hyperflow", "plan", "check", plan], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "found '\\xe4', expected text in ascii: set PYTHONIOENCODING=utf-8\n"


def test_wrong_usage_exits_2() -> None:
    assert hyperflow("plan")[0] == 2
    assert hyperflow("migrate", "example", "web01", "--set", "compress")[0] == 2
