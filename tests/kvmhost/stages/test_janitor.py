"""The host's janitor: what it removes of an ended run, and above all what it does not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost.images import files
from hyperflow.kvmhost.ledger import Entry, Ledger
from hyperflow.kvmhost.stage import Job
from hyperflow.kvmhost.stages import janitor

from lab import kvmhost
from tests.kvmhost.stages import running

RUN, OTHER = "migrate.lab.web01/manual__1", "migrate.lab.web01/manual__2"
OWNER = {"airflow": "a-1", "dag": "migrate.lab.web01", "run": "manual__1"}


class Place:
    """A staging directory with its ledger."""

    def __init__(self, folder: Path) -> None:
        self.staging = folder / "staging"
        self.root = self.staging / ".hyperflow"
        self.work = self.staging / "web01/work"
        self.ledger = Ledger(self.root)

    def leave(self, kind: str, path: Path, *, run: str = RUN, is_folder: bool = True) -> Path:
        """Note a thing and create it."""
        self.ledger.add(run, [Entry(kind, str(path))], OWNER)
        if is_folder:
            (path / "inside").mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("content")
        return path

    def leave_staged(self, run: str = RUN) -> Path:
        """Leave a staged disk with the note that a download writes."""
        path = self.leave("staged-disk", self.staging / "web01/web01-disk1.vmdk", run=run, is_folder=False)
        note = {"kind": "hyperflow-download", "source": f"6000C29a of snapshot-7, run {run}"}
        note |= {"sha256": hashlib.sha256(b"content").hexdigest(), "bytes": len("content"), "file": files.state(path)}
        files.note_path(path).write_text(json.dumps(note))
        return path

    def clean(self, *runs: str, **changes: Any) -> dict[str, str]:
        """Run the stage for runs that ended; what became of each thing."""
        verdict = {"dead": True, "succeeded": False, "why": "Airflow has no such run any more"}
        given = {key: changes.pop(key) for key in list(changes) if key in verdict}
        sizes = changes.pop("ledger_bytes", {})
        options = {"directory": str(self.root), "dry_run": False, **changes}
        options["runs"] = [
            {"run": run, "ledger_bytes": sizes.get(run, self.ledger.read(run).bytes), **verdict, **given}
            for run in runs or [RUN]
        ]
        result = running.run("janitor", options)
        assert result["exit_status"] == 0, result["log"]
        self.whys = {finding["thing"]: finding["why"] for finding in result["observed"]["findings"]}
        return {finding["thing"]: finding["action"] for finding in result["observed"]["findings"]}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def leftovers(place: Place) -> dict[str, Path]:
    """One of each kind that lies on a disk."""
    return {
        "job": place.leave("job", place.root / "jobs" / RUN / "export.0"),
        "partial": place.leave("partial", place.staging / "web01/.web01-disk1.vmdk.partial", is_folder=False),
        "decoded": place.leave("partial", place.staging.parent / "images/web01/.disk-0.qcow2.decoded.partial"),
        "overlay": place.leave("overlay", place.work / "boot"),
        "fix-overlay": place.leave("fix-overlay", place.work / "fix"),
        "staged-disk": place.leave_staged(),
    }


def test_a_dead_runs_leftovers_go_and_a_second_look_finds_nothing(place: Place, leftovers: dict[str, Path]) -> None:
    manifest = place.staging / "web01/artifact-manifest.json"
    manifest.write_text("{}")
    leftovers["partial"].rename(manifest.parent / "..web01-disk1.vmdk.json.77.tmp")  # killed while it wrote the note
    assert place.clean() == {str(path): "removed" for path in leftovers.values()}
    assert [path for path in leftovers.values() if path.exists()] == []
    assert [path.name for path in manifest.parent.iterdir()] == [manifest.name]
    assert place.clean() == {}


def test_a_dry_run_says_the_same_and_removes_nothing(place: Place, leftovers: dict[str, Path]) -> None:
    assert place.clean(dry_run=True) == {str(path): "would remove" for path in leftovers.values()}
    assert all(path.exists() for path in leftovers.values())
    assert len(place.ledger.read(RUN).open) == len(leftovers)


def test_a_run_that_ended_of_late_keeps_what_a_person_can_go_on_from(place: Place, leftovers: dict[str, Path]) -> None:
    found = place.clean(dead=False)
    kept = {str(leftovers[kind]) for kind in ("staged-disk", "fix-overlay")}
    assert {thing for thing, action in found.items() if action == "kept"} == kept
    assert sorted(entry.thing for entry in place.ledger.read(RUN).open) == sorted(kept)


def test_a_run_that_succeeded_keeps_the_disks_that_it_staged(place: Place, leftovers: dict[str, Path]) -> None:
    found = place.clean(succeeded=True)
    assert {thing for thing, action in found.items() if action == "kept"} == {str(leftovers["staged-disk"])}
    assert leftovers["staged-disk"].exists()
    assert place.clean() == {}


def test_a_run_that_is_not_named_keeps_everything(place: Place, leftovers: dict[str, Path]) -> None:
    assert place.clean(OTHER) == {}
    assert all(path.exists() for path in leftovers.values())


def test_what_was_noted_and_never_created_is_struck_off(place: Place) -> None:
    place.ledger.add(RUN, [Entry("overlay", str(place.work / "boot"))], OWNER)
    assert place.clean(dry_run=True) == {str(place.work / "boot"): "gone"}
    assert place.clean() == {str(place.work / "boot"): "gone"}
    assert place.clean() == {}


def test_a_run_whose_processes_are_alive_keeps_everything(place: Place, leftovers: dict[str, Path]) -> None:
    process = subprocess.Popen(["sleep", "600"], env={**os.environ, "HYPERFLOW_RUN": RUN})
    try:
        assert place.clean() == {str(path): "kept" for path in leftovers.values()}
        assert str(process.pid) in place.whys[str(leftovers["job"])]
    finally:
        process.kill()
        process.wait()
    assert set(place.clean().values()) == {"removed"}


def test_a_run_that_was_gone_on_with_after_airflow_was_asked_about_it_keeps_everything(
    place: Place, leftovers: dict[str, Path]
) -> None:
    seen = place.ledger.read(RUN).bytes
    directory = place.root / "jobs" / RUN / "export.0"
    asked = ("job", "start", "--directory", str(directory), "--stage", "checksum", "--run", RUN)
    subprocess.run(
        ["/usr/bin/python3", "-m", "hyperflow.kvmhost", *asked],
        env={**os.environ, "PYTHONPATH": str(running.ROOT / "plugins")},
        input=b"{}",
        stdout=subprocess.DEVNULL,
        check=True,
    )
    subprocess.run(["/bin/sh", "-c", f"until test -e {directory}/1/exit.json; do sleep 0.1; done"], check=True)
    assert place.clean(ledger_bytes={RUN: seen}) == {str(path): "kept" for path in leftovers.values()}
    assert "may work again" in place.whys[str(directory)]
    assert set(place.clean().values()) == {"removed"}


def test_processes_are_looked_at_before_each_removal(
    place: Place, leftovers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = place.ledger.read(RUN).bytes
    ended = janitor.EndedRun(RUN, dead=True, succeeded=False, why="it is gone", ledger_bytes=size)
    removed: list[Path] = []

    def remove(path: Path) -> None:
        removed.append(path)

    monkeypatch.setattr(janitor.shutil, "rmtree", remove)
    monkeypatch.setattr(janitor.processes, "of_runs", lambda: {RUN: [4711]} if removed else {})

    found = janitor.run(janitor.Options(place.root, [ended], dry_run=False), Job("janitor"))

    assert len(removed) == 1
    assert [one["action"] for one in found["findings"]] == ["failed", *["kept"] * (len(leftovers) - 1)]
    assert found["busy"] == [RUN]


def test_a_path_that_another_run_works_with_is_left(place: Place) -> None:
    path = place.leave("fix-overlay", place.work / "fix")
    place.ledger.add(OTHER, [Entry("fix-overlay", str(path))], OWNER)
    assert place.clean() == {str(path): "kept"}
    assert OTHER in place.whys[str(path)]
    assert place.clean(RUN, OTHER)[str(path)] in ("removed", "gone")  # both are dead: the first look removes it
    assert not path.exists()


def test_a_staged_disk_that_a_later_run_downloaded_is_left_and_no_longer_looked_for(place: Place) -> None:
    path = place.leave_staged()
    place.leave_staged(OTHER)
    place.ledger.done(OTHER, [Entry("staged-disk", str(path))], "a result of the run")
    assert place.clean() == {str(path): "gone"}
    assert path.exists()


@pytest.mark.parametrize("content", ["others!", "somebody else's", ""])
@pytest.mark.parametrize("is_noted_by_an_older_version", [False, True])
def test_a_file_that_is_not_what_the_run_downloaded_is_left_whatever_its_note_says(
    place: Place, content: str, is_noted_by_an_older_version: bool
) -> None:
    path = place.leave_staged()
    note = files.note_path(path)
    if is_noted_by_an_older_version:
        forget_state(note)
    path.unlink()
    path.write_text(content)
    written_later(path)

    for _ in range(2):
        assert place.clean() == {str(path): "kept"}
        assert "somebody else's" in place.whys[str(path)]

    assert path.read_text() == content
    path.unlink()
    assert place.clean() == {str(path): "removed"}
    assert not note.exists()


def test_a_staged_disk_that_was_written_to_since_is_left(place: Place) -> None:
    path = place.leave_staged()
    with path.open("r+") as file:
        file.write("CONTENT")
    written_later(path)
    assert place.clean(dry_run=True) == place.clean() == {str(path): "kept"}
    assert path.read_text() == "CONTENT"


@pytest.mark.parametrize("change", ["an older version noted it", "it came back from a backup"])
def test_a_staged_disk_is_known_by_its_bytes_where_the_file_is_another_one(place: Place, change: str) -> None:
    path = place.leave_staged()
    if change == "an older version noted it":
        forget_state(files.note_path(path))
    else:
        shutil.copy(path, path.with_name("backup"))
        path.with_name("backup").replace(path)
    assert place.clean() == {str(path): "removed"}


def test_a_link_in_a_staged_disks_place_is_left(place: Place, tmp_path: Path) -> None:
    path = place.leave_staged()
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert place.clean() == {str(path): "kept"}
    assert path.is_symlink()


def test_what_is_too_large_to_be_read_again_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    path = place.leave_staged()
    forget_state(files.note_path(path))
    monkeypatch.setattr(janitor, "READ_LIMIT", len("content") - 1)
    size = place.ledger.read(RUN).bytes
    ended = janitor.EndedRun(RUN, dead=True, succeeded=False, why="it is gone", ledger_bytes=size)
    asked = janitor.Options(place.root, [ended], dry_run=False)

    (found,) = janitor.run(asked, Job("janitor"))["findings"]

    assert (found["action"], "too large" in found["why"]) == ("kept", True)
    assert path.exists()


def written_later(path: Path) -> None:
    """The clock of a file system stands still for some milliseconds, in which a test has written to a file again."""
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def forget_state(note: Path) -> None:
    """Make a note one of an older version, which does not say which file it was."""
    document = json.loads(note.read_text())
    del document["file"]
    note.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("overlay", "{root}/elsewhere/work/boot"),
        ("overlay", "{root}/staging/web01"),
        ("overlay", "{root}/staging/web01/work"),
        ("overlay", "{root}/staging/link/work/boot"),
        ("overlay", "{root}/staging/../elsewhere/work/boot"),
        ("fix-overlay", "{root}/staging/web01/work/other"),
        ("partial", "{root}/elsewhere/work"),
        ("partial", "{root}/elsewhere/.folder.partial"),
        ("partial", "{root}/elsewhere/disk.qcow2"),
        ("job", "{root}/staging/.hyperflow/jobs"),
        ("job", "{root}/staging/.hyperflow/jobs/migrate.lab.web01/manual__2/export"),
        ("job", "elsewhere"),
        ("staged-disk", "{root}/elsewhere/disk.qcow2"),
    ],
)
def test_a_ledger_is_not_believed_when_it_names_what_no_run_creates(
    tmp_path: Path, place: Place, kind: str, name: str
) -> None:
    """Somebody who can write to the ledger must not make root remove other things by it."""
    elsewhere = tmp_path / "elsewhere"
    for folder in (elsewhere / "work/boot", elsewhere / ".folder.partial", place.work / "other", place.root / "jobs"):
        folder.mkdir(parents=True)
    (place.root / "jobs" / OTHER / "export").mkdir(parents=True)
    (elsewhere / "disk.qcow2").write_text("another's")
    (elsewhere / ".disk.qcow2.json").write_text(json.dumps({"kind": "hyperflow-download", "source": f", run {RUN}"}))
    (place.staging / "link").symlink_to(elsewhere)
    before = sorted(path for path in tmp_path.rglob("*") if "ledger" not in path.parts)
    thing = name.format(root=tmp_path)
    place.ledger.add(RUN, [Entry(kind, thing)], OWNER)

    found = place.clean()

    assert found[thing] in ("kept", "gone")
    assert sorted(path for path in tmp_path.rglob("*") if "ledger" not in path.parts) == before


def test_a_link_is_removed_and_what_it_points_to_stays(tmp_path: Path, place: Place) -> None:
    target = tmp_path / "target"
    (target / "inside").mkdir(parents=True)
    place.work.mkdir(parents=True)
    (place.work / "boot").symlink_to(target)
    place.ledger.add(RUN, [Entry("overlay", str(place.work / "boot"))], OWNER)
    assert place.clean() == {str(place.work / "boot"): "removed"}
    assert (target / "inside").is_dir()


@pytest.fixture
def domain(open_folder: Path, host: kvmhost.KvmHost, place: Place) -> Iterator[str]:
    """UUID of a domain that a run's define stage has made, so that it is in the ledger."""
    disk, identity = open_folder / "disk.raw", str(uuid.uuid4())
    disk.write_bytes(bytes(1 << 20))
    options = {
        "name": f"test-{identity[:8]}",
        "uuid": identity,
        "images": [{"path": str(disk), "format": "raw"}],
        "hardware": {"firmware": "bios", "cpus": 1, "memory_mb": 64, "nics": []},
        "metadata": {"vm": "vc/web01", "run": RUN},
    }
    marks = {"HYPERFLOW_RUN": RUN, "HYPERFLOW_JOB": str(place.root / "jobs" / RUN / "define/1")}
    assert running.run("define", options, marks)["exit_status"] == 0
    yield identity
    kvmhost.undefine_domains_below(host, open_folder)


def domains() -> list[str]:
    command = ["virsh", "--quiet", "--connect", "qemu:///system", "list", "--all", "--uuid"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.lab
def test_the_domain_of_a_dead_run_is_undefined_and_its_images_stay(
    place: Place, open_folder: Path, domain: str
) -> None:
    assert place.clean(succeeded=True, dry_run=True) == {domain: "kept"}
    assert domain in domains()
    assert place.clean(dry_run=True) == {domain: "would remove"}
    assert domain in domains()
    assert place.clean() == {domain: "removed"}
    assert domain not in domains()
    assert (open_folder / "disk.raw").exists()
    assert place.clean() == {}


@pytest.mark.lab
def test_a_domain_that_a_later_run_has_defined_is_left(place: Place, domain: str) -> None:
    place.ledger.done(RUN, place.ledger.read(RUN).open, "for this test")
    place.ledger.add(OTHER, [Entry("domain", domain, {"vm": "vc/web01"})], OWNER)
    assert place.clean(OTHER) == {domain: "gone"}
    assert domain in domains()
