"""A wave's task waits for its VM's run until that is over, or is there no more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from airflow.sdk.module_loading import import_string
from hyperflow.triggers import vm_run
from hyperflow.triggers.vm_run import VmRunTrigger


def fired(monkeypatch: pytest.MonkeyPatch, *states: str | None) -> tuple[str | None, int]:
    """What a trigger tells of a run, and how often it has waited.

    :param states: of the run at each look; None: it is not there; the last one stays
    """
    left = list(states)
    slept: list[float] = []

    class Airflow:
        @staticmethod
        def get_dr_count(*, dag_id: str, run_ids: list[str], states: list[str] | None) -> int:
            assert (dag_id, run_ids) == ("migrate.p.a", ["r"])
            return int(left[0] is not None and (states is None or left[0] in states))

        @staticmethod
        def get_dagrun_state(*, dag_id: str, run_id: str) -> str | None:
            return left[0]

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 20, "it waits for ever"
        if len(left) > 1:
            left.pop(0)

    async def look() -> Any:
        trigger = VmRunTrigger(dag_id="migrate.p.a", states=["success", "failed"], run_ids=["r"], poll_interval=5)  # type: ignore[list-item]
        (event,) = [event.payload async for event in trigger.run()]
        return event

    monkeypatch.setattr(vm_run, "RuntimeTaskInstance", Airflow)
    monkeypatch.setattr(vm_run.asyncio, "sleep", sleep)
    _, told = asyncio.run(look())
    assert told["run_ids"] == ["r"]
    return told["r"], len(slept)


@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_run_is_waited_for_until_it_is_over(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    assert fired(monkeypatch, "queued", "running", state) == (state, 2)


@pytest.mark.parametrize("before", ["queued", "running"])
def test_a_run_that_somebody_deletes_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    assert fired(monkeypatch, before, None) == (None, 1)


def test_airflow_makes_it_anew_in_its_triggerer() -> None:
    name, arguments = VmRunTrigger(dag_id="d", states=[], run_ids=["r"], poll_interval=5).serialize()
    assert import_string(name) is VmRunTrigger
    assert VmRunTrigger(**arguments).run_ids == ["r"]
