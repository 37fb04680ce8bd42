"""What the task of a wave that moves a VM does when it is tried again or cleared, and after a run that drifted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskAwaitingInput, TaskDeferred
from hyperflow.operators import decisions, wave_vm
from hyperflow.plans.load import load_plan
from hyperflow.workflows.wave import build_wave

PLAN = """
plan: move
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
drift: start-over
vms: [{name: a}, {name: b}, {name: c}]
waves:
  - {name: saturday, members: ["*"], after: {b: [a]}, apart: [[b, c]], on_failure: stop}
"""
FIRST, SECOND = "r.saturday.1", "r.saturday.2"
DRIFTED = {"outcome": "failed", "drifted": True, "errors": [{"stage": "snapshot", "message": "it drifted"}]}
BROKEN = {"outcome": "failed", "errors": [{"stage": "boot", "message": "it does not come up"}]}


class Store(dict[str, Any]):
    """What Airflow keeps of a task over its tries."""

    set = dict.__setitem__


class Night:
    """A run of the wave before the task of b.

    :ivar runs: states of VMs' runs: (slug, run) -> state
    :ivar left: XComs: (task, key) -> value
    :ivar started: runs that were started
    """

    def __init__(self, folder: Path, **states: str) -> None:
        (folder / "move.yaml").write_text(PLAN)
        plan = load_plan(folder / "move.yaml")
        self.task: Any = build_wave(plan, plan.wave("saturday")).get_task("vms.b")
        self.states = {"check": "success", **{f"vms.{slug}": state for slug, state in states.items()}}
        self.runs: dict[tuple[str, str], str] = {}
        self.left: dict[tuple[str, str], Any] = {("check", "return_value"): ["a", "b", "c"]}
        self.store = Store()
        self.max_tries = 3
        self.started: list[str] = []

    def context(self) -> Any:
        """What Airflow hands to the task."""
        ti = SimpleNamespace(
            task_id="vms.b",
            max_tries=self.max_tries,
            get_task_states=lambda **_: {"r": self.states},
            get_dr_count=self.count,
            id=None,
            get_dag=lambda _: SimpleNamespace(is_paused=False),
            xcom_pull=lambda *, task_ids, key="return_value", **_: self.left.get((task_ids, key)),
            xcom_push=lambda key, value: self.left.update({("vms.b", key): value}),
        )
        dag, run = SimpleNamespace(dag_id="wave.move.saturday"), SimpleNamespace(conf={})
        return {"ti": ti, "run_id": "r", "dag": dag, "dag_run": run, "task_state_store": self.store}

    def count(self, *, dag_id: str, run_ids: list[str] | None = None, states: list[str] | None = None) -> int:
        """Count runs of a VM's DAG."""
        slug = dag_id.rpartition(".")[2]
        return sum(
            of == slug and (run_ids is None or run in run_ids) and (states is None or state in states)
            for (of, run), state in self.runs.items()
        )

    def ran(self, run: str, state: str, summary: dict[str, Any]) -> None:
        """Have a run of b end before, which the task had started."""
        self.runs["b", run] = state
        self.left["report", "summary"] = {"dag_id": "migrate.move.b", "run_id": run, "slug": "b", **summary}
        self.store.update(run=run, started=run.rpartition(".")[2])

    def go_on(self, run: str) -> Any:
        """Have the task go on at the end of a run of b."""
        return self.task.execute_complete(self.context(), ("", {"run_ids": [run], run: self.runs["b", run]}))


@pytest.fixture(autouse=True)
def no_vcenter(monkeypatch: pytest.MonkeyPatch) -> None:
    """No VM was moved before, and runs are started at once."""
    monkeypatch.setattr(wave_vm, "cutover_of", lambda _: None)
    monkeypatch.setattr(wave_vm, "proven_run", lambda *_: (None, None))


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    made = Night(tmp_path, a="success", b="running")

    def start_run(dag_id: str, run_id: str, conf: Any) -> None:
        made.started.append(run_id)
        made.runs[dag_id.rpartition(".")[2], run_id] = "queued"

    monkeypatch.setattr(wave_vm, "start_run", start_run)
    return made


@pytest.mark.parametrize("state", ["running", "success"])
@pytest.mark.parametrize("what", ["vms.a", "check"])
def test_a_vm_whose_run_works_or_is_done_is_gone_on_with_whatever_became_of_those_before_it(
    night: Night, state: str, what: str
) -> None:
    """Its task was cleared with another one's, after the wave's time: a was not started then, or nobody was."""
    night.states[what] = "skipped"
    night.ran(FIRST, state, {"outcome": "migrated"})
    with pytest.raises(TaskDeferred) as deferred:
        night.task.execute(night.context())
    assert deferred.value.trigger.run_ids == [FIRST]
    assert night.started == []


def test_a_vm_that_was_proven_before_is_done_though_one_that_it_comes_after_is_not(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven = {"run_id": "earlier", "summary": {"outcome": "migrated"}}
    monkeypatch.setattr(wave_vm, "proven_run", lambda *_: (proven, None))
    night.states["vms.a"] = "skipped"
    assert night.task.execute(night.context())["outcome"] == "already done"


def test_a_vm_without_a_run_waits_for_those_before_it(night: Night) -> None:
    night.states["vms.a"] = "skipped"
    with pytest.raises(AirflowSkipException, match="it comes after a, which did not arrive"):
        night.task.execute(night.context())


@pytest.mark.parametrize("conf", [{}, {"dry_run": True}])
def test_a_vm_that_came_to_the_wave_after_it_was_approved_is_not_started_on_that_approval(
    night: Night, conf: dict[str, bool]
) -> None:
    night.left["check", "return_value"] = ["a", "c"]
    context = night.context()
    context["dag_run"].conf = conf
    with pytest.raises(AirflowSkipException, match="it came to the wave after that had begun"):
        night.task.execute(context)
    assert night.started == []


def test_a_vm_that_drifted_is_started_over(night: Night) -> None:
    night.ran(FIRST, "failed", DRIFTED)
    with pytest.raises(TaskDeferred):
        night.go_on(FIRST)
    assert night.started == [SECOND]


@pytest.mark.parametrize("why", ["another one works that it takes turns with", "the wave stops at a failure"])
def test_a_vm_that_drifted_is_not_started_over_where_it_would_not_be_started(night: Night, why: str) -> None:
    if why.startswith("another"):
        night.runs["c", "somebody's"] = "running"
    else:
        night.states["vms.c"] = "failed"
    night.ran(FIRST, "failed", DRIFTED)
    with pytest.raises(AirflowFailException, match=f"run {FIRST} of migrate.move.b failed: snapshot: it drifted"):
        night.go_on(FIRST)
    assert night.started == []


@pytest.mark.parametrize(("answer", "started"), [("Go on", [SECOND]), ("Stop", [])])
def test_a_vm_that_drifted_after_another_failed_is_started_over_as_a_person_decides(
    night: Night, monkeypatch: pytest.MonkeyPatch, answer: str, started: list[str]
) -> None:
    night.task.on_failure = "ask"
    night.states["vms.c"] = "failed"
    monkeypatch.setattr(wave_vm, "upsert_hitl_detail", lambda **_: None)
    monkeypatch.setattr(decisions, "audit_decision", lambda _: None)
    night.ran(FIRST, "failed", DRIFTED)
    with pytest.raises(TaskAwaitingInput) as asked:
        night.go_on(FIRST)
    with pytest.raises(TaskDeferred) as waits:
        night.task.decided(night.context(), {"chosen_options": [answer]}, **(asked.value.kwargs or {}))
    assert waits.value.trigger.run_ids == [FIRST]
    with pytest.raises(TaskDeferred if started else AirflowFailException):
        night.go_on(FIRST)
    assert night.started == started


def test_a_failure_that_was_about_to_be_told_is_told_by_a_try_after_a_crash_and_a_clear_starts_another_run(
    night: Night,
) -> None:
    night.ran(FIRST, "failed", BROKEN)
    with pytest.raises(AirflowFailException, match="it does not come up"):
        night.go_on(FIRST)

    with pytest.raises(TaskDeferred) as again:  # the process was killed as it failed, and nobody has asked for more
        night.task.execute(night.context())
    assert (again.value.trigger.run_ids, night.started) == ([FIRST], [])

    night.max_tries += 1  # a person clears it
    with pytest.raises(TaskDeferred):
        night.task.execute(night.context())
    assert night.started == [SECOND]


def test_what_an_older_version_has_told_counts_as_told(night: Night) -> None:
    night.ran(FIRST, "failed", BROKEN)
    night.store["told"] = FIRST
    with pytest.raises(TaskDeferred):
        night.task.execute(night.context())
    assert night.started == [SECOND]


def test_a_vm_is_started_over_once_also_when_the_task_is_killed_before_its_run_is_started(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    night.ran(FIRST, "failed", DRIFTED)
    with monkeypatch.context() as killed:
        killed.setattr(night.task, "next_run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            night.go_on(FIRST)
    with pytest.raises(TaskDeferred):
        night.task.execute(night.context())
    assert night.started == [SECOND]
    night.ran(SECOND, "failed", DRIFTED)
    with pytest.raises(AirflowFailException, match="it drifted"):
        night.go_on(SECOND)


@pytest.mark.parametrize(
    ("selector", "done"), [("name 'b'", True), ("inventory_path '/DC2/vm/b'", True), ("name 'c'", False)]
)
@pytest.mark.parametrize("conf", [{}, {"again": True}])
def test_a_vm_that_was_cut_over_is_done_where_it_is_the_one_that_the_plan_means_now(
    night: Night, monkeypatch: pytest.MonkeyPatch, selector: str, done: bool, conf: dict[str, bool]
) -> None:
    record = {"run": "earlier", "phase": "finalized", "name": "b", "vcenter": "vc", "selector": selector}
    monkeypatch.setattr(wave_vm, "cutover_of", lambda _: record)
    context = night.context()
    context["dag_run"].conf = conf
    if done:
        assert night.task.execute(context)["outcome"] == "already done"
        return
    with pytest.raises(TaskDeferred):
        night.task.execute(context)
    assert night.started == [FIRST]


def answer(night: Night, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    """Have alice answer what the task asks, as another VM has failed, and its process be killed after that."""
    monkeypatch.setattr(decisions, "audit_decision", lambda _: None)
    night.task.on_failure = "ask"
    night.states["vms.c"] = "failed"
    event = {"chosen_options": [chosen], "responded_by_user": {"id": "alice"}}
    with pytest.raises(TaskDeferred if chosen == "Go on" else AirflowSkipException):
        night.task.decided(night.context(), event, ["c"])
    for key in [key for key in night.left if key[0] == "vms.b"]:  # as Airflow does before another try
        del night.left[key]


def test_what_was_decided_is_told_and_counts_after_a_task_was_tried_again(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the wave's report would not tell it, and others would ask about the same failure again."""
    answer(night, monkeypatch, "Go on")
    with pytest.raises(TaskDeferred):
        night.task.execute(night.context())
    (told,) = night.left["vms.b", "decisions"]
    assert (told["answer"], told["of"], told["by"]) == ("Go on", ["c"], "alice")
    decisions.keep_decision(night.context(), {"question": "And now?", "answer": "Stop"})
    assert [one["answer"] for one in night.left["vms.b", "decisions"]] == ["Go on", "Stop"]


def test_who_clears_a_task_after_a_stop_is_asked_anew(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(night, monkeypatch, "Stop")
    night.max_tries += 1
    monkeypatch.setattr(wave_vm, "upsert_hitl_detail", lambda **_: None)
    with pytest.raises(TaskAwaitingInput):
        night.task.execute(night.context())
    assert ("vms.b", "decisions") not in night.left
