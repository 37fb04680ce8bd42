"""When a wave begins, and which of its VMs wait for a person or for each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError, AirflowSkipException, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse
from hyperflow.operators import wave_check, wave_vm
from hyperflow.operators.kept_plan import kept_plans
from hyperflow.operators.wave import telling
from hyperflow.operators.wave_check import CheckWaveOperator
from hyperflow.operators.wave_vm import GO_ON, STOP, decision_on
from hyperflow.plans.load import load_plan
from hyperflow.plans.plan import Plan
from hyperflow.plans.survey import Survey, SurveyedVm, write_survey
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


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the first task of a wave leaves whose window is open for two hours yet: by key.

    Of 100 MB/s, which a run of d has measured, a takes five hours and b one minute; the plan says what c takes.
    """
    now = datetime.now(UTC)
    window = f'window: {{start: "{now - timedelta(hours=1):%H:%M}", end: "{now + timedelta(hours=2):%H:%M}"}}'
    text = PLAN.replace('window: {days: [sat], start: "22:00", end: "04:00"}', window)
    text = text.replace('schedule: {cron: "0 22 * * sat"}', "on_failure: ask")
    (tmp_path / "move.yaml").write_text(text.replace("{name: c}", "{name: c, expected_minutes: 60}"))
    seen = {
        slug: SurveyedVm(name=slug, inventory_path=f"/dc/vm/{slug}", host=None, power_state="on", capacity_bytes=size)
        for slug, size in (("a", 5 * 3600 * 10**8), ("b", 60 * 10**8), ("c", 5 * 3600 * 10**8))
    }
    write_survey(tmp_path / "move.yaml", "move", Survey(vms=seen))
    run = {"run_id": "r", "summary": {"bytes": 10**10, "seconds": 100}}
    monkeypatch.setattr(wave_check, "audit_start", lambda *_: None)
    monkeypatch.setattr(
        wave_check, "proven_run", lambda dag_id, **_: (run if dag_id == "migrate.move.d" else None, None)
    )
    left: dict[str, Any] = {"plan": load_plan(tmp_path / "move.yaml")}
    task = CheckWaveOperator(task_id="check", plan_file=str(tmp_path / "move.yaml"), wave="saturday")
    ti = SimpleNamespace(xcom_push=lambda key, value: left.update({key: value}))
    dag_run = SimpleNamespace(run_type="manual", logical_date=None, run_after=now, conf={}, start_date=now)
    dag = SimpleNamespace(dag_id="wave.move.saturday")
    task.check({"ti": ti, "dag_run": dag_run, "dag": dag, "run_id": "r"})  # type: ignore[typeddict-item, arg-type]
    return left


@pytest.mark.parametrize(
    ("slug", "reason"),
    [
        ("a", "it is expected to take 300 minutes by its size, which expected_minutes in the plan may correct"),
        ("b", None),
    ],
)
def test_a_vm_of_which_the_plan_tells_no_minutes_is_not_started_when_its_size_does_not_fit_into_the_window(
    night: dict[str, Any], slug: str, reason: str | None
) -> None:
    task: Any = build_wave(night["plan"], night["plan"].wave("saturday")).get_task(f"vms.{slug}")
    context = {"ti": SimpleNamespace(xcom_pull=lambda key, **_: night[key])}
    with pytest.raises(AirflowSkipException, match=reason) if reason else nullcontext():
        task.refuse_outside_window(context)


def test_what_the_plan_says_of_a_vm_is_not_told_by_its_size(night: dict[str, Any]) -> None:
    assert night["expected"] == {"a": 300, "b": 1}


def test_a_wave_keeps_its_plan_from_its_first_task_on(night: dict[str, Any]) -> None:
    (kept,) = kept_plans(night["plan"].path.parent)
    assert (kept.dag, kept.original) == ("wave.move.saturday", night["plan"].path)


def test_a_copy_that_was_proven_does_not_keep_a_cold_cutover_from_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "move.yaml").write_text(PLAN.replace("{name: a}", "{name: a, cutover: {strategy: cold}}"))
    plan = load_plan(tmp_path / "move.yaml")
    dag = build_wave(plan, plan.wave("saturday"))
    copied = {"run_id": "r", "summary": {"outcome": "migrated"}}
    monkeypatch.setattr(wave_vm, "cutover_of", lambda _: None)
    monkeypatch.setattr(
        wave_vm, "proven_run", lambda _, strategy, __: (copied if strategy == "live-copy" else None, None)
    )
    context = {"dag_run": SimpleNamespace(conf={}), "ti": SimpleNamespace(xcom_push=lambda **_: None)}
    tasks: list[Any] = [dag.get_task(f"vms.{slug}") for slug in "ab"]
    assert [task.proven_already(context) is not None for task in tasks] == [False, True]


def test_a_task_that_is_tried_again_after_its_vms_run_has_proven_the_vm_goes_on_with_that_run(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the wave's report would say that it was done already, as if the wave had not moved it."""
    task = build_wave(plan, plan.wave("saturday")).get_task("vms.a")
    assert isinstance(task, wave_vm.MigrateVmOperator)
    proven = {"run_id": "manual.saturday.1", "summary": {"outcome": "migrated"}}
    monkeypatch.setattr(wave_vm, "proven_run", lambda *_: (proven, None))
    monkeypatch.setattr(wave_vm, "cutover_of", lambda dag_id: None)
    monkeypatch.setattr(task, "states", lambda context: {"check": "success"})
    monkeypatch.setattr(task, "start", lambda context: "goes on")
    ti = SimpleNamespace(task_id="vms.a", xcom_push=lambda key, value: None, xcom_pull=lambda **_: ["a"])
    context: Any = {"dag_run": SimpleNamespace(conf={}), "ti": ti}

    monkeypatch.setattr(task, "run_of_an_earlier_try", lambda context: "manual.saturday.1")
    assert task.begin(context) == "goes on"

    monkeypatch.setattr(task, "run_of_an_earlier_try", lambda context: None)
    found = task.begin(context)
    assert isinstance(found, dict)
    assert found["outcome"] == "already done", "that is what another wave finds"


@pytest.mark.parametrize(
    ("fault", "key", "told"),
    [
        (AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR)), "failure", "API_SERVER_ERROR"),
        (OSError("no space left"), "failure", "no space left"),
        (AirflowSkipException("not started: c failed"), "skipped", "not started: c failed"),
    ],
)
def test_whatever_ends_a_task_of_a_wave_is_told_in_its_report(fault: Exception, key: str, told: str) -> None:
    left: dict[str, Any] = {}
    ti = SimpleNamespace(task_id="vms.a", xcom_push=lambda key, value: left.update({key: value}))

    def work() -> None:
        raise fault

    with pytest.raises(type(fault)):
        telling({"ti": ti}, work)  # type: ignore[typeddict-item]
    assert list(left) == [key]
    assert told in str(left[key])


def start_asked(
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    conf: dict[str, Any],
    proven: Callable[..., Any] = lambda *_, **__: (None, None),
) -> dict[str, Any]:
    """Have a wave's first task look at what its run was asked for; what the audit gets of it."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(wave_check, "audit_start", lambda context, what, details: told.update(details))
    monkeypatch.setattr(wave_check, "heed_limits", lambda *_: [])
    monkeypatch.setattr(wave_check, "proven_run", proven)
    monkeypatch.setattr(CheckWaveOperator, "opening", lambda *_: None)
    task = CheckWaveOperator(task_id="check", plan_file=str(plan.path), wave="saturday")
    ti = SimpleNamespace(task_id="check", xcom_push=lambda key, value: None)
    dag = SimpleNamespace(dag_id="wave.move.saturday")
    context: Any = {"ti": ti, "dag_run": SimpleNamespace(conf=conf), "dag": dag, "run_id": "r"}
    task.execute(context)
    return told


def test_the_audit_tells_what_a_wave_was_asked_for_under_one_key(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    told = start_asked(plan, monkeypatch, {"again": True, "skip_boot": True, "dry_run": False})
    assert told == {"plan": "move", "members": ["a", "b", "c", "d"], "asked": ["again", "skip_boot"]}


@pytest.mark.parametrize(
    ("conf", "told"),
    [
        ({"dryrun": True}, r"dag_run.conf: dryrun: found an unknown key, expected dry_run \(did you mean that\?\)"),
        ({"dry_run": "false"}, r'dag_run.conf: dry_run: found "false", expected true or false'),
        ({"run_type": "scheduled", "plan": "other"}, "plan: found an unknown key"),
    ],
)
def test_a_wave_that_was_asked_for_what_it_does_not_know_starts_nothing(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, conf: dict[str, Any], told: str
) -> None:
    """A rehearsal that was mistyped would move the VMs."""
    with pytest.raises(AirflowFailException, match=told):
        start_asked(plan, monkeypatch, conf)


def test_who_approves_a_wave_sees_which_earlier_proof_does_not_count(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}
    run = {"run_id": "r", "summary": {}}
    looked = {"migrate.move.a": (None, "host was kvm02 and is kvm01"), "migrate.move.b": (run, None)}
    monkeypatch.setattr(CheckWaveOperator, "question", lambda *_, **given: told.update(given) or "")
    start_asked(plan, monkeypatch, {}, lambda dag_id, **_: looked.get(dag_id, (None, None)))
    assert told == {"done": ["b"], "notes": ["a counts as not migrated: host was kvm02 and is kvm01"]}
