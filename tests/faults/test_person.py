"""What people do to runs that work: each run ends, its copy of the work within seconds, and tells what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hyperflow.hooks.records import safe

from lab import leftovers
from lab.running import RunningLab
from tests.faults import watching
from tests.faults.scenario import Scenario, play

pytestmark = [pytest.mark.lab, pytest.mark.night]

LONG = 60  # seconds of a stall that ends by itself: long enough for Airflow to read the plans again


def marked(scene: Scenario) -> None:
    """Two more runs for the same VM are started; then the download's task is marked failed, and cleared."""
    scene.stall()
    scene.begin()
    scene.until_stalled()
    again = scene.lab.start(scene.dag, {"skip_boot": True})
    other = Scenario(scene.lab, f"{scene.name}-other", scene.vm)
    other.begin()
    for name, dag, run in (("again", scene.dag, again), ("other", other.dag, other.run)):
        scene.facts[name] = (scene.lab.wait(dag, run), scene.lab.failure(dag, run, "preflight"))
    scene.facts["leases meanwhile"] = len(scene.leases())
    scene.mark("export", "failed")
    scene.until_left_alone()
    scene.facts["marked"] = (scene.end(), scene.report(), scene.left(failed=True))
    scene.lab.clear(scene.dag, scene.run, "export")
    scene.facts["cleared"] = (scene.end(), scene.report()["errors"], scene.left(failed=False))


def inspected(scene: Scenario) -> None:
    """The plan is deleted while the download works; the inspection is marked failed, and cleared.

    Its stage is stopped before the mark, so that it cannot end by itself, and the DAG is paused until the job was
    killed, so that the cleanup cannot do it.
    """
    scene.disturb("stall", seconds=LONG)
    scene.begin()
    scene.until_stalled()
    plan = scene.lab.folders.plans / f"{scene.name}.yaml"
    text = plan.read_text()
    plan.unlink()
    parsed = parsed_at(scene)
    scene.until(lambda: parsed_at(scene) != parsed)
    parsed = parsed_at(scene)
    scene.until(lambda: parsed_at(scene) != parsed)  # the first one may have begun before
    scene.until_task("inspect", "deferred")
    logs = scene.lab.folders.state / "airflow" / "logs" / f"dag_id={scene.dag}" / f"run_id={scene.run}"
    # Before its trigger works the task has nobody who could kill the job but the cleanup.
    scene.until(lambda: any(logs.glob("task_id=inspect/*.trigger.*")))
    scene.until(lambda: any("qemu" in line for line in leftovers.processes_of(scene.dag)))
    stop_stage(scene, "inspect")
    with paused(scene):
        scene.mark("inspect", "failed")
        scene.until(lambda: any(is_kill_of("inspect", entry) for entry in audited(scene)))
        scene.until_left_alone()
    state = scene.end()
    scene.facts["audit"] = audited(scene)
    plan.write_text(text)
    scene.facts["marked"] = (state, scene.report(), scene.left(failed=True))
    scene.lab.clear(scene.dag, scene.run, "inspect")
    scene.facts["cleared"] = (scene.end(), scene.report()["errors"], scene.left(failed=False))


def given_up(scene: Scenario) -> None:
    """The whole run is set to failed while the download works; then what was ended is cleared."""
    scene.stall()
    scene.begin()
    scene.until_stalled()
    scene.mark_run("failed")
    scene.until_left_alone()
    scene.facts["marked"] = (scene.end(), scene.report(), scene.left(failed=True))
    scene.lab.clear(scene.dag, scene.run, "export")
    scene.facts["cleared"] = (scene.end(), scene.report()["errors"], scene.left(failed=False))


def given_up_late(scene: Scenario) -> None:
    """The whole run is set to success, long after its snapshot went, while its guest is inspected."""
    scene.begin()
    scene.until_task("remove_snapshot", "success")
    scene.until_task("inspect", "deferred")
    scene.until(lambda: any("qemu" in line for line in leftovers.processes_of(scene.dag)))
    scene.mark_run("success")
    scene.until_left_alone()
    scene.facts["marked"] = (scene.end(), scene.report(), scene.left(failed=True))


def begun_anew(scene: Scenario) -> None:
    """The whole run is cleared while its snapshot is there and its download works."""
    scene.stall()
    scene.begin()
    scene.until_stalled()
    scene.facts["before"] = scene.snapshots()
    scene.lab.clear(scene.dag, scene.run, "preflight")
    scene.facts["cleared"] = (scene.end(), scene.report()["errors"], scene.left(failed=False))


def stop_stage(scene: Scenario, task: str) -> None:
    """Stop a task's stage as SIGSTOP does, also what it has forked; only SIGKILL ends it then."""
    jobs = scene.lab.folders.staging / scene.name / ".hyperflow" / "jobs" / scene.dag
    stages = [pid for pid, job in watching.stages_below(jobs).items() if job.parent.name == task]
    assert stages, f"{task} has ended before it could be stopped"
    for pid in stages:
        with contextlib.suppress(ProcessLookupError):  # what was forked has ended
            os.kill(pid, signal.SIGSTOP)


@contextlib.contextmanager
def paused(scene: Scenario) -> Iterator[None]:
    """Let no task of the DAG begin, as a person does in the UI; those that have begun go on."""
    path = f"/api/v2/dags/{scene.dag}"
    scene.lab.patch(path, {"is_paused": True})
    try:
        yield
    finally:
        scene.lab.patch(path, {"is_paused": False})


def audited(scene: Scenario) -> list[dict[str, Any]]:
    """The entries of the run's audit file."""
    file = scene.lab.folders.state / "airflow" / "hyperflow" / safe(scene.dag) / safe(scene.run) / "audit.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]  # the last one may be half-written


def is_kill_of(task: str, entry: dict[str, Any]) -> bool:
    """Whether an entry tells that a task's trigger has had its job killed."""
    command = entry["what"].startswith("hyperflow-kvmhost job kill --directory ") and entry["what"].endswith(f"/{task}")
    return command and (entry["task"], entry["state"]) == (task, "done")


def parsed_at(scene: Scenario) -> Any:
    dag = scene.lab.api.request("GET", f"/api/v2/dags/{scene.dag}")
    assert not dag["is_stale"]
    return dag["last_parsed_time"]


@pytest.fixture(scope="module")
def scenes(running_lab: RunningLab) -> dict[str, Scenario]:
    """All runs of this module, played at once."""
    return play(
        running_lab,
        ("marked", "small22", marked),
        ("inspected", "small23", inspected),
        ("given-up", "small24", given_up),
        ("given-up-late", "small25", given_up_late),
        ("begun-anew", "small36", begun_anew),
    )


@pytest.mark.parametrize("which", ["again", "other"])
def test_a_second_run_for_a_vm_is_refused_and_names_the_first(scenes: dict[str, Scenario], which: str) -> None:
    """A second run of the same DAG, and one of another plan that names the same VM."""
    scene = scenes["marked"]
    state, message = scene.facts[which]
    assert state == "failed"
    for words in ("is being migrated already", f"run {scene.run} of DAG {scene.dag}"):
        assert words in message
    assert scene.facts["leases meanwhile"] == 1


@pytest.mark.parametrize(("name", "task", "disk"), [("marked", "export", "disk-0: "), ("inspected", "inspect", "")])
def test_a_task_that_is_marked_failed_ends_its_work_and_the_run_and_leaves_nothing(
    scenes: dict[str, Scenario], name: str, task: str, disk: str
) -> None:
    state, report, left = scenes[name].facts["marked"]
    assert state == "failed"
    assert [(error["stage"], error["message"]) for error in report["errors"]] == [
        (task, f"{disk}the task was ended from outside; see its log")
    ]
    assert left == []


def test_a_job_whose_task_is_marked_failed_is_killed_by_its_trigger_and_not_by_the_cleanup(
    scenes: dict[str, Scenario],
) -> None:
    entries = scenes["inspected"].facts["audit"]
    (killed,) = (at for at, entry in enumerate(entries) if is_kill_of("inspect", entry))
    assert killed < min(at for at, entry in enumerate(entries) if entry["task"] == "cleanup")


def test_a_run_that_is_set_to_failed_ends_its_work_cleans_up_and_fails(scenes: dict[str, Scenario]) -> None:
    scene = scenes["given-up"]
    state, report, left = scene.facts["marked"]
    assert state == "failed"
    assert [(error["stage"], error["message"]) for error in report["errors"]] == [
        ("export", "disk-0: the task was ended from outside; see its log")
    ]
    assert report["pipeline"]["stages"]["convert"]["skipped"] == "not reached, because the run was ended from outside"
    assert report["source_cleanup"]["clean"] is True
    assert scene.ended_leases()[0] == "aborted"
    assert left == []


def test_a_run_that_is_set_to_success_before_its_end_is_cleaned_up_and_fails_all_the_same(
    scenes: dict[str, Scenario],
) -> None:
    state, report, left = scenes["given-up-late"].facts["marked"]
    assert state == "failed"
    assert [(error["stage"], error["message"]) for error in report["errors"]] == [
        ("convert", "not reached, because the run was ended from outside")
    ]
    assert left == []


@pytest.mark.parametrize("name", ["marked", "inspected", "given-up", "begun-anew"])
def test_a_failed_task_that_is_cleared_goes_on_to_success(scenes: dict[str, Scenario], name: str) -> None:
    assert scenes[name].facts["cleared"] == ("success", [], [])


def test_a_run_that_is_cleared_as_a_whole_does_not_stand_in_its_own_way(scenes: dict[str, Scenario]) -> None:
    scene = scenes["begun-anew"]
    assert len(scene.facts["before"]) == 1, "it had its snapshot when it was cleared"
    assert scene.ended_leases()[-1] == "completed"
    assert scene.snapshots() == []


def test_clearing_a_later_task_downloads_nothing_again(scenes: dict[str, Scenario]) -> None:
    scene = scenes["inspected"]
    assert scene.ended_leases() == ["completed"]
    task = scene.task("export")
    assert task is not None
    assert task.try_number == 1


def test_a_plan_that_is_deleted_meanwhile_does_not_stop_its_run(scenes: dict[str, Scenario]) -> None:
    """Up to the task that a person ends, and through the tasks that clean up and report."""
    _, report, _ = scenes["inspected"].facts["marked"]
    assert report["pipeline"]["stages"]["checksum"]["success"] is True
    assert report["source_cleanup"]["clean"] is True
