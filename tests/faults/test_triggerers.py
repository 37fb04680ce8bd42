"""A triggerer that says nothing for a while loses its triggers to another one; awake again, it ends nobody's work."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from lab import airflow
from lab.running import RunningLab
from tests.faults import watching
from tests.faults.scenario import Scenario

pytestmark = [pytest.mark.lab, pytest.mark.night]


def stages_of(scene: Scenario, task: str) -> dict[int, Path]:
    """The processes of a task's stage, and their generation's directories."""
    jobs = scene.lab.folders.staging / scene.name / ".hyperflow" / "jobs" / scene.dag
    return {pid: job for pid, job in watching.stages_below(jobs).items() if job.parent.name == task}


def trigger_logs(scene: Scenario, task: str) -> list[str]:
    """What the triggers of a task's first try have written, a text for each triggerer."""
    logs = scene.lab.folders.state / "airflow" / "logs" / f"dag_id={scene.dag}"
    return [path.read_text() for path in logs.rglob(f"task_id={task}/attempt=1.log.trigger.*.log")]


def test_a_job_goes_on_when_the_triggerer_that_had_its_trigger_wakes(running_lab: RunningLab) -> None:
    scene = Scenario(running_lab, "handed", "small23")
    state, plans = running_lab.folders.state, running_lab.folders.plans
    scene.begin()
    scene.until_task("inspect", "deferred")
    scene.until(lambda: bool(stages_of(scene, "inspect")) and len(trigger_logs(scene, "inspect")) == 1)
    with airflow.stopped(state, "triggerer"):
        stages = stages_of(scene, "inspect")
        for pid in stages:
            os.kill(pid, signal.SIGSTOP)  # so that it does not end by itself meanwhile
        airflow.add(state, plans, "triggerer")
        scene.until(lambda: len(trigger_logs(scene, "inspect")) == 2)
    scene.until(lambda: any("another triggerer goes on with it" in text for text in trigger_logs(scene, "inspect")))
    assert stages_of(scene, "inspect") == stages
    for pid in stages:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    assert (scene.end(), scene.report()["errors"]) == ("success", [])
    task = scene.task("inspect")
    assert task is not None
    assert task.try_number == 1
    assert {job.name for job in stages.values()} == {"1"}
    assert scene.left(failed=False) == []
