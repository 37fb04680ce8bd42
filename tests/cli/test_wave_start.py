"""``./hyperflow wave start``: what a start and a rehearsal do to the schedule of a wave."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hyperflow.cli import wave as command
from hyperflow.cli.airflow_api import AirflowUnavailable, Refused, TaskInstance
from hyperflow.plans.load import load_plan
from hyperflow.plans.plan import Plan
from rich.console import Console

PLAN = """
plan: move
time_zone: UTC
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms: [{name: a}, {name: b}]
waves: [{name: night, members: ["*"]SCHEDULE}]
"""
WAVE, VM_A = "wave.move.night", "migrate.move.a"


class Airflow:
    """As much of an Airflow as a start needs; ``said`` tells what was asked of it, in order.

    :param look: what happens at each look at the wave's run; it returns the run's state
    """

    url = "http://airflow"

    def __init__(self, paused: set[str], look: Callable[[], str] = lambda: "success") -> None:
        self.paused = paused
        self.look = look
        self.said: list[str] = []
        self.at_work: list[dict[str, Any]] = []  # other runs of the wave

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        self.said.append(f"trigger {dag_id} {sorted(conf)}")
        return "manual__1"

    def unpause(self, dag_id: str) -> None:
        self.said.append(f"unpause {dag_id}")

    def pause(self, dag_id: str) -> None:
        self.said.append(f"pause {dag_id}")

    def runs_at_work(self, dag_id: str) -> list[dict[str, Any]]:
        return self.at_work

    def fail_run(self, dag_id: str, run_id: str) -> None:
        self.said.append(f"fail {run_id}")
        self.look = lambda: "failed"

    def is_paused(self, dag_id: str) -> bool:
        return dag_id in self.paused

    def paused_dags(self, prefix: str) -> set[str]:
        return {dag_id for dag_id in self.paused if dag_id.startswith(prefix)}

    def has_dag(self, dag_id: str) -> bool:
        return True

    def pool_of(self, dag_id: str, task_id: str) -> str:
        return "default_pool"

    def run_state(self, dag_id: str, run_id: str) -> str:
        return self.look()

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        return []

    def xcom(self, *_: Any) -> dict[str, str]:
        return {"path": "/r/wave-report.json", "outcome": "rehearsed"}


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's pools and people are as they must be, and have their own tests."""
    monkeypatch.setattr(command, "missing_in_airflow", lambda *_: ([], []))
    monkeypatch.setattr(command, "wait_for_pools", lambda *_: None)
    monkeypatch.setattr(command, "POLL", 0)


def start(folder: Path, airflow: Airflow, *asked: str, at: datetime | None = None, wait: bool = False) -> str:
    """Start the wave; what was printed.

    :param at: when its schedule starts it
    """
    schedule = f', schedule: {{at: ["{at:%Y-%m-%dT%H:%M}"]}}' if at else ""
    (folder / "move.yaml").write_text(PLAN.replace("SCHEDULE", schedule))
    plan: Plan = load_plan(folder / "move.yaml")
    printed = StringIO()
    command.start(
        airflow,  # type: ignore[arg-type] # plays it
        plan,
        plan.wave("night"),
        Console(file=printed, width=200),
        asked=set(asked),
        wait=wait,
    )
    return printed.getvalue()


def test_a_rehearsal_of_a_paused_wave_is_waited_for_and_leaves_it_paused(tmp_path: Path) -> None:
    airflow = Airflow({WAVE}, lambda: airflow.said.append("look") or "success")  # type: ignore[func-returns-value]
    said = start(tmp_path, airflow, "dry_run", at=datetime.now(UTC) + timedelta(days=2))
    looked = [one for one in airflow.said if one != "look"]
    assert looked == [f"trigger {WAVE} ['dry_run', 'pause_after']", f"unpause {WAVE}", f"pause {WAVE}"]
    assert airflow.said.index("look") == 2
    assert f"{WAVE} is paused again\n" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("often", [1, 2])
def test_a_rehearsal_that_is_interrupted_is_ended_and_leaves_the_wave_paused(
    tmp_path: Path, number: int, often: int
) -> None:
    """Else it would go on when somebody un-pauses the wave in earnest, and pause it under the run that was meant."""
    interruptions = iter([number] * often)

    def interrupted() -> str:
        if (again := next(interruptions, None)) is not None:
            os.kill(os.getpid(), again)
        return "running"

    before = signal.getsignal(number)
    airflow = Airflow({WAVE}, interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, airflow, "dry_run")
    assert airflow.said[2:] == ["fail manual__1"] * (often == 1) + [f"pause {WAVE}"]
    assert signal.getsignal(number) == before


def test_a_rehearsal_that_cannot_be_ended_is_named_and_leaves_the_wave_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow = Airflow({WAVE}, lambda: "running")
    monkeypatch.setattr(airflow, "fail_run", lambda *_: None)
    monkeypatch.setattr(command, "END_LIMIT", 0)
    console = Console(file=StringIO(), width=200)
    (tmp_path / "move.yaml").write_text(PLAN.replace("SCHEDULE", ""))
    wave = load_plan(tmp_path / "move.yaml").wave("night")
    command.end_run(airflow, wave, "manual__1", console)  # type: ignore[arg-type] # plays it
    printed = console.file
    assert isinstance(printed, StringIO)
    assert f"run manual__1 is not over: it goes on when somebody un-pauses {WAVE}" in printed.getvalue()


@pytest.mark.parametrize(
    ("waiting", "paused"),
    [
        ({"run_type": "manual", "conf": {}}, False),
        ({"run_type": "scheduled", "conf": {}}, True),
        ({"run_type": "manual", "conf": {"dry_run": True, "pause_after": True}}, True),
    ],
)
def test_a_wave_that_somebody_has_started_while_it_was_rehearsed_is_not_paused_under_that_run(
    tmp_path: Path, waiting: dict[str, Any], paused: bool
) -> None:
    def look() -> str:
        airflow.at_work = [{"dag_run_id": "manual__2", **waiting}]
        return "success"

    airflow = Airflow({WAVE}, look)
    said = start(tmp_path, airflow, "dry_run")
    assert (f"pause {WAVE}" in airflow.said) == paused
    assert ("run manual__2 waits. Its schedule counts" in said) != paused


@pytest.mark.parametrize("asked", [(), ("dry_run",)])
def test_nothing_is_started_behind_a_rehearsal_that_pauses_the_wave_at_its_end(
    tmp_path: Path, asked: tuple[str, ...]
) -> None:
    airflow = Airflow(set())
    airflow.at_work = [{"dag_run_id": "manual__0", "conf": {"dry_run": True, "pause_after": True}}]
    with pytest.raises(Refused, match=r"its rehearsal manual__0 is not over, and pauses the wave at its end"):
        start(tmp_path, airflow, *asked)
    assert airflow.said == []


def test_a_paused_wave_with_a_run_that_is_not_over_is_not_rehearsed(tmp_path: Path) -> None:
    airflow = Airflow({WAVE})
    airflow.at_work = [{"dag_run_id": "manual__0", "conf": None}]
    with pytest.raises(Refused, match=r"its run manual__0 is not over: un-paused for a rehearsal, it would go on"):
        start(tmp_path, airflow, "dry_run")
    assert airflow.said == []


def test_a_wave_that_cannot_be_paused_again_is_named(tmp_path: Path) -> None:
    airflow = Airflow({WAVE})
    airflow.pause = lambda _: (_ for _ in ()).throw(AirflowUnavailable("no answer"))  # type: ignore[method-assign]
    with pytest.raises(AirflowUnavailable, match=r"wave.move.night could not be paused again.*no answer"):
        start(tmp_path, airflow, "dry_run")


@pytest.mark.parametrize("minutes", [-10, 10])
def test_there_is_no_rehearsal_of_a_paused_wave_while_its_start_is_due(tmp_path: Path, minutes: int) -> None:
    airflow = Airflow({WAVE})
    with pytest.raises(Refused, match="would then be in earnest"):
        start(tmp_path, airflow, "dry_run", at=datetime.now(UTC) + timedelta(minutes=minutes))
    assert airflow.said == []


def test_a_rehearsal_that_is_at_work_when_the_schedule_starts_the_wave_is_stopped_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = timedelta(0)

    class Clock(datetime):
        """Goes on while the rehearsal works: the real one might come to the wave's start before there is a run."""

        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override] # not of this class
            return datetime.now(tz) + ahead

    def look() -> str:
        nonlocal ahead
        ahead = timedelta(minutes=19)
        return "running"

    airflow = Airflow({WAVE}, look)
    monkeypatch.setattr(command, "datetime", Clock)
    with pytest.raises(Refused, match=r"run manual__1 of wave.move.night was ended \(set to failed\)"):
        start(tmp_path, airflow, "dry_run", at=datetime.now(UTC) + timedelta(minutes=20))
    assert airflow.said[-1] == f"pause {WAVE}"


def test_a_rehearsal_of_a_wave_whose_schedule_counts_leaves_that_as_it_is(tmp_path: Path) -> None:
    airflow = Airflow(set())
    start(tmp_path, airflow, "dry_run", at=datetime.now(UTC) + timedelta(minutes=10))
    assert airflow.said == [f"unpause {WAVE}", f"trigger {WAVE} ['dry_run']"]


def test_a_start_says_that_the_schedule_counts_from_now_and_when_it_starts_the_wave_next(tmp_path: Path) -> None:
    at = datetime.now(UTC) + timedelta(days=2)
    said = start(tmp_path, Airflow({WAVE}), at=at)
    assert f"the schedule of {WAVE} counts from now on: it starts again at {at:%a %Y-%m-%d %H:%M} UTC" in said
    assert "its dates are over" in start(tmp_path, Airflow({WAVE}), at=datetime(2025, 1, 1, tzinfo=UTC))
    assert "schedule" not in start(tmp_path, Airflow({WAVE}))


def test_vms_whose_dags_are_paused_are_named_and_nothing_is_started(tmp_path: Path) -> None:
    airflow = Airflow({WAVE, VM_A, "migrate.move.elsewhere"})
    with pytest.raises(Refused, match=rf"^{VM_A}: paused in Airflow"):
        start(tmp_path, airflow)
    assert airflow.said == []
