"""Which processes on this host belong to which run: a job marks them by their environment, which is inherited."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

RUN_MARK = b"HYPERFLOW_RUN="
JOB_MARK = b"HYPERFLOW_JOB="


def of_runs(*, without_job: str | None = None) -> dict[str, list[int]]:
    """List the living processes of every run: ``{"DAG/RUN": [pid]}``.

    :param without_job: directory of a job whose own processes do not count
    """
    found: dict[str, list[int]] = {}
    own = None if without_job is None else JOB_MARK + without_job.encode()
    for pid, environment in _environments():
        if own in environment:
            continue
        for mark in environment:
            if mark.startswith(RUN_MARK):
                found.setdefault(mark[len(RUN_MARK) :].decode(errors="replace"), []).append(pid)
    return found


def of_job(job: Path) -> list[int]:
    """List the living processes of a job, but not this one."""
    mark = JOB_MARK + os.fsencode(job)
    return [pid for pid, environment in _environments() if mark in environment and pid != os.getpid()]


def children(*names: str) -> list[int]:
    """List the processes that this one has started and whose name, as the kernel has it, begins with one of these."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended
            before, _, after = path.read_text(errors="replace").rpartition(")")
            if before.partition("(")[2].startswith(names) and int(after.split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended, or is another user's
            environment = (path / "environ").read_bytes().split(b"\0")
            if (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                yield int(path.name), environment
