"""Whose machine a target is, by what is written down of its cutover."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from hyperflow.operators import cutover_record
from hyperflow.operators.cutover_record import (
    cutover_of,
    is_left_in_its_middle,
    is_result,
    key_of,
    put,
    record_of_this_run,
    refuse_moved,
)

DAG = "migrate.autumn.web01"
RECORD: dict[str, Any] = {
    **dict.fromkeys(("vcenter", "moref", "name", "vm", "power", "host", "domain", "uuid", "root"), "x"),
    "run": "manual__1",
    "nics": [],
}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Airflow's variables."""
    kept: dict[str, str] = {}
    as_airflow = SimpleNamespace(
        get=lambda key, default=None, deserialize_json=False: json.loads(kept[key]) if key in kept else default,
        set=lambda key, value, **_: kept.update({key: json.dumps(value)}),
    )
    monkeypatch.setattr(cutover_record, "Variable", as_airflow)
    return kept


@pytest.mark.parametrize(
    ("phase", "was_well", "stays"),
    [
        ("shutting down", False, False),
        ("target started", False, False),
        ("cut over", True, True),
        ("finalizing", True, True),
        ("finalized", True, True),
        ("rolling back", False, False),
        ("rolling back", True, True),
        ("rolled back", True, False),
    ],
)
def test_a_domain_is_a_result_from_when_it_was_well_until_it_is_taken_back(
    variables: dict[str, str], phase: str, was_well: bool, stays: bool
) -> None:
    put(DAG, {**RECORD, "phase": phase, "was_well": was_well})
    assert is_result(DAG, "manual__1") is stays
    assert not is_result(DAG, "manual__2"), "another run's domain is another one"


@pytest.mark.parametrize(
    ("phase", "was_well", "in_the_middle"),
    [
        ("shutting down", False, True),
        ("target started", False, True),
        ("rolling back", False, True),
        ("rolling back", True, False),
        ("cut over", True, False),
        ("finalized", True, False),
        ("rolled back", True, False),
    ],
)
def test_a_run_that_is_cleared_cleans_up_what_its_own_cutover_has_left_in_its_middle(
    variables: dict[str, str], phase: str, was_well: bool, in_the_middle: bool
) -> None:
    put(DAG, {**RECORD, "phase": phase, "was_well": was_well})
    own, other = ({"dag": SimpleNamespace(dag_id=DAG), "run_id": f"manual__{number}"} for number in (1, 2))
    assert is_left_in_its_middle(own) is in_the_middle  # type: ignore[arg-type]
    assert not is_left_in_its_middle(other)  # type: ignore[arg-type]


def test_without_a_record_it_is_none_and_with_a_broken_one_nobody_undefines_it(variables: dict[str, str]) -> None:
    assert not is_result(DAG, "manual__1")
    variables[key_of(DAG)] = '"what a person wrote"'
    assert is_result(DAG, "manual__1")


def test_a_record_that_is_put_back_is_of_its_own_time(variables: dict[str, str]) -> None:
    put(DAG, {**RECORD, "phase": "cut over"}, at="2026-11-01T04:00:00+00:00")
    assert json.loads(variables[key_of(DAG)])["at"] == "2026-11-01T04:00:00+00:00"


def run_of(states: dict[str, str], left: dict[tuple[str, str], Any]) -> Any:
    """A task of the run ``manual__1``, after its shutdown.

    :param states: of tasks that have ended
    :param left: (task, key) -> what it has left, in this round or an earlier one
    """
    crumbs = [{"task_id": task, "map_index": -1, "state": state} for task, state in states.items()]
    ti = SimpleNamespace(
        task_id="rollback",
        xcom_pull=lambda task_ids, key="return_value", **_: left.get((task_ids, key)),
        get_task_breadcrumbs=lambda **_: iter(crumbs),
    )
    return {"dag": SimpleNamespace(dag_id=DAG), "run_id": "manual__1", "ti": ti}


LEFT = {("shutdown", "cutover"): {**RECORD, "phase": "shutting down"}}


@pytest.mark.parametrize(
    ("states", "phase"),
    [
        ({"shutdown": "upstream_failed", "start": "upstream_failed"}, None),
        ({"shutdown": "success", "start": "upstream_failed"}, "shutting down"),
        ({"shutdown": "success", "start": "failed"}, "target started"),
        ({"shutdown": "success", "start": "success"}, "cut over"),
    ],
)
def test_what_an_earlier_round_of_a_run_has_left_is_no_record_of_this_one(
    variables: dict[str, str], states: dict[str, str], phase: str | None
) -> None:
    left = {("start", "return_value"): {"domain": "x"}} if states["start"] != "failed" else {}
    assert record_of_this_run(run_of(states, {**LEFT, **left})).get("phase") == phase


def test_a_run_that_begins_anew_has_no_record_and_keeps_the_old_one_from_being_taken_for_its_own(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts: Any = SimpleNamespace(name="x", instance_uuid="x", moref="x")
    monkeypatch.setattr(cutover_record, "vm_key", lambda _: "x")
    put(DAG, {**RECORD, "phase": "rolled back"}, at="2026-11-01T04:00:00+00:00")
    again = run_of({"shutdown": "success", "start": "success"}, LEFT)
    refuse_moved(again, facts, begins=False)
    assert record_of_this_run(again)["phase"] == "rolled back"
    refuse_moved(again, facts, begins=True)
    assert record_of_this_run(again) == {}
    kept = cutover_of(DAG)
    assert kept is not None
    assert (kept["phase"], kept["at"]) == ("rolled back", "2026-11-01T04:00:00+00:00")


def test_a_run_whose_vm_another_plan_has_cut_over_is_refused_and_leaves_its_own_record(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts: Any = SimpleNamespace(name="x", instance_uuid="x", moref="x")
    monkeypatch.setattr(cutover_record, "vm_key", lambda _: "x")
    put(DAG, {**RECORD, "phase": "rolled back"})
    put("migrate.winter.web01", {**RECORD, "phase": "cut over", "run": "manual__7"})
    variables["hyperflow_moved_x"] = '"migrate.winter.web01"'
    again = run_of({"shutdown": "upstream_failed"}, LEFT)
    with pytest.raises(AirflowFailException, match="is the machine now"):
        refuse_moved(again, facts, begins=True)
    assert record_of_this_run(again)["phase"] == "rolled back"
