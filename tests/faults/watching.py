"""A run's jobs on the host, watched from beside: how many copies live at any moment, and what their stages said."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperflow.cli.airflow_api import AirflowApi

INTERVAL = 0.2  # seconds between two looks
MARK = b"HYPERFLOW_JOB="
STAGE_LOG = "hyperflow.triggers.job.stage"  # the logger of what a stage said


class Watch(threading.Thread):
    """Looks at a run's jobs until it is ended.

    :param run: the run's folder of jobs, ``STAGING/.hyperflow/jobs/DAG/RUN``
    :ivar copies: the most stages that were seen alive at one moment, by task
    :ivar generations: the generations seen, by task
    :ivar logs: what each task's stages said, as it was on the host last
    """

    def __init__(self, run: Path) -> None:
        super().__init__(daemon=True)
        self.run_folder = run
        self.copies: dict[str, int] = {}
        self.generations: dict[str, set[str]] = {}
        self.logs: dict[str, list[str]] = {}
        self._ended = threading.Event()

    def run(self) -> None:
        """Thread's work."""
        while not self._ended.wait(INTERVAL):
            living: dict[str, set[str]] = {}
            for pid, job in stages_below(self.run_folder).items():
                if not is_gone(pid):  # looked at again: the one may have ended before the other began
                    living.setdefault(job.parent.name, set()).add(job.name)
            for task, generations in living.items():
                self.copies[task] = max(self.copies.get(task, 0), len(generations))
            for log in self.run_folder.glob("*/log"):
                self._keep(log.parent)

    def _keep(self, task: Path) -> None:
        try:
            content = (task / "log").read_text(errors="replace")
            seen = {path.name for path in task.iterdir() if path.name.isdigit()}
        except FileNotFoundError:
            return  # removed with its run
        self.generations.setdefault(task.name, set()).update(seen)
        self.logs[task.name] = [line.partition(" ")[2] for line in content.split("\n")[:-1]]

    def end(self) -> None:
        """End the watch."""
        self._ended.set()
        self.join()


def stages_below(folder: Path) -> dict[int, Path]:
    """The stages that live of jobs below a folder: process id and the job's directory."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            marks = [each for each in (process / "environ").read_bytes().split(b"\0") if each.startswith(MARK)]
            is_stage = b"--result" in (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if marks and is_stage and folder in (job := Path(os.fsdecode(marks[0][len(MARK) :]))).parents:
            found[int(process.name)] = job
    return found


@contextmanager
def start_held(task: Path) -> Iterator[None]:
    """Hold the lock under which a task's job is started: whoever starts one waits for it."""
    task.mkdir(parents=True, mode=0o700, exist_ok=True)
    with (task / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def waiting_starts(task: Path) -> list[int]:
    """Processes on the host that were told to start the task's job and have not."""
    return with_title(f"{task}\0")


def with_title(part: str) -> list[int]:
    """Processes with a text in their command line, or in the title that they gave themselves; not shells and sshd."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if os.fsencode(part) in command and b"-c\0" not in command:
            found.append(int(process.name))
    return sorted(found)


def stage_lines(api: AirflowApi, dag: str, run: str, task_id: str, map_index: int) -> list[str]:
    """What Airflow shows of a task's stages, all tries after one another."""
    path = f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances/{task_id}"
    task = api.request("GET", f"{path}/{map_index}" if map_index >= 0 else path)
    lines = []
    for number in range(1, task["try_number"] + 1):
        answer = api.request(
            "GET",
            f"{path}/logs/{number}",
            params={"map_index": map_index, "full_content": True},
            headers={"Accept": "application/json"},
        )
        records: list[dict[str, Any]] = answer["content"]
        lines += [record["event"] for record in records if record.get("logger") == STAGE_LOG]
    return lines


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
