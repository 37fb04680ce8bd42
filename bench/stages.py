"""Runs stages as a KVM host does, and tells what they took."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "/usr/bin/python3"  # the host's own: the virtual environment has no guestfs

# Runs a command as a child of its own and asks the kernel what that child, and those it waited for, had at their peak.
_WATCH = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


class BenchError(Exception):
    """Something that was to be measured failed; the message has what it said."""


@dataclass(frozen=True)
class Ran:
    """A stage that has run.

    :param seconds: wall, the start of Python included
    :param cpu_seconds: of the stage and of the programs that it waited for
    :param peak_kib: largest resident memory of the stage's process, or of a program that it started; 0 when not watched
    :param observed: what it reported
    """

    seconds: float
    cpu_seconds: float
    peak_kib: int
    observed: dict[str, Any]


def run(stage: str, options: dict[str, Any], folder: Path, *, watch: bool = False) -> Ran:
    """Run a stage to its end.

    :param folder: where its result goes
    :param watch: measure its memory, which takes a process more
    :raises BenchError: when it fails, with its log
    """
    result = folder / f"{stage}.json"
    command = [PYTHON, "-m", "hyperflow.kvmhost", stage, "--result", str(result)]
    if watch:
        command = [PYTHON, "-c", _WATCH, *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "plugins")}
    begun, cpu = time.monotonic(), _cpu_of_children()
    done = subprocess.run(
        command, input=json.dumps(options), env=environment, capture_output=True, text=True, check=False
    )
    seconds, cpu = time.monotonic() - begun, _cpu_of_children() - cpu
    if done.returncode != 0:
        raise BenchError(f"stage {stage} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    peak = int(done.stderr.rsplit("peak ", 1)[1]) if watch else 0
    return Ran(seconds, cpu, peak, json.loads(result.read_text())["observed"])


def _cpu_of_children() -> float:
    """CPU seconds of all children that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(*commands: Sequence[str | Path]) -> float:
    """Run commands one after the other.

    :return: seconds of all of them
    :raises BenchError: when one fails
    """
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
