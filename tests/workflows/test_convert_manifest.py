"""The DAG that converts a manifest: built alone, with the stages of a migration and a form a person can fill in."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.definitions.mappedoperator import MappedOperator
from hyperflow.plans.conversion import parse_request
from hyperflow.plans.plan import PlanError

DAGS = Path(__file__).resolve().parents[2] / "dags"


def test_the_dag_is_started_by_hand_only_and_runs_the_stages_in_their_order() -> None:
    bag = DagBag(str(DAGS / "convert_manifest.py"), bundle_path=DAGS, bundle_name="dags-folder")
    assert bag.import_errors == {}
    dag = bag.dags["convert_manifest"]
    assert dag.schedule is None
    order = [task.task_id for task in dag.topological_sort()]
    assert order == [*("preflight", "checksum", "inspect", "fix", "convert", "validate", "cleanup", "report")]
    assert {task.task_id for task in dag.tasks if isinstance(task, MappedOperator)} == {"checksum", "convert"}
    request = parse_request(dag.params.dump())
    assert (request.profile, request.output_format, request.dry_run) == ("kvm-migration", None, False)


def test_what_a_person_asks_is_checked_all_at_once() -> None:
    conf = {"host_connection": "kvm 01", "manifest": "m.json", "output_format": "vmdk", "skip_boot": True}
    with pytest.raises(PlanError) as refused:
        parse_request(conf)
    assert {fault.path for fault in refused.value.faults} == set(conf)
