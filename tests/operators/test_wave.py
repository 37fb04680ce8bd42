"""When a wave begins, and which of its VMs wait for a person or for each other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowSkipException
from hyperflow.operators.wave import GO_ON, STOP, decision_on
from hyperflow.operators.wave_check import CheckWaveOperator
from hyperflow.plans.load import load_plan
from hyperflow.plans.plan import Plan
from hyperflow.workflows.wave import build_wave

PLAN = """
plan: move
time_zone: UTC
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms: [{name: a}, {name: b}, {name: c}, {name: d}]
waves:
  - name: saturday
    members: ["*"]
    apart: [[a, b, c]]
    schedule: {cron: "0 22 * * sat"}
    window: {days: [sat], start: "22:00", end: "04:00"}
"""
SATURDAY = datetime(2026, 11, 28, 22, 0, tzinfo=UTC)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "move.yaml").write_text(PLAN)
    return load_plan(tmp_path / "move.yaml")


def opening(plan: Plan, slot: datetime | None, now: datetime) -> Any:
    """Have a wave's first task look at a run that its schedule, or a person, has started."""
    task = CheckWaveOperator(task_id="check", plan_file=str(plan.path), wave="saturday")
    kind = "manual" if slot is None else "scheduled"
    run = SimpleNamespace(run_type=kind, logical_date=slot, run_after=slot or now)
    return task.opening({"dag_run": run}, plan.wave("saturday"), now)  # type: ignore[typeddict-item, arg-type]


def test_a_start_by_schedule_begins_in_its_window(plan: Plan) -> None:
    assert opening(plan, SATURDAY, SATURDAY + timedelta(minutes=1)).start == SATURDAY


@pytest.mark.parametrize("late", [timedelta(minutes=16), timedelta(hours=3), timedelta(days=7, minutes=1)])
def test_a_slot_that_was_missed_does_not_fire_on_unpausing_though_the_window_is_open(
    plan: Plan, late: timedelta
) -> None:
    with pytest.raises(AirflowSkipException, match="that time is over: nothing is started"):
        opening(plan, SATURDAY, SATURDAY + late)


def test_a_person_may_start_it_at_any_time_of_the_window(plan: Plan) -> None:
    assert opening(plan, None, SATURDAY + timedelta(hours=3)).start == SATURDAY


@pytest.mark.parametrize(
    ("failed", "decided", "then"),
    [
        (["a"], [], None),
        (["a"], [(GO_ON, ["a"])], GO_ON),
        (["a", "b"], [(GO_ON, ["a"])], None),
        (["a", "b"], [(GO_ON, ["a"]), (GO_ON, ["b"])], GO_ON),
        (["a", "b"], [(GO_ON, ["a", "b"]), (STOP, ["a"])], STOP),
    ],
)
def test_answers_about_each_that_failed_let_the_wave_go_on_and_one_stop_stops_it(
    failed: list[str], decided: list[tuple[str, list[str]]], then: str | None
) -> None:
    assert decision_on(failed, [{"answer": answer, "of": of} for answer, of in decided]) == then


def test_who_takes_turns_looks_at_all_others_of_its_sets_and_at_nobody_else(tmp_path: Path) -> None:
    text = PLAN.replace("{name: d}]", "{name: d}, {inventory_path: /dc/vm/web-1}, {name: e}]")
    text = text.replace("apart: [[a, b, c]]", "groups: {some: [a, b, c]}\n    apart: [[some], [c, d], [web-*, e]]")
    (tmp_path / "move.yaml").write_text(text)
    plan = load_plan(tmp_path / "move.yaml")
    dag = build_wave(plan, plan.wave("saturday"))
    apart = {
        slug: {dag_id.rpartition(".")[2] for dag_id in dag.get_task(f"vms.{slug}").apart} for slug in members_of(dag)
    }
    assert apart == {
        "a": {"b", "c"},
        "b": {"a", "c"},
        "c": {"a", "b", "d"},
        "d": {"c"},
        "web-1": {"e"},
        "e": {"web-1"},
    }
    chain = {slug: dag.get_task(f"vms.{slug}").upstream_task_ids for slug in "abcd"}
    assert chain == {"a": {"check"}, "b": {"vms.a"}, "c": {"vms.b"}, "d": {"vms.c"}}


def members_of(dag: DAG) -> list[str]:
    """Slugs of a wave's DAG."""
    return [task.removeprefix("vms.") for task in dag.task_ids if task.startswith("vms.")]
