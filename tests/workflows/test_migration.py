"""DAGs from plans: one per VM, the same for the same plan, and good ones whatever the bad ones are."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.serialization.serialized_objects import DagSerialization
from hyperflow.operators.approval import AskOperator
from hyperflow.operators.base import CLOSING
from hyperflow.operators.preflight import plan_location
from hyperflow.operators.retries import WaitForHost
from hyperflow.plans.load import load_plan
from hyperflow.plans.migration import effective
from hyperflow.plans.overrides import parse_overrides
from hyperflow.workflows.migration import build_dag, left_by

ROOT = Path(__file__).resolve().parents[2]
DAGS = ROOT / "dags"
GOOD = """
plan: autumn
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms:
  - name: web01
  - name: db01
    limits: {parallel_disks: 3}
"""
BAD = GOOD.replace("autumn", "spring").replace("vms:", "vmz:")


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "plans"
    folder.mkdir()
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__PLANS_FOLDER", str(folder))
    return folder


def load() -> DagBag:
    return DagBag(str(DAGS), bundle_path=DAGS, bundle_name="dags-folder")


def serialized(bag: DagBag) -> dict[str, object]:
    return {dag_id: DagSerialization.to_dict(dag) for dag_id, dag in bag.dags.items()}


def one(plans: Path, dag_id: str) -> DAG:
    (plans / "autumn.yaml").write_text(GOOD)
    return load().dags[dag_id]


def test_each_vm_of_a_plan_has_its_dag(plans: Path) -> None:
    (plans / "autumn.yaml").write_text(GOOD)
    bag = load()
    assert bag.import_errors == {}
    assert {name for name in bag.dags if name.startswith("migrate.")} == {"migrate.autumn.web01", "migrate.autumn.db01"}


def test_plans_may_lie_in_an_object_store(plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plans / "autumn.yaml").write_text(GOOD)
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__PLANS_FOLDER", f"file://{plans}")
    bag = load()
    assert bag.import_errors == {}
    plan_file = bag.dags["migrate.autumn.web01"].get_task("preflight").plan_file
    assert load_plan(plan_location(plan_file)).name == "autumn"


def test_a_bad_plan_takes_only_its_own_dags_and_says_why(plans: Path) -> None:
    (plans / "autumn.yaml").write_text(GOOD)
    (plans / "spring.yaml").write_text(BAD)
    bag = load()
    assert "migrate.autumn.web01" in bag.dags
    assert not any("spring" in dag_id for dag_id in bag.dags)
    (error,) = bag.import_errors.values()
    assert "spring.yaml" in error
    assert "vmz" in error
    assert "did you mean" in error


def test_the_same_plan_gives_the_same_dags_again(plans: Path) -> None:
    (plans / "autumn.yaml").write_text(GOOD)
    assert serialized(load()) == serialized(load())


def test_a_task_that_starts_builds_its_own_dag_only(plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plans / "autumn.yaml").write_text(GOOD)
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "migrate.autumn.db01")
    assert [name for name in load().dags if name.startswith("migrate.")] == ["migrate.autumn.db01"]


def test_the_stages_run_in_the_order_of_the_design(plans: Path) -> None:
    order = [task.task_id for task in one(plans, "migrate.autumn.web01").topological_sort()]
    stages = ["preflight", "snapshot", "export", "manifest", "checksum", "inspect", "fix", "convert", "validate"]
    assert [name for name in order if name != "remove_snapshot"] == [*stages, "boot", "define", "cleanup", "report"]


def test_what_is_asked_of_the_guest_is_told_from_what_inspect_and_fix_have_found(plans: Path) -> None:
    (plans / "autumn.yaml").write_text(GOOD + "  - name: cold\n    cutover: {strategy: cold}\n")
    dag = load().dags["migrate.autumn.cold"]
    for task in ("boot", "start"):
        assert (dag.get_task(task).guest, dag.get_task(task).fix) == (left_by("inspect"), left_by("fix"))
        assert {"guest", "fix"} <= set(dag.get_task(task).template_fields)


def test_export_checksum_and_convert_run_once_per_disk_within_the_plans_limit(plans: Path) -> None:
    dag = one(plans, "migrate.autumn.db01")
    mapped = {task.task_id: task for task in dag.tasks if isinstance(task, MappedOperator)}
    assert set(mapped) == {"export", "checksum", "convert"}
    assert {task.partial_kwargs["max_active_tis_per_dagrun"] for task in mapped.values()} == {3}


def test_the_snapshot_is_removed_by_a_teardown_that_can_fail_the_run(plans: Path) -> None:
    remove = one(plans, "migrate.autumn.web01").get_task("remove_snapshot")
    assert remove.is_teardown
    assert remove.on_failure_fail_dagrun
    assert "snapshot" in remove.upstream_task_ids


@pytest.mark.parametrize("dag_id", ["migrate.autumn.web01", "migrate.autumn.cold", "convert_manifest"])
def test_what_closes_a_run_runs_also_when_a_person_sets_the_state_of_the_whole_run(plans: Path, dag_id: str) -> None:
    """Airflow skips every task but teardowns then; and the report's failure is the run's."""
    (plans / "autumn.yaml").write_text(GOOD + "  - name: cold\n    cutover: {strategy: cold}\n")
    tasks = load().dags[dag_id].task_dict
    closing = [tasks[name] for name in CLOSING if name in tasks]
    assert {"cleanup", "report"} <= {task.task_id for task in closing}
    assert ("rollback" in tasks) == dag_id.endswith("cold")
    assert all(task.is_teardown and task.on_failure_fail_dagrun for task in closing)
    assert [name for name, task in tasks.items() if not task.downstream_task_ids] == ["report"]


COLD = """
cutover: {strategy: cold, approval: {timeout_minutes: 30}}
vms:
  - name: both
  - {name: shutdown, cutover: {approval: {at: [shutdown], on_timeout: approve}}}
  - {name: start, cutover: {approval: {at: [start], on_timeout: reject}, on_shutdown_timeout: ask}}
  - {name: either, cutover: {approval: {at: [start, shutdown]}}}
"""


def cold(folder: Path) -> dict[str, DAG]:
    """The DAGs of cold cutovers, by the slug of the VM."""
    (folder / "autumn.yaml").write_text(GOOD.partition("\nvms:")[0] + COLD)
    plan = load_plan(folder / "autumn.yaml")
    return {vm.slug: build_dag(plan, vm) for vm in plan.vms}


def test_a_cutover_asks_before_those_of_its_steps_that_the_plan_names_and_before_both_when_it_names_none(
    tmp_path: Path,
) -> None:
    asking = {
        slug: {task.task_id: task.downstream_task_ids for task in dag.tasks if isinstance(task, AskOperator)}
        for slug, dag in cold(tmp_path).items()
    }
    both = {"approve_shutdown": {"shutdown"}, "approve_start": {"disconnect"}}
    assert asking == {
        "both": both,
        "shutdown": {"approve_shutdown": {"shutdown"}},
        "start": {"approve_start": {"disconnect"}},
        "either": both,
    }


def test_steps_that_nobody_is_asked_before_follow_each_other_as_ever(tmp_path: Path) -> None:
    dags = cold(tmp_path)
    assert dags["start"].get_task("shutdown").upstream_task_ids == {"preflight"}
    assert dags["shutdown"].get_task("disconnect").upstream_task_ids == {"define"}


@pytest.mark.parametrize(
    ("slug", "task_id", "answer"),
    [
        ("both", "approve_shutdown", "Reject"),
        ("both", "approve_start", "Reject"),
        ("shutdown", "approve_shutdown", "Approve"),
        ("start", "approve_start", "Reject"),
    ],
)
def test_nobodys_answer_in_a_cutover_is_what_its_plan_says(
    tmp_path: Path, slug: str, task_id: str, answer: str
) -> None:
    task = cold(tmp_path)[slug].get_task(task_id)
    assert (task.defaults, task.response_timeout) == ([answer], timedelta(minutes=30))


@pytest.mark.parametrize("dag_id", ["migrate.autumn.web01", "convert_manifest"])
def test_every_task_but_preflight_waits_long_for_a_host_that_is_away(plans: Path, dag_id: str) -> None:
    tasks = one(plans, dag_id).task_dict
    assert [name for name, task in tasks.items() if not isinstance(task.retry_policy, WaitForHost)] == ["preflight"]


def test_the_form_shows_what_the_plan_says_and_sending_it_back_changes_nothing(plans: Path) -> None:
    params = one(plans, "migrate.autumn.web01").params.dump()
    assert params == {
        "host_connection": "kvm01",
        "output_directory": "/srv/images",
        "output_format": "qcow2",
        "compress": False,
        "skip_boot": False,
        "not_after": None,
        "dry_run": False,
    }
    plan = load_plan(plans / "autumn.yaml")
    vm = plan.vm("web01")
    assert effective(plan, vm, parse_overrides(params)) == effective(plan, vm)


def test_a_plan_that_disappears_takes_its_dags_with_it(plans: Path) -> None:
    (plans / "autumn.yaml").write_text(GOOD)
    assert load().dags
    shutil.rmtree(plans)
    plans.mkdir()
    assert not [dag_id for dag_id in load().dags if dag_id.startswith("migrate.")]
