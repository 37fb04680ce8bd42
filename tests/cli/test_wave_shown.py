"""A run as the terminal shows it: cut to its height while it works, whole at the end."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hyperflow.cli import migrate, wave
from hyperflow.cli.airflow_api import Refused, TaskInstance
from hyperflow.plans.load import load_plan
from rich.console import Console

VMS = [f"w{number:02}" for number in range(30)]
PLAN = f"""
plan: move
vcenter: {{connection: vc}}
profile: kvm-migration
host: {{connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}}
vms: [{", ".join(f"{{name: {vm}}}" for vm in VMS)}]
waves: [{{name: night, members: ["*"]}}]
"""
AT_WORK = {"w27": "running", "w28": "failed", "w29": "skipped"}
START = "2026-11-24T00:00:00Z"


def task(name: str, state: str | None) -> TaskInstance:
    return TaskInstance(name, -1, "", state, 1, 1.0, START if state else None)


class Airflow:
    """A run that works at the first look and is over at the second; ``states`` of its tasks at each."""

    def __init__(self, *states: dict[str, str | None]) -> None:
        self.states = iter(states)
        self.run_states: Iterator[str] = iter(("running", "success"))

    def run_state(self, *_: Any) -> str:
        return next(self.run_states)

    def task_instances(self, *_: Any) -> list[TaskInstance]:
        return [task(name, state) for name, state in next(self.states).items()]

    def log_lines(self, *_: Any) -> list[str]:
        raise Refused("no log yet")

    def xcom(self, *_: Any) -> None:
        return None


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wave, "POLL", 0)
    monkeypatch.setattr(migrate, "POLL", 0)


def terminal() -> tuple[Console, StringIO]:
    printed = StringIO()
    return Console(file=printed, force_terminal=True, color_system=None, width=80, height=8), printed


def drawings(printed: StringIO) -> list[str]:
    """What was drawn: while it worked, and at the end, each between the movements of the cursor."""
    return [part for part in printed.getvalue().split("\x1b[2K") if "VM" in part or "task" in part]


def test_while_a_wave_works_what_failed_and_what_works_is_shown_first_and_all_is_counted(tmp_path: Path) -> None:
    (tmp_path / "move.yaml").write_text(PLAN)
    chosen = load_plan(tmp_path / "move.yaml").wave("night")
    working: dict[str, str | None] = {f"vms.{vm}": AT_WORK.get(vm, "success" if vm < "w10" else None) for vm in VMS}
    over: dict[str, str | None] = {"check": "success", **dict.fromkeys(working, "success")}
    console, printed = terminal()
    airflow = Airflow({"check": "success", **working}, over)
    wave.follow_wave(airflow, chosen, "r", console)  # type: ignore[arg-type] # plays it
    at_work, end = drawings(printed)
    assert "1 failed, 1 skipped, 10 done, 1 at work, 17 wait" in at_work
    assert at_work.index("w28") < at_work.index("w27")
    assert "w01" not in at_work
    assert [line.split()[0] for line in end.splitlines()[2:32]] == VMS
    assert "30 done" in end


def test_while_a_vm_migrates_the_task_that_works_is_shown_first_and_all_of_them_at_the_end() -> None:
    tasks: dict[str, str | None] = dict.fromkeys(VMS, "success")
    console, printed = terminal()
    airflow = Airflow(tasks | {"w29": "deferred"}, tasks)
    migrate.follow(airflow, "d", "r", console)  # type: ignore[arg-type] # plays it
    at_work, end = drawings(printed)
    assert "29 done, 1 at work" in at_work
    assert at_work.index("w29") < at_work.index("w00")
    assert "w10" not in at_work
    assert all(vm in end for vm in VMS)


def test_a_survey_tells_of_a_vm_that_it_did_not_find_and_draws_no_row_of_what_an_earlier_one_knew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "move.yaml").write_text(PLAN)
    seen = {"host": None, "power_state": "poweredOn", "tags": [], "capacity_bytes": 1, "used_bytes": 1}
    vms = {vm: {"name": vm, "inventory_path": f"/dc/{vm}/{vm}", **seen} for vm in ("w01", "w02")}
    found = {"asked": START, "vms": vms, "missing": {"w01": "not there", "w03": "not there"}}
    monkeypatch.setattr(wave, "run_to_its_end", lambda *_: ("r", "success"))
    api: Any = SimpleNamespace(xcom=lambda dag_id, run_id, task_id, key=None: None if key else found)
    console, printed = terminal()
    assert wave.survey(tmp_path / "move.yaml", api, console) == 1
    told = printed.getvalue()
    assert "/dc/w02" in told and "/dc/w01" not in told
    assert "w01: not there; rules go by what an earlier survey knew of it" in told
    assert "w03: not there; no rule" in told


def test_a_vm_that_was_proven_as_another_one_is_not_shown_as_migrated(tmp_path: Path) -> None:
    (tmp_path / "move.yaml").write_text(PLAN)
    plan = load_plan(tmp_path / "move.yaml")
    subjects = {"w01": None, "w02": {"vcenter": "vc", "host": "kvm01"}, "w03": {"vcenter": "another"}}
    kept = {
        f"hyperflow_proven_migrate.move.{vm}": {"strategy": "live-copy", "summary": {"slug": vm}, "subject": subject}
        for vm, subject in subjects.items()
    }
    api: Any = SimpleNamespace(variables=lambda _: kept)
    assert set(wave.proven_of(api, plan)) == {"w01", "w02"}
