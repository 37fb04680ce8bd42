"""Every process that serves a run is killed with -9, one after the other, and the run goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hyperflow.cli.airflow_api import TaskInstance

from lab import airflow, leftovers
from lab.running import RunningLab
from tests.faults import watching
from tests.faults.watching import Watch

pytestmark = [pytest.mark.lab, pytest.mark.night]

LIMIT = 900.0  # seconds for any step
PLACE = 8 << 20  # bytes after which a download stops; the small guest's has some 25 MB
EXPORT, CHECKSUM, INSPECT, CONVERT = "export.0", "checksum.0", "inspect", "convert.0"


def received_by(stage: int | None) -> int:
    """Bytes of the disk that a download has written so far."""
    for descriptor in Path(f"/proc/{stage}/fd").glob("*"):
        with contextlib.suppress(OSError):  # it was closed, or the stage has ended
            if descriptor.readlink().name.endswith(".vmdk.partial"):
                return descriptor.stat().st_size
    return 0


@dataclass
class Night:
    """A run on a night on which everything dies.

    :ivar name: the plan's name
    :ivar vm: a small VM of the test's own
    """

    lab: RunningLab
    name: str
    vm: str
    dag: str = ""
    run: str = ""

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that happens by itself."""
        limit = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < limit, "it has not happened"
            time.sleep(0.5)

    def begin(self) -> None:
        """Start the run."""
        self.dag, self.run = self.lab.quick_run(self.name, self.vm)

    def stall(self) -> None:
        """Have the next download of the VM stop in its middle."""
        self.lab.vcenter.admin("POST", "/faults", {"kind": "stall", "vm": self.vm, "offset": PLACE})

    def task(self, task_id: str) -> TaskInstance | None:
        """A task of the run, or of a mapped one the first; None while there is none."""
        found = [each for each in self.lab.api.task_instances(self.dag, self.run) if each.task_id == task_id]
        return next((each for each in found if each.map_index >= 0), found[0] if found else None)

    def until_task(self, task_id: str, state: str) -> None:
        """Wait until a task is in a state."""
        self.until(lambda: (task := self.task(task_id)) is not None and task.state == state)

    def jobs(self) -> Path:
        """The run's folder of jobs."""
        (run,) = (self.lab.folders.staging / self.name / ".hyperflow/jobs").glob("*/*")
        return run

    def stage(self, task: str) -> int | None:
        """The process of a task's stage; None while there is none."""
        return min(watching.stages_below(self.jobs() / task), default=None)  # libguestfs forks it: the first one is it

    def until_stage(self, task: str) -> int:
        """Wait for a task's stage to live, and for its first words."""
        self.until(lambda: self.stage(task) is not None and bool((self.jobs() / task / "log").read_bytes()))
        pid = self.stage(task)
        assert pid is not None
        return pid

    def stalled_export(self) -> int:
        """Wait until the download that lives has stopped in its middle; its process."""
        self.until(lambda: received_by(self.stage(EXPORT)) >= PLACE // 2)
        return self.until_stage(EXPORT)

    def kill_task_process(self, task_id: str) -> None:
        """Kill -9 the process that Airflow runs a task in."""
        task = self.task(task_id)
        assert task is not None
        path = f"/api/v2/dags/{self.dag}/dagRuns/{self.run}/taskInstances/{task_id}/{task.map_index}"
        known = self.lab.api.request("GET", path)["id"]
        (process,) = watching.with_title(f"airflow worker -- {known}")
        os.kill(process, signal.SIGKILL)

    def revive(self, *components: str) -> None:
        """Start components of Airflow again."""
        airflow.revive(self.lab.folders.state, self.lab.folders.plans, *components)

    def kill(self, *components: str, whole: bool = False) -> None:
        """Kill -9 components of Airflow."""
        airflow.kill(self.lab.folders.state, *components, whole=whole)


def test_a_run_outlives_every_process_that_serves_it(running_lab: RunningLab) -> None:
    night = Night(running_lab, "night", "small02")
    night.stall()
    night.begin()
    night.kill("dag-processor")  # and off it stays until everything is started again
    night.until(lambda: bool(list((night.lab.folders.staging / night.name / ".hyperflow/jobs").glob("*/*"))))
    watch = Watch(night.jobs())
    watch.start()

    stage_killed(night)
    triggerer_killed(night)
    scheduler_killed(night)
    job_killed(night)
    all_of_airflow_killed(night)
    task_process_killed(night)

    assert night.lab.wait(night.dag, night.run) == "success"
    watch.end()
    assert night.lab.report(night.dag, night.run)["errors"] == []
    assert leftovers.of_run(night.lab, night.name, night.vm, failed=False) == []
    assert set(watch.copies.values()) == {1}, "one copy of the work at any moment"
    assert {task: len(watch.generations[task]) for task in (EXPORT, CHECKSUM, INSPECT, CONVERT)} == {
        EXPORT: 3,  # the stage was killed; so was the triggerer, which held the lease
        CHECKSUM: 1,  # who started it was killed, or left to itself
        INSPECT: 2,  # the whole job was killed; when all of Airflow was, the job went on
        CONVERT: 1,  # who started it was killed
    }
    for task, said in watch.logs.items():
        task_id, _, index = task.partition(".")
        shown = watching.stage_lines(night.lab.api, night.dag, night.run, task_id, int(index or -1))
        assert shown == said, f"{task}: every line once, and in its order"


def stage_killed(night: Night) -> None:
    """The stage is killed on the host; its supervisor tells how it ended, and another try is made."""
    stage = night.stalled_export()
    night.stall()
    os.kill(stage, signal.SIGKILL)
    night.until(lambda: night.stage(EXPORT) not in (None, stage))


def triggerer_killed(night: Night) -> None:
    """The triggerer is killed in mid-download: lease and session die with it, and the disk is exported anew."""
    stage = night.stalled_export()
    night.kill("triggerer")
    night.revive("triggerer")
    night.until(lambda: watching.is_gone(stage))


def scheduler_killed(night: Night) -> None:
    """The scheduler is killed while a task starts its stage; the task's process is left to itself, and lives."""
    task = night.jobs() / CHECKSUM
    with watching.start_held(task):
        night.until(lambda: bool(watching.waiting_starts(task)))
        night.kill("scheduler")
        night.revive("scheduler")


def job_killed(night: Night) -> None:
    """The job's whole process group is killed, and with it whoever could have told how it ended."""
    stage = night.until_stage(INSPECT)
    os.killpg(os.getpgid(stage), signal.SIGKILL)
    night.until(lambda: night.stage(INSPECT) not in (None, stage))


def all_of_airflow_killed(night: Night) -> None:
    """All of Airflow is killed, with all that it has started, while a stage works; and starts on the same database."""
    stage = night.until_stage(INSPECT)
    night.until_task("inspect", "deferred")
    os.kill(stage, signal.SIGSTOP)  # so that it still works when Airflow is back
    night.kill(*(name for name in airflow.COMPONENTS if name != "dag-processor"), whole=True)
    night.revive(*airflow.COMPONENTS)
    os.kill(stage, signal.SIGCONT)


def task_process_killed(night: Night) -> None:
    """A task's process is killed after it has asked for the start of its stage, before it could defer."""
    task = night.jobs() / CONVERT
    with watching.start_held(task):
        night.until(lambda: bool(watching.waiting_starts(task)))
        night.kill_task_process("convert")
