"""Runs a stage of the data plane on this machine, in the distribution's own Python: that is the one with guestfs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PYTHON = "/usr/bin/python3"
PLUGINS = Path(__file__).resolve().parents[2]
GRACE = 5.0  # seconds from SIGTERM to SIGKILL
LOOK = 0.2  # seconds between two looks whether the stage has ended
CHUNK = 64 * 1024  # bytes of its log that are read at once


def run_stage(stage: str, options: dict[str, Any], folder: Path, told: Callable[[str], None]) -> dict[str, Any]:
    """Run a stage to its end.

    :param folder: takes the result's file
    :param told: takes each line of the stage's log as it comes
    :return: the stage's result, whether it succeeded or not
    """
    file = folder / f"{stage}.result.json"
    file.unlink(missing_ok=True)
    command = [PYTHON, "-m", "hyperflow.kvmhost", stage, "--result", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(PLUGINS)}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that what it has started can be ended with it
        )
    except OSError as fault:
        return _failed(stage, f"{PYTHON} cannot be run: {fault.strerror}")
    assert process.stdin is not None  # noqa: S101 - asked for above
    assert process.stdout is not None  # noqa: S101 - so
    try:
        with process.stdin as pipe:
            pipe.write(json.dumps(options).encode())
        for line in _lines(process):
            told(line.decode(errors="replace"))
        status = process.wait()
    finally:
        _end(process)
        process.stdout.close()
    try:
        result = json.loads(file.read_bytes())
    except (OSError, ValueError) as fault:
        return _failed(stage, f"ended with exit status {status} and left no result ({fault})")
    assert isinstance(result, dict)  # noqa: S101 - the program is ours
    return result


def _lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Follow what a stage says until it has ended; what outlives one that was killed may hold its output open."""
    assert process.stdout is not None  # noqa: S101 - it was asked for
    output = process.stdout.fileno()
    partial, ended = b"", False
    while True:
        if select.select([output], [], [], 0 if ended else LOOK)[0]:
            data = os.read(output, CHUNK)
            *lines, partial = (partial + data).split(b"\n")
            yield from lines
            if not data:
                break
        elif ended:
            break
        else:
            ended = process.poll() is not None
    if partial:
        yield partial


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a stage that still runs, for its caller was interrupted, and the programs it has started."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _failed(stage: str, reason: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "succeeded": False,
        "observed": {},
        "seconds": 0.0,
        "error": {"kind": "failed", "message": reason},
    }
