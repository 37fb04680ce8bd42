"""What counts as done for a wave: a proven copy, or a machine that has moved, as the plan asks for it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hyperflow.hooks.records import STATE, state_of
from hyperflow.operators import cutover_record, proven, report
from hyperflow.operators.cutover_record import put
from hyperflow.operators.proven import forget_proven, proven_run, remember_proven, tell_state
from hyperflow.plans.cutover import COLD, LIVE_COPY
from hyperflow.plans.load import load_plan
from hyperflow.plans.slug import Selector
from hyperflow.plans.subject import subject

SLUG = "web01.example.org"
DAG = f"migrate.autumn.{SLUG}"
SUMMARY = {"outcome": "migrated", "dag_id": DAG, "run_id": "copy", "slug": SLUG}
RECORD: dict[str, Any] = {
    **dict.fromkeys(("vcenter", "moref", "vm", "power", "host", "domain", "uuid", "root"), "x"),
    "name": "web01",
    "run": "move",
    "nics": [],
}
PLAN = """
plan: autumn
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms: [{name: web01}, {name: web02, cutover: {strategy: cold}}]
"""


class Variables(dict[str, str]):
    """Airflow's variables."""

    def read(self, key: str, default: Any = None, deserialize_json: bool = False) -> Any:
        if key not in self:
            return default
        return json.loads(self[key]) if deserialize_json else self[key]

    def set(self, key: str, value: Any, description: str | None = None, serialize_json: bool = False) -> None:
        self[key] = json.dumps(value) if serialize_json else value


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Variables:
    kept = Variables()
    as_airflow = SimpleNamespace(get=kept.read, set=kept.set, delete=kept.pop)
    for module in (cutover_record, proven):
        monkeypatch.setattr(module, "Variable", as_airflow)
    return kept


def test_a_copy_that_was_proven_is_not_the_cold_cutover_that_the_plan_asks_for(variables: Variables) -> None:
    remember_proven(DAG, "copy", SUMMARY)
    assert proven_run(DAG) == proven_run(DAG, LIVE_COPY)
    assert (proven_run(DAG)[0] or {})["run_id"] == "copy"
    assert proven_run(DAG, COLD) == (None, None)


def test_the_tag_tells_where_the_vm_stands_whatever_a_run_that_was_refused_came_to(
    variables: Variables, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__RECORDS_FOLDER", str(tmp_path))
    assert state_of(DAG) == "planned"
    tell_state(DAG, "failed")
    assert state_of(DAG) == "failed"
    remember_proven(DAG, "copy", SUMMARY)
    tell_state(DAG, "failed")  # a second run, which the first one's claim refused
    assert state_of(DAG) == "migrated"
    for phase, state in (("cut over", "cut-over"), ("finalized", "finalized")):
        put(DAG, {**RECORD, "phase": phase})
        tell_state(DAG, "failed")
        assert state_of(DAG) == state
    put(DAG, {**RECORD, "phase": "rolled back"})
    forget_proven(DAG)
    tell_state(DAG, "rolled back")
    assert state_of(DAG) == "rolled-back"


def test_a_tag_that_cannot_be_kept_fails_nothing_and_one_that_was_scribbled_on_is_none(
    variables: Variables, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__RECORDS_FOLDER", str(tmp_path))
    (tmp_path / DAG).mkdir()
    (tmp_path / DAG / STATE).write_bytes(b"cut-over\x00<script>" * 9)
    assert state_of(DAG) == "planned"
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__RECORDS_FOLDER", "/dev/null")
    tell_state(DAG, "failed")
    assert f"the tag of {DAG} could not be brought up to date" in caplog.text


@pytest.mark.parametrize(
    ("phase", "done"),
    [
        ("source off", False),
        ("target started", False),
        ("cut over", True),
        ("finalizing", True),
        ("finalized", True),
        ("rolling back", False),
        ("rolled back", False),
    ],
)
@pytest.mark.parametrize("remembered", ["move", "copy", None])
def test_a_cold_cutover_is_done_when_the_target_is_the_machine(
    variables: Variables, phase: str, done: bool, remembered: str | None
) -> None:
    put(DAG, {**RECORD, "phase": phase})
    if remembered:
        remember_proven(DAG, remembered, {**SUMMARY, "run_id": remembered, "bytes": 7}, COLD)
    found, _ = proven_run(DAG, COLD)
    assert (found is not None) == done
    if found is not None:
        assert (found["run_id"], found["summary"]["run_id"], found["summary"]["slug"]) == ("move", "move", SLUG)
        assert found["summary"].get("bytes") == (7 if remembered == "move" else None)


def test_a_record_that_somebody_has_changed_does_not_count_as_done(variables: Variables) -> None:
    variables[cutover_record.key_of(DAG)] = '"what a person wrote"'
    remember_proven(DAG, "move", SUMMARY, COLD)
    found, why = proven_run(DAG, COLD)
    assert (found, "is not the record of a cutover" in str(why)) == (None, True)


def test_what_is_forgotten_is_gone(variables: Variables) -> None:
    put(DAG, {**RECORD, "phase": "rolled back"})
    remember_proven(DAG, "move", SUMMARY, COLD)
    forget_proven(DAG)
    assert proven_run(DAG) == (None, None)


AS_PLANNED = subject("vc", "DC1", Selector("inventory_path", "/DC1/vm/web01"), "kvm01")


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({}, None),
        ({"vcenter": "vc2"}, "vcenter was vc and is vc2"),
        ({"datacenter": "DC2"}, "datacenter was DC1 and is DC2"),
        ({"datacenter": ""}, None),
        ({"selector": "name 'web01'"}, None),
        ({"selector": "name 'web02'"}, "selector was inventory_path '/DC1/vm/web01' and is name 'web02'"),
        ({"selector": "inventory_path '/DC2/vm/web01'"}, "selector was inventory_path '/DC1/vm/web01' and is"),
        ({"host": "kvm02"}, "host was kvm01 and is kvm02"),
    ],
)
def test_a_proof_counts_for_what_it_is_a_proof_of_and_else_it_is_said_why_not(
    variables: Variables, now: dict[str, str], told: str | None
) -> None:
    """The plan was edited for the next site: its DAGs have the ids that they had."""
    remember_proven(DAG, "copy", SUMMARY, subject=AS_PLANNED)
    found, why = proven_run(DAG, subject={**AS_PLANNED, **now})
    assert (found is None) == (told is not None)
    assert (why or "").partition(" than the plan means now: ")[2].startswith(told or "")
    assert (why is None) == (told is None)


@pytest.mark.parametrize(
    ("now", "done"),
    [
        *(({}, True), ({"host": "kvm02"}, True), ({"selector": "name 'web01'"}, True)),
        *(({"vcenter": "vc2"}, False), ({"selector": "name 'web02'"}, False)),
    ],
)
def test_a_cutover_counts_for_the_vm_that_it_moved_wherever_that_is_now(
    variables: Variables, now: dict[str, str], done: bool
) -> None:
    put(DAG, {**RECORD, **AS_PLANNED, "phase": "cut over"})
    found, why = proven_run(DAG, COLD, {**AS_PLANNED, **now})
    assert (found is not None, "run move has cut over another VM" in str(why)) == (done, not done)


@pytest.mark.parametrize("strategy", [LIVE_COPY, COLD])
def test_what_an_older_version_has_remembered_counts_as_it_did(variables: Variables, strategy: str) -> None:
    remember_proven(DAG, "move", SUMMARY, strategy)
    put(DAG, {**RECORD, "vcenter": "vc", "phase": "cut over"})
    assert proven_run(DAG, strategy, AS_PLANNED)[0] is not None


def test_the_plan_says_how_a_vm_is_cut_over(tmp_path: Path) -> None:
    (tmp_path / "autumn.yaml").write_text(PLAN)
    plan = load_plan(tmp_path / "autumn.yaml")
    assert [plan.vm(slug).strategy for slug in ("web01", "web02")] == [LIVE_COPY, COLD]


@pytest.mark.parametrize("strategy", [LIVE_COPY, COLD])
def test_a_report_remembers_how_its_run_cut_the_vm_over(
    variables: Variables, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    summary = SimpleNamespace(to_document=lambda: SUMMARY)
    monkeypatch.setattr("hyperflow.manifest.wave_report.summarise_run", lambda *_, **__: summary)
    monkeypatch.setattr(report, "tell_arrival", lambda *_: None)
    made = report.WriteReportOperator(
        task_id="report", plan="autumn", plan_file="", slug=SLUG, selector="", vcenter="", host_connection="kvm01"
    )
    of = SimpleNamespace(
        vcenter_connection="vc", datacenter="DC1", selector=Selector("inventory_path", "/DC1/vm/web01")
    )
    made.settings = SimpleNamespace(cutover=SimpleNamespace(strategy=strategy), **vars(of))  # type: ignore[assignment]
    ti = SimpleNamespace(
        xcom_push=lambda **_: None, xcom_pull=lambda **_: None, get_task_breadcrumbs=lambda **_: iter(())
    )
    context: Any = {"ti": ti, "dag": SimpleNamespace(dag_id=DAG), "run_id": "copy"}
    told: Any = SimpleNamespace(summary=SimpleNamespace(outcome="proven"), errors=[])
    made.tell(context, told, {"host": None, "path": ""})
    kept = json.loads(variables["hyperflow_proven_" + DAG])
    assert (kept["strategy"], kept["subject"]) == (strategy, AS_PLANNED)
