"""What commands say of the run that they have started, and of a DAG that is paused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hyperflow.cli import aftermath, host, janitor, migrate, wave
from hyperflow.cli import started as cli_started
from hyperflow.cli.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
PLAN = str(ROOT / "include/example-plan.yaml")
COMMANDS = {
    "hyperflow_rollback": ["rollback", PLAN, "web01"],
    "hyperflow_finalize": ["finalize", PLAN, "web01"],
    "hyperflow_janitor": ["janitor", "--json"],
    "hyperflow_host_check": ["host", "check", "kvm01"],
    "hyperflow_survey": ["wave", "survey", PLAN],
    "migrate.example.web01": ["migrate", PLAN, "web01", "--wait"],
}


class Airflow:
    """As much of an Airflow as the commands need."""

    url = "http://airflow"

    def __init__(self, look: Callable[[], str], *, paused: bool = False) -> None:
        self.look = look
        self.paused = paused
        self.triggered: list[str] = []

    def __call__(self, _endpoint: Path | None) -> Airflow:
        return self

    def has_dag(self, _dag_id: str) -> bool:
        return True

    def is_paused(self, _dag_id: str) -> bool:
        return self.paused

    def trigger(self, dag_id: str, _conf: dict[str, Any]) -> str:
        self.triggered.append(dag_id)
        return "manual__1"

    def run_state(self, *_: Any) -> str:
        return self.look()

    def xcom(self, *_: Any) -> None:
        return None

    def task_instances(self, *_: Any) -> list[Any]:
        return []


def run(monkeypatch: pytest.MonkeyPatch, airflow: Airflow, command: list[str]) -> int:
    for module in (aftermath, host, janitor, migrate, wave):
        monkeypatch.setattr(module, "AirflowApi", airflow)
    return main(command)


def interrupted() -> str:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("dag_id", "command"), COMMANDS.items())
def test_who_ends_a_command_is_told_which_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dag_id: str, command: list[str]
) -> None:
    assert run(monkeypatch, Airflow(interrupted), command) == 130
    said = capsys.readouterr()
    lines = (said.out + said.err).splitlines()
    assert f"started {dag_id}, run manual__1: http://airflow/dags/{dag_id}/runs/manual__1" in lines
    assert said.err.endswith(f"run manual__1 of {dag_id} goes on in Airflow\ninterrupted\n")
    assert command[0] == "migrate" or said.out == ""


def test_who_waits_for_a_run_that_nobody_begins_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when the scheduler is dead: the API goes on to answer that the run is queued."""
    monkeypatch.setattr(cli_started, "QUEUED", 0.1)
    monkeypatch.setattr(cli_started, "POLL", 0.05)
    looks = itertools.count()

    assert run(monkeypatch, Airflow(lambda: "queued" if next(looks) < 20 else interrupted()), ["janitor"]) == 130

    told = [line for line in capsys.readouterr().err.splitlines() if "has waited for 0 s to begin" in line]
    assert told == [
        "run manual__1 has waited for 0 s to begin: is Airflow's scheduler at work, and no other run of "
        "hyperflow_janitor?"
    ]


@pytest.mark.parametrize(("dag_id", "command"), COMMANDS.items())
def test_a_run_of_a_paused_dag_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dag_id: str, command: list[str]
) -> None:
    airflow = Airflow(interrupted, paused=True)
    assert run(monkeypatch, airflow, command) in (1, 2)
    said = capsys.readouterr()
    assert f"{dag_id}: paused in Airflow, so a run would wait without a word: un-pause first" in said.out + said.err
    assert airflow.triggered == []
