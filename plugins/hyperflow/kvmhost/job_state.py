"""What became of a job, by what it has left in its directory and by the host's processes: see jobs.py."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

RUNNING = "RUNNING"
DONE = "DONE"  # the stage ended, with whatever exit status
LOST = "LOST"  # the stage is gone and left no exit status: reboot, OOM killer, kill -9
ABSENT = "ABSENT"  # there is no such job

START_GRACE = 30.0  # seconds a start may take from the generation's directory to its job.json
LOOK = 0.2  # seconds between two looks whether the stage has ended


def observe(job: Path) -> dict[str, Any]:
    """Tell what became of a job.

    :return: ``{"state": RUNNING}``, ``{"state": DONE, "exit_status": n}``, ``{"state": LOST, "reason": text}`` or
        ``{"state": ABSENT}``
    """
    if not job.is_dir():
        return {"state": ABSENT}
    ended = _exit_status(job)
    if ended is not None:
        return _done(ended)
    try:
        record = json.loads((job / "job.json").read_text())
    except FileNotFoundError:
        age = time.time() - job.stat().st_mtime
        if age < START_GRACE:
            return {"state": RUNNING}
        return {"state": LOST, "reason": "the job was claimed, but its process never came up"}
    return _observe_process(job, record)


def wait(job: Path, seconds: float) -> dict[str, Any]:
    """Wait until a job has ended, or the time is over.

    :return: the state of :func:`observe` by then
    """
    limit = time.monotonic() + seconds
    while (answer := observe(job))["state"] == RUNNING and time.monotonic() < limit:
        time.sleep(LOOK)
    return answer


def _observe_process(job: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Tell what became of a job that had, a moment ago, no exit status.

    It is the supervisor that is looked for: it writes the exit status once the stage has ended, which dies with it.
    """
    if record["boot_id"] != boot_id():
        return {"state": LOST, "reason": "the host was restarted while the stage ran"}
    if start_time(record["pid"]) == record["start_time"]:
        return {"state": RUNNING}
    ended = _exit_status(job)  # it may have ended between the two looks
    if ended is not None:
        return _done(ended)
    return {"state": LOST, "reason": "its processes are gone and left no exit status: killed, or out of memory"}


def _done(status: int) -> dict[str, Any]:
    if status >= 0:
        return {"state": DONE, "exit_status": status}
    reason = f"the stage was ended by {signal.Signals(-status).name}"
    if status == -signal.SIGKILL:
        reason += ": by a person, or by the kernel for want of memory (see the host's kernel log)"
    return {"state": DONE, "exit_status": status, "reason": reason}


def await_record(job: Path) -> None:
    """Wait for a job that is about to come up to record itself: its starter was killed before it had."""
    while not (job / "job.json").exists() and observe(job)["state"] == RUNNING:
        time.sleep(LOOK)


def _exit_status(job: Path) -> int | None:
    try:
        return int(json.loads((job / "exit.json").read_text())["exit_status"])
    except FileNotFoundError:
        return None


def boot_id() -> str:
    """Name this start of the host: another one after every restart."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """Ticks since boot at which the process started (field 22 of proc(5) stat); None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])
