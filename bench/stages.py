"""Runs stages as a KVM host does, and tells what they took."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "/usr/bin/python3"  # the host's own: the virtual environment has no guestfs

LOOK = 0.05  # seconds between two looks at the memory of a stage's processes


class BenchError(Exception):
    """Something that was to be measured failed; the message has what it said."""


@dataclass(frozen=True)
class Ran:
    """A stage that has run.

    :param seconds: wall, the start of Python included
    :param cpu_seconds: of the stage and of the programs that it waited for
    :param peak_kib: largest resident memory of the stage's process, or of a program that it started, QEMU's virtual
        machines apart; 0 when not watched
    :param observed: what it reported
    """

    seconds: float
    cpu_seconds: float
    peak_kib: int
    observed: dict[str, Any]


def run(stage: str, options: dict[str, Any], folder: Path, *, watch: bool = False) -> Ran:
    """Run a stage to its end.

    :param folder: where its result goes
    :param watch: measure its memory
    :raises BenchError: when it fails, with its log
    """
    result = folder / f"{stage}.json"
    command = [PYTHON, "-m", "hyperflow.kvmhost", stage, "--result", str(result)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "plugins")}
    os.sync()  # what was written and deleted before is not this one's work
    begun, cpu = time.monotonic(), _cpu_of_children()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment
        )
        assert process.stdin is not None  # noqa: S101 - a pipe was asked for
        with process.stdin as asked:
            asked.write(json.dumps(options))
        peak = _watch(process) if watch else 0
        status = process.wait()
        seconds, cpu = time.monotonic() - begun, _cpu_of_children() - cpu
        log.seek(0)
        if status != 0:
            raise BenchError(f"stage {stage} failed:\n{log.read()[-4000:]}")
    return Ran(seconds, cpu, peak, json.loads(result.read_text())["observed"])


def _watch(process: subprocess.Popen[str]) -> int:
    """Look at a stage until it ends; the largest resident memory of any of its processes so far, in KiB.

    The kernel keeps each process's own peak, so nothing that happens between two looks is missed but the very end.
    """
    peak = 0
    while process.poll() is None:
        peak = max([peak, *_peaks(process.pid)])
        time.sleep(LOOK)
    return peak


def _peaks(pid: int) -> Iterator[int]:
    """Peak of a process and of those that it started; a virtual machine's memory is the guest's."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it ended
        return
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    if peak and not status.startswith("Name:\tqemu-system"):
        yield int(peak[1])
    for child in children:
        yield from _peaks(int(child))


def _cpu_of_children() -> float:
    """CPU seconds of all children that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(*commands: Sequence[str | Path]) -> float:
    """Run commands one after the other.

    :return: seconds of all of them
    :raises BenchError: when one fails
    """
    os.sync()  # as above
    begun = time.monotonic()
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"{' '.join(map(str, command[:3]))} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.monotonic() - begun


def manifest(folder: Path, disks: list[Path]) -> dict[str, str]:
    """Write a manifest of staged VMDKs, as the migration does; the reference that stages take."""
    entries = [
        {
            "id": f"disk-{number}",
            "source_format": "vmdk",
            "bytes": path.stat().st_size,
            "local_path": str(path),
            "checksum": f"sha256:{digest(path)}",
            "boot_order_hint": number,
        }
        for number, path in enumerate(disks)
    ]
    target = folder / "artifact-manifest.json"
    target.write_text(json.dumps({"manifest_version": "1.0", "disks": entries}))
    return {"path": str(target), "sha256": digest(target)}


def digest(path: Path) -> str:
    """SHA-256 of a file; also brings it into the page cache, where both of a pair find it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def python_seconds(program: str, environment: dict[str, str], *arguments: str) -> float:
    """Run a program in a fresh Python of the virtual environment that prints the seconds it has measured."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"a measuring program failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])
