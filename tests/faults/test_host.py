"""What a KVM host can do to a stage: no disk, no memory, no program, a file in the way. Each is said, and is over."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults import talking, watching
from tests.faults.cgroup import memory_group
from tests.kvmhost.guest import phony
from tests.kvmhost.images import images, vmdk_writer
from tests.kvmhost.stages import running, staged, tls_server
from tests.kvmhost.stages.tls_server import Handler
from tests.kvmhost.test_jobs import job, wait

pytestmark = pytest.mark.lab

RUN = "dag/run"
MIB = 1 << 20
GRAINS = 64  # of the disk that is moved, none of which compresses
CAPACITY = 70 * 65536
LIMIT = 240.0  # seconds a test waits before it gives up


@dataclass(frozen=True)
class Place:
    """A file system of its own, with a staging folder on it.

    :param root: where it is mounted
    """

    root: Path

    @property
    def task(self) -> Path:
        """The directory of the jobs of a task."""
        return self.root / ".hyperflow/jobs" / RUN / "task"

    @property
    def environment(self) -> dict[str, str]:
        """Makes a stage one of that task's job, whose ledger is on this file system."""
        return {"HYPERFLOW_JOB": str(self.task / "1"), "HYPERFLOW_RUN": RUN}

    def fill(self, leave: int) -> None:
        """Use up the file system, as another program does.

        :param leave: bytes that stay free
        """
        with (self.root / "somebody-elses").open("wb") as file:
            until(lambda: self._take(file.fileno(), leave))

    def _take(self, file: int, leave: int) -> bool:
        """Have a file take what is free; False when a stage that writes was faster, so that it is less by now."""
        found = os.statvfs(self.root)
        try:
            os.posix_fallocate(file, 0, max(found.f_bavail * found.f_frsize - leave, 1))
        except OSError as fault:
            if fault.errno != errno.ENOSPC:
                raise
            return False
        return True

    def free(self) -> None:
        """Make room again."""
        (self.root / "somebody-elses").unlink()

    def make_read_only(self) -> None:
        """Mount it read-only, as the kernel does after a fault of the disk."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.root)], check=True)


@contextmanager
def file_system(root: Path, size: int) -> Iterator[Place]:
    """Mount a file system of that many bytes."""
    root.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root)], check=True)
    try:
        (root / ".hyperflow").mkdir()
        yield Place(root)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


@contextmanager
def held_before_it_creates(place: Place) -> Iterator[Callable[[int], None]]:
    """Hold the ledger: a stage that has checked all it wants to check waits there before it creates anything.

    :return: waits until that process is there
    """
    ledger = place.root / ".hyperflow/ledger"
    ledger.mkdir(mode=0o700, exist_ok=True)
    with (ledger / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def arrived(pid: int) -> None:
            until(lambda: lock.name in files_of(pid))

        yield arrived


def files_of(pid: int) -> list[str]:
    """List the files that a process has open; none when it has ended, or just opens or closes one."""
    try:
        return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:
        return []


def until(condition: Callable[[], Any]) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)


def meanwhile(
    stage: str,
    options: dict[str, Any],
    place: Place,
    fault: Callable[[], None],
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Run a stage and make a fault when it is about to create its first file; its result."""
    result = place.root.parent / "result.json"
    result.unlink(missing_ok=True)
    with held_before_it_creates(place) as arrived:
        process = running.start(stage, options, result, {**place.environment, **(environment or {})})
        arrived(process.pid)
        fault()
    log, _ = process.communicate()
    document: dict[str, Any] = json.loads(result.read_text())
    return {**document, "exit_status": process.returncode, "log": log}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with file_system(tmp_path / "host", 160 * MIB) as mounted:
        yield mounted


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Place]:
    with file_system(tmp_path / "output", 160 * MIB) as mounted:
        yield mounted


@pytest.fixture
def conversion(tmp_path: Path, output: Place) -> dict[str, Any]:
    """Options of a conversion onto a file system of its own, with a fix to lay over."""
    source = images.stream_optimized(raw_disk(tmp_path), tmp_path / "disk.vmdk")
    overlay = tmp_path / "overlay.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-b", source, "-F", "vmdk", overlay)
    images.qemu_io(overlay, "write -P 7 70000 200000")
    return {
        "manifest": staged.manifest(tmp_path, source),
        "disk_id": "disk-0",
        "overlay": str(overlay),
        "output_directory": str(output.root / "images"),
        "filename": "disk-0.qcow2",
        "format": "qcow2",
    }


def raw_disk(folder: Path) -> Path:
    path = folder / "disk.raw"
    path.write_bytes(b"".join(images.noise(n) for n in range(GRAINS)))
    return path


def failed(result: dict[str, Any], *words: str) -> None:
    """The stage failed for good, and said in one line what happened to which file and what to do."""
    assert (result["succeeded"], result["exit_status"]) == (False, 1), result["log"]
    for word in words:
        assert word in result["error"]["message"]
    assert "\n" not in result["error"]["message"]


def output_of(options: dict[str, Any]) -> list[str]:
    return sorted(path.name for path in Path(options["output_directory"]).iterdir())


def test_the_disk_is_full_while_an_image_is_made(place: Place, output: Place, conversion: dict[str, Any]) -> None:
    result = meanwhile("convert", conversion, place, lambda: output.fill(MIB))

    failed(result, "No space left on device", "make room", f"{output.root}/images")
    assert output_of(conversion) == []
    output.free()
    assert running.run("convert", conversion)["succeeded"]


def test_the_disk_is_full_while_qemu_img_makes_an_image(
    place: Place, output: Place, conversion: dict[str, Any], tmp_path: Path
) -> None:
    manifest = staged.manifest(tmp_path, tmp_path / "disk.raw", source_format="raw")
    options = {**conversion, "manifest": manifest, "overlay": None}

    result = meanwhile("convert", options, place, lambda: output.fill(MIB))

    failed(result, "No space left on device", "make room", f"{output.root}/images")
    assert output_of(options) == []


def test_the_output_directory_becomes_read_only(place: Place, output: Place, conversion: dict[str, Any]) -> None:
    result = meanwhile("convert", conversion, place, output.make_read_only)

    failed(result, "ead-only file system", str(output.root), "mount it writable")
    assert output_of(conversion) == []


def test_qemu_img_goes_while_an_image_is_made(place: Place, conversion: dict[str, Any], tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "qemu-img").symlink_to("/usr/bin/qemu-img")

    result = meanwhile("convert", conversion, place, (programs / "qemu-img").unlink, {"PATH": str(programs)})

    failed(result, "qemu-img", "not installed", "package")
    assert output_of(conversion) == []


def test_somebody_puts_a_file_where_the_image_goes(place: Place, conversion: dict[str, Any]) -> None:
    target = Path(conversion["output_directory"], conversion["filename"])

    result = meanwhile("convert", conversion, place, lambda: target.write_text("somebody's"))

    assert result["exit_status"] == 64
    assert "move it away" in result["error"]["message"]
    assert target.read_text() == "somebody's"
    again = running.run("convert", conversion)
    assert again["exit_status"] == 64
    assert target.read_text() == "somebody's"
    target.rename(target.with_name("theirs"))
    first = running.run("convert", conversion)
    second = running.run("convert", conversion)
    assert first["succeeded"]
    assert "already converted" in second["log"]
    assert second["observed"] == first["observed"]


def test_the_memory_that_a_stage_may_use_is_at_its_end(conversion: dict[str, Any], tmp_path: Path) -> None:
    limited = ["prlimit", f"--as={90 * MIB}"]  # from its begin: it might be over before it could be told to
    process = running.start("convert", conversion, tmp_path / "result.json", under=limited)
    log, _ = process.communicate()
    result = json.loads((tmp_path / "result.json").read_text())

    failed({**result, "exit_status": process.returncode, "log": log}, "emory", "raise the stage's limit")
    assert output_of(conversion) == []
    assert running.run("convert", conversion)["succeeded"]


def test_the_kernel_kills_a_stage_for_want_of_memory_and_the_next_try_leaves_nothing_half_written(
    place: Place, conversion: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("start", "--directory", str(place.task), "--stage", "convert", "--run", RUN)
    waits = tmp_path / "qemu-img"  # which the stage asks for its version before it makes anything
    waits.write_text(f'#!/bin/sh\nuntil [ -e {tmp_path}/go ]; do sleep 0.05; done\nexec /usr/bin/qemu-img "$@"\n')
    waits.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with memory_group(2 * MIB) as group:
        first = job(*start, stdin=json.dumps(conversion))[0]["job"]
        group.take(stage_of(first))
        (tmp_path / "go").touch()
        ended = wait(first)
        assert group.killed() == 1

    assert (ended["state"], ended["exit_status"], ended["result"]) == ("DONE", -signal.SIGKILL, None)
    assert "by the kernel for want of memory" in ended["reason"]
    again = job(*start, stdin=json.dumps(conversion))[0]
    assert again["attached"] is False
    assert wait(again["job"])["result"]["succeeded"]
    assert [name for name in output_of(conversion) if "partial" in name] == []


@pytest.mark.parametrize("decoded", [None, "beside it", "elsewhere"])
def test_the_disk_is_full_while_an_export_arrives(
    place: Place, output: Place, tmp_path: Path, decoded: str | None
) -> None:
    """Where it is decoded elsewhere, it is that file system that is full."""
    full = output if decoded == "elsewhere" else place
    vmdk = vmdk_writer.write(tmp_path / "a.vmdk", CAPACITY, [(n, images.noise(n)) for n in range(GRAINS)]).read_bytes()

    asked, is_full = threading.Event(), threading.Event()

    def answer(handler: Handler) -> None:
        asked.set()
        assert is_full.wait(LIMIT)
        handler.start(None)  # of unknown length: that it does not fit shows when it is here
        handler.wfile.write(vmdk)

    with tls_server.serve(tls_server.make_certificate(tmp_path), answer) as server:
        options = {
            "url": server.url,
            "target": str(place.root / "web01/web01-disk1.vmdk"),
            "disk_id": "disk-0",
            "thumbprints": [server.sha256],
            "capacity_bytes": CAPACITY,
            "source": "vm-1 snapshot-2 run-3",
            "decode": decoded and {"image": str(full.root / "images/disk-0.qcow2"), "format": "qcow2"},
        }
        start = ("start", "--directory", str(place.task), "--stage", "download", "--run", RUN)
        first = job(*start, stdin=json.dumps(options))[0]["job"]
        assert asked.wait(LIMIT)
        full.fill(MIB)
        is_full.set()
        ended = wait(first)
        failed({**ended["result"], "exit_status": ended["exit_status"], "log": ""}, "No space left on device")
        named = Path(ended["result"]["error"]["message"].partition(": ")[0])
        staged_disk, image = place.root / "web01", full.root / "images/.disk-0.qcow2.decoded.partial"
        assert named.parent in {None: [staged_disk], "beside it": [staged_disk, image], "elsewhere": [image]}[decoded]
        assert [*full.root.glob("images/*"), *place.root.glob("web01/*")] == []
        assert b"error: " in (place.task / "log").read_bytes().splitlines()[-1]
        full.free()
        second = wait(job(*start, stdin=json.dumps(options))[0]["job"])
    assert second["result"]["observed"]["sha256"] == hashlib.sha256(vmdk).hexdigest()


def test_a_job_ends_with_its_log_and_its_result_on_a_disk_without_a_byte_left(tmp_path: Path) -> None:
    with file_system(tmp_path / "host", 8 * MIB) as place:
        started = job(
            *("start", "--directory", str(place.task), "--stage", talking.STAGE, "--run", RUN),
            stdin=talking.options(2000, 4.0).decode(),
            program=str(talking.pack(tmp_path)),
        )[0]["job"]
        until(lambda: b"line 10\n" in (place.task / "log").read_bytes())
        place.fill(0)

        ended = wait(started)

        assert (ended["state"], ended["exit_status"]) == ("DONE", 0)
        assert ended["result"]["observed"] == {"lines": 2000}
        said = [line.partition(" ")[2] for line in (place.task / "log").read_text().splitlines()]
        assert said == talking.lines(2000)


def test_the_disk_is_full_while_a_guest_is_fixed(place: Place, tmp_path: Path) -> None:
    disk = phony.disk(tmp_path / "a.raw", phony.LINUX)
    options = {
        "manifest": staged.manifest(tmp_path, disk, source_format="raw"),
        "work_directory": str(place.root / "web01/work"),
        "backup": True,
        "update_grub": True,
        "regen_initramfs": False,
        "print_fstab": False,
        "remove_vmware_tools": False,
        "fstab_mode": "stabilize-all",
        "nics": [],
    }

    result = meanwhile("fix", options, place, lambda: place.fill(MIB))

    failed(result, "free", "make room")
    assert not (place.root / "web01/work/fix").exists()


def stage_of(path: str) -> int:
    """The process of a job's stage; what it has started has the mark too, and after 32767 comes a smaller number."""
    return next(pid for pid, job in watching.stages_below(Path(path).parent).items() if job == Path(path))
