"""The cleanup: what it removes, and above all what it does not."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost import domains
from hyperflow.kvmhost.ledger import Entry, Ledger

from lab import kvmhost
from tests.kvmhost.stages import running


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"staging_directory": str(folder / "staging"), "output_directory": str(folder / "output"), **changes}


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    (tmp_path / "output").mkdir()
    work = tmp_path / "staging/web01/work"
    work.mkdir(parents=True)
    (work / "disk-0.qcow2").write_text("overlay")
    (tmp_path / "staging/web01/.web01-disk1.vmdk.partial").write_text("part")
    (tmp_path / "staging/web01/web01-disk2.vmdk").write_text("whole")
    return tmp_path / "staging/web01"


def test_overlays_and_partial_files_go_and_finished_files_stay(tmp_path: Path, staging: Path) -> None:
    partial = staging / ".web01-disk1.vmdk.partial"
    note = staging / "..web01-disk1.vmdk.json.77.tmp"
    note.write_text("of a killed run")

    result = running.run("cleanup", options(tmp_path, work_directory=str(staging / "work"), partials=[str(partial)]))

    assert result["exit_status"] == 0, result["log"]
    assert result["observed"]["removed"] == [str(partial), str(note), str(staging / "work")]
    assert [path.name for path in staging.iterdir()] == ["web01-disk2.vmdk"]


def test_a_second_cleanup_finds_nothing_and_is_content(tmp_path: Path, staging: Path) -> None:
    wanted = options(tmp_path, work_directory=str(staging / "work"))
    running.run("cleanup", wanted)

    result = running.run("cleanup", wanted)

    assert result["exit_status"] == 0
    assert result["observed"]["removed"] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"work_directory": "{root}/elsewhere"},
        {"work_directory": "{root}/staging"},
        {"work_directory": "{root}/staging/../elsewhere"},
        {"work_directory": "{root}/staging/link/x"},
        {"partials": ["{root}/staging/web01/web01-disk2.vmdk"]},
        {"partials": ["{root}/elsewhere/.x.partial"]},
        {"staging_directory": "/", "work_directory": "{root}/elsewhere"},
    ],
)
def test_nothing_outside_of_the_two_directories_is_touched(
    tmp_path: Path, staging: Path, changes: dict[str, Any]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "x").mkdir(parents=True)
    (elsewhere / ".x.partial").write_text("another's")
    (tmp_path / "staging/link").symlink_to(elsewhere)

    def fill(value: Any) -> Any:
        return [fill(one) for one in value] if isinstance(value, list) else value.format(root=tmp_path)

    result = running.run("cleanup", options(tmp_path, **{key: fill(value) for key, value in changes.items()}))

    assert result["exit_status"] == 64
    assert (elsewhere / "x").is_dir()
    assert (elsewhere / ".x.partial").exists()
    assert (staging / "web01-disk2.vmdk").exists()


def test_a_link_is_removed_and_what_it_points_to_stays(tmp_path: Path, staging: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (staging / "linked").symlink_to(elsewhere)

    result = running.run("cleanup", options(tmp_path, work_directory=str(staging / "linked")))

    assert result["exit_status"] == 0
    assert elsewhere.is_dir()
    assert not (staging / "linked").is_symlink()


def test_processes_of_the_run_end_and_those_of_others_and_its_own_job_do_not(tmp_path: Path, staging: Path) -> None:
    run = f"dag/{uuid.uuid4()}"
    marks = [
        {"HYPERFLOW_RUN": run, "HYPERFLOW_JOB": "/jobs/boot/1"},
        {"HYPERFLOW_RUN": run + "0", "HYPERFLOW_JOB": "/jobs/other/1"},
        {"HYPERFLOW_RUN": run, "HYPERFLOW_JOB": "/jobs/cleanup/1"},
    ]
    sleepers = [subprocess.Popen(["sleep", "600"], env={**os.environ, **mark}) for mark in marks]
    try:
        result = running.run("cleanup", options(tmp_path, run=run), marks[2])
        alive = [sleeper.poll() is None for sleeper in sleepers]
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()

    assert result["exit_status"] == 0, result["log"]
    assert result["observed"]["processes_ended"] == [sleepers[0].pid]
    assert alive == [False, True, True]


def test_what_is_gone_and_what_the_caller_vouches_for_is_struck_off_the_ledger(tmp_path: Path, staging: Path) -> None:
    # A run that no other test has: whatever carries its mark is ended, also what works beside this test.
    book, run = Ledger(tmp_path / "staging/.hyperflow"), "struck-off/run"
    partial = staging / ".web01-disk1.vmdk.partial"
    gone = [Entry("partial", str(partial)), Entry("overlay", str(staging / "work/boot")), Entry("snapshot", "vc/vm/s")]
    kept = [Entry("fix-overlay", str(staging / "work")), Entry("staged-disk", str(staging / "web01-disk2.vmdk"))]
    book.add(run, [*gone, *kept], {"airflow": "a", "dag": "dag", "run": "run"})
    wanted = options(tmp_path, run=run, partials=[str(partial)], ledger_directory=str(tmp_path / "staging/.hyperflow"))

    result = running.run("cleanup", {**wanted, "settled": ["snapshot", "lease"]})

    assert result["exit_status"] == 0, result["log"]
    assert book.read(run).open == kept


@pytest.fixture
def domain(open_folder: Path, host: kvmhost.KvmHost) -> Iterator[dict[str, Any]]:
    """Options that define a domain."""
    disk, identity = open_folder / "disk.raw", str(uuid.uuid4())
    disk.write_bytes(bytes(1 << 20))
    yield {
        "name": f"test-{identity[:8]}",
        "uuid": identity,
        "images": [{"path": str(disk), "format": "raw"}],
        "hardware": {"firmware": "bios", "cpus": 1, "memory_mb": 64, "nics": []},
        "metadata": {"vm": "vc/web01", "run": "migrate/2"},
    }
    kvmhost.undefine_domains_below(host, open_folder)


@pytest.mark.lab
def test_a_domain_that_this_run_defined_is_undefined_and_its_images_stay(
    tmp_path: Path, domain: dict[str, Any]
) -> None:
    assert running.run("define", domain)["exit_status"] == 0
    wanted = options(tmp_path, run="migrate/2", domain={"uuid": domain["uuid"], "vm": "vc/web01"})

    first, again = running.run("cleanup", wanted), running.run("cleanup", wanted)

    assert first["observed"]["domain_removed"] is True, first["log"]
    assert again["observed"]["domain_removed"] is False
    assert Path(domain["images"][0]["path"]).exists()


@pytest.mark.lab
@pytest.mark.parametrize(
    ("asked", "is_running", "reason"),
    [
        (("migrate/2", "vc/web02"), False, "found it defined for vc/web01, expected vc/web02"),
        (("migrate/3", "vc/web01"), False, "found it defined by the run migrate/2, expected migrate/3"),
        (("migrate/2", "vc/web01"), True, "it runs, and may already be used"),
    ],
    ids=["another-vm", "an-earlier-run", "running"],
)
def test_a_domain_that_is_not_this_runs_or_is_in_use_is_left_with_a_warning(
    tmp_path: Path, domain: dict[str, Any], asked: tuple[str, str], is_running: bool, reason: str
) -> None:
    run, vm = asked
    defined = running.run("define", domain)
    assert defined["exit_status"] == 0, defined["log"]
    if is_running:
        domains.virsh(kvmhost.URI, "start", domain["uuid"])

    result = running.run("cleanup", options(tmp_path, run=run, domain={"uuid": domain["uuid"], "vm": vm}))

    assert result["exit_status"] == 0, result["log"]
    assert result["observed"]["domain_removed"] is False
    assert any(reason in warning for warning in result["warnings"])
