"""Runs programs of the host, and remembers each with its exit status and seconds, for the run's audit file.

What was run is the process's own affair and not one stage's, so it is kept here: whatever runs a program, however
deep, is in the books without being handed them.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from typing import Any

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
CalledProcess = subprocess.CompletedProcess
TimeoutExpired = subprocess.TimeoutExpired

REMEMBERED = 200  # commands in a result; the first ones, with a count of the others
COMMAND_LIMIT = 600  # characters of one in a result


class Started(subprocess.Popen[bytes]):
    """A program that runs beside the stage; as ``subprocess.Popen``."""

    def __init__(self, arguments: list[str], **options: Any) -> None:
        self._begun = time.monotonic()
        self._ended: float | None = None
        self._status: int | None = None
        super().__init__(arguments, **options)
        _remembered.append(self)

    @property
    def returncode(self) -> int | None:  # type: ignore[override]
        """Exit status, None while it runs."""
        return self._status

    @returncode.setter
    def returncode(self, status: int | None) -> None:
        if status is not None and self._ended is None:
            self._ended = time.monotonic()
        self._status = status

    def told(self) -> dict[str, Any]:
        """What is told of it."""
        seconds = (self._ended or time.monotonic()) - self._begun
        return _told(list(self.args), self._status, seconds)  # type: ignore[arg-type]


_remembered: list[Started | dict[str, Any]] = []


def run(arguments: list[str], **options: Any) -> CalledProcess[Any]:
    """Run a program to its end; as ``subprocess.run``, its faults included."""
    begun = time.monotonic()
    status = None
    try:
        done = subprocess.run(arguments, **options, check=False)
        status = done.returncode
        return done
    finally:
        _remembered.append(_told(arguments, status, time.monotonic() - begun))


def remembered() -> list[dict[str, Any]]:
    """List what was run: ``{"command", "exit", "seconds"}`` each; ``exit`` is None of one that runs, or never ran."""
    found = [each.told() if isinstance(each, Started) else each for each in _remembered[:REMEMBERED]]
    left = len(_remembered) - REMEMBERED
    return found if left <= 0 else [*found, {"command": f"... and {left} more", "exit": None, "seconds": None}]


def _told(arguments: list[str], status: int | None, seconds: float) -> dict[str, Any]:
    return {"command": shlex.join(map(str, arguments))[:COMMAND_LIMIT], "exit": status, "seconds": round(seconds, 3)}
