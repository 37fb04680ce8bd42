"""What a wave's report tells when its plan has become another one, or none, while the wave worked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from hyperflow.operators.kept_plan import ENDED, FOLDER, keep_plan
from hyperflow.operators.wave_report import WriteWaveReportOperator

MOVED = {"outcome": "migrated", "dag_id": "migrate.move.a", "run_id": "r.1", "slug": "a", "name": "A", "bytes": 7}
FAILED = {"outcome": "failed", "dag_id": "migrate.move.b", "run_id": "r.1", "slug": "b"}
TOLD = {"stage": "vms.b", "message": "b: run r.1 of migrate.move.b failed: boot: it does not come up"}
CHECKED = {("check", "return_value"): ["a", "b"]}


class Ti:
    """A task instance, of which the report asks what others have left."""

    def __init__(self, states: dict[str, str | None], left: dict[tuple[str, str], Any]) -> None:
        self.states = states
        self.left = left

    def get_task_states(self, **_: Any) -> dict[str, Any]:
        return {"r": self.states}

    def xcom_pull(self, *, task_ids: str, key: str = "return_value", map_indexes: int) -> Any:
        return self.left.get((task_ids, key))

    def xcom_push(self, *, key: str, value: Any) -> None:
        self.left["report", key] = value


def report_of(
    states: dict[str, str | None], left: dict[tuple[str, str], Any], *, now: list[str], plan: str = "/nowhere/move.yaml"
) -> tuple[dict[str, Any], str | None]:
    """Have the report written; what it tells, and why its task failed.

    :param now: slugs of those whom the plan has in the wave now
    :param plan: its file
    """
    ti = Ti({"check": "success", **states}, {**CHECKED, **left})
    tasks = {f"vms.{slug}": SimpleNamespace(needs=[]) for slug in now}
    context: Any = {
        "ti": ti,
        "dag": SimpleNamespace(dag_id="wave.move.saturday", task_dict={"check": None, **tasks}),
        "run_id": "r",
        "dag_run": SimpleNamespace(triggering_user_name="alice", conf={}, start_date=None),
    }
    task = WriteWaveReportOperator(task_id="report", plan_file=plan, wave="saturday")
    fault = None
    try:
        task.execute(context)
    except AirflowFailException as failed:
        fault = str(failed)
    return json.loads(Path(ti.left["report", "report"]["path"]).read_text()), fault


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__RECORDS_FOLDER", str(tmp_path))


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {vm["slug"]: vm["outcome"] for vm in report["vms"]}


def test_a_plan_that_is_gone_at_the_end_keeps_nobody_from_the_report() -> None:
    states: dict[str, str | None] = {"vms.a": "success", "vms.b": "success"}
    left = {("vms.a", "summary"): MOVED, ("vms.b", "summary"): {**MOVED, "slug": "b"}}
    report, fault = report_of(states, left, now=["a", "b"])
    assert fault is None
    assert (report["plan"], report["wave"], report["summary"]["outcome"]) == ("move", "saturday", "complete")


def test_a_vm_that_the_plan_has_moved_to_another_wave_is_told_of_as_it_ended_here() -> None:
    states: dict[str, str | None] = {"vms.a": "success", "vms.b": "removed"}
    left: dict[tuple[str, str], Any] = {("vms.a", "summary"): MOVED, ("vms.b", "summary"): FAILED}
    left["vms.b", "failure"] = TOLD
    report, fault = report_of(states, left, now=["a"])
    assert outcomes(report) == {"a": "migrated", "b": "failed"}
    assert report["summary"]["outcome"] == "partial"
    assert report["vms"][1]["reason"] == TOLD["message"]
    assert fault is not None
    assert "wave saturday: failed: b." in fault


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ({("vms.b", "summary"): {**MOVED, "slug": "b"}}, ("migrated", None)),
        ({("vms.b", "skipped"): "not started: a failed"}, ("not started", "not started: a failed")),
        (
            {("vms.b", "trigger_run_id"): "r.1"},
            ("failed", "run r.1 of migrate.move.b was not waited for (task: removed); see that run"),
        ),
        ({}, ("not started", "not started: the plan has it in this wave no more")),
    ],
    ids=["migrated", "skipped", "at work", "not begun"],
)
def test_a_vm_that_was_moved_away_is_told_of_whatever_it_had_come_to(
    left: dict[tuple[str, str], Any], told: tuple[str, str | None]
) -> None:
    states: dict[str, str | None] = {"vms.a": "success", "vms.b": "removed"}
    report, _ = report_of(states, {("vms.a", "summary"): MOVED, **left}, now=["a"])
    assert (report["vms"][1]["outcome"], report["vms"][1].get("reason")) == told


def test_a_vm_that_came_to_the_wave_while_it_worked_is_told_of_too() -> None:
    states: dict[str, str | None] = {"vms.a": "success", "vms.b": "success", "vms.c": "failed"}
    left = {("vms.a", "summary"): MOVED, ("vms.b", "summary"): {**MOVED, "slug": "b"}}
    report, fault = report_of(states, left, now=["a", "b", "c"])
    assert outcomes(report) == {"a": "migrated", "b": "migrated", "c": "failed"}
    assert fault is not None


def test_a_task_that_failed_is_a_failure_whatever_it_had_left_before() -> None:
    report, fault = report_of(
        {"vms.a": "failed", "vms.b": "upstream_failed"}, {("vms.a", "summary"): MOVED}, now=["a", "b"]
    )
    assert outcomes(report) == {"a": "failed", "b": "not started"}
    assert fault is not None


def test_a_wave_whose_first_task_failed_tells_of_those_who_have_a_task_and_why() -> None:
    failure = {"stage": "check", "message": "/nowhere/move.yaml: vmz: unknown key"}
    left = {("check", "return_value"): None, ("check", "failure"): failure}
    states: dict[str, str | None] = {"check": "failed", "vms.a": "upstream_failed", "vms.b": "upstream_failed"}
    report, fault = report_of(states, left, now=["b", "a"])
    assert [vm["slug"] for vm in report["vms"]] == ["b", "a"]
    assert report["reason"] == failure["message"]
    assert fault is not None
    assert "was not started" in fault


def test_the_plan_that_the_run_kept_is_given_back_with_the_report(tmp_path: Path) -> None:
    plan = tmp_path / "move.yaml"
    plan.write_text("plan: move")
    keep_plan(plan, "wave.move.saturday/r")
    report_of({"vms.a": "success", "vms.b": "success"}, {}, now=["a", "b"], plan=str(plan))
    assert (tmp_path / FOLDER / "wave.move.saturday" / "r" / ENDED).exists()


@pytest.mark.parametrize("state", ["skipped", "upstream_failed", None])
def test_a_run_that_is_cleared_after_its_time_tells_what_it_had_brought_about_before(state: str | None) -> None:
    over = "wave saturday was to start at 2026-11-28 22:00 UTC, and that time is over"
    left: dict[tuple[str, str], Any] = {("check", "skipped"): over, ("vms.a", "summary"): MOVED}
    left |= {
        ("vms.a", "trigger_run_id"): "r.1",
        ("vms.b", "summary"): {**MOVED, "slug": "b", "outcome": "already done"},
    }
    report, fault = report_of({"check": "skipped", "vms.a": state, "vms.b": state}, left, now=["a", "b"])
    assert outcomes(report) == {"a": "migrated", "b": "not started"}
    assert report["vms"][1]["reason"] == over
    assert fault is None
