"""A control group of the kernel's that limits memory, of whichever version this machine has."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
LIMIT = 30.0  # seconds until the processes in it have gone


class MemoryGroup:
    """A group whose processes may take so many bytes more than they have when they come in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, pid: int) -> None:
        """Put a process into it."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    def killed(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        for name in ("memory.oom_control", "memory.events"):
            if (self._folder / name).exists():
                lines = [line.split() for line in (self._folder / name).read_text().splitlines()]
                return int(dict(lines)["oom_kill"])
        raise AssertionError(f"{self._folder} does not tell what was killed")

    def processes(self) -> list[int]:
        """What is in it."""
        return [int(pid) for pid in (self._folder / "cgroup.procs").read_text().split()]


@contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """Make a group, and remove it with all that is in it.

    :param limit: bytes
    """
    version_2 = (V2 / "cgroup.controllers").exists()
    if version_2:
        (V2 / "cgroup.subtree_control").write_text("+memory")
    folder = (V2 if version_2 else V1) / f"hyperflow-test-{os.getpid()}"
    folder.mkdir()
    group = MemoryGroup(folder)
    try:
        (folder / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(str(limit))
        yield group
    finally:
        for pid in group.processes():
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + LIMIT
        while group.processes():
            assert time.monotonic() < until, f"{folder} is not empty"
            time.sleep(0.05)
        folder.rmdir()
