"""The pools of a plan, as the first task of a run finds them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from hyperflow.hooks.records import POOLS, keep_pools
from hyperflow.operators.limits import heed_limits
from hyperflow.operators.wave_check import pools_of_wave
from hyperflow.plans.load import load_plan
from hyperflow.plans.plan import Plan

PLAN = """
plan: autumn
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
pools: {nfc_streams_per_esxi: 8, jobs_per_host: 4}
vms: [{name: web01}, {name: web02}]
waves: [{name: first, members: [web01], max_in_flight: 2}]
"""
WAVE, STREAMS, JOBS = "hyperflow_wave_autumn_first", "hyperflow_nfc_vc", "hyperflow_jobs_kvm01"
SIZES = {WAVE: 2, STREAMS: 8, JOBS: 4}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__RECORDS_FOLDER", str(tmp_path / "records"))
    file = tmp_path / "autumn.yaml"
    file.write_text(PLAN)
    return load_plan(file)


def keep(**changes: int | None) -> None:
    """Have Airflow know the plan's pools, but for some: other slots, or None for no such pool."""
    sizes = {name: slots for name, slots in (SIZES | changes).items() if slots is not None}
    keep_pools({name: {"slots": slots, "include_deferred": True} for name, slots in sizes.items()})


def heed(plan: Plan, begun: datetime | None = None) -> list[str]:
    context: Any = {"dag_run": SimpleNamespace(start_date=begun or datetime.now(UTC))}
    (wave,) = plan.waves
    return heed_limits(context, plan, pools_of_wave(plan, wave))


def test_pools_as_the_plan_wants_them_are_nothing_to_speak_of(plan: Plan) -> None:
    keep()
    assert heed(plan) == []


def test_every_missing_pool_is_named_with_what_to_do(plan: Plan) -> None:
    keep(**{WAVE: None, STREAMS: None})
    with pytest.raises(AirflowFailException) as told:
        heed(plan)
    expected = (
        "found no such pool in Airflow, expected {} slots that count deferred tasks: run ./hyperflow limits apply"
    )
    assert [line.partition(f" {plan.path}")[0] for line in str(told.value).split("; ")] == [
        f"pool {STREAMS}: {expected.format(8)}",
        f"pool {WAVE}: {expected.format(2)}",
    ]


def test_a_pool_that_forgets_deferred_tasks_is_no_limit(plan: Plan) -> None:
    kept = {name: {"slots": slots, "include_deferred": name != JOBS} for name, slots in SIZES.items()}
    keep_pools(kept)
    with pytest.raises(AirflowFailException, match=f"^pool {JOBS}: found one that does not count deferred tasks"):
        heed(plan)


@pytest.mark.parametrize(
    ("slots", "warns"),
    [
        (3, None),
        (5, "5 slots in Airflow, 4 in the plan: more than the plan wants at once"),
        (-1, "-1 slots in Airflow, 4 in the plan: more than the plan wants at once"),
        (0, "0 slots in Airflow, 4 in the plan: its tasks wait until it has some"),
    ],
)
def test_another_size_is_at_most_a_warning(plan: Plan, slots: int, warns: str | None) -> None:
    keep(**{JOBS: slots})
    assert heed(plan) == ([f"pool {JOBS} has {warns}"] if warns else [])


@pytest.mark.parametrize("kept", ["", "{}", '{"told": "2026-01-01", "pools": {}}', '{"told": 5, "pools": []}', "[1]"])
def test_what_the_scheduler_has_not_told_is_not_judged_and_said_so(
    plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: str
) -> None:
    assert heed(plan) == []
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / POOLS).write_text(kept)
    assert heed(plan) == []
    assert caplog.text.count("the pools were not looked at") == 2


def test_what_it_told_of_an_earlier_run_is_not_taken_for_this_ones(plan: Plan, tmp_path: Path) -> None:
    keep(**{JOBS: None})
    now = datetime.now(UTC)
    assert heed(plan, now + timedelta(minutes=2)) == []
    assert json.loads((tmp_path / "records" / POOLS).read_text())["pools"][STREAMS]["slots"] == 8
    with pytest.raises(AirflowFailException, match=JOBS):
        heed(plan, now + timedelta(seconds=5))  # by the clock of another scheduler
