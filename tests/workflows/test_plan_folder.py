"""What a DAG file reads: every good plan for the DAG processor, one VM of one plan for a task that starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.serialization.serialized_objects import DagSerialization
from hyperflow.workflows.migration import build_dag
from hyperflow.workflows.plan_folder import PlanFolder, read_plan_folder, read_plan_of

PLAN = """
{key}: {name}
vcenter: {{connection: vc}}
profile: kvm-migration
host: {{connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}}
networks: {{"*": default}}
vms: [{{name: web01}}, {{name: {other}}}]
"""
DAG_ID = "migrate.autumn.web01"


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__PLANS_FOLDER", str(tmp_path))
    (tmp_path / "any-name.yaml").write_text(PLAN.format(key="plan", name="autumn  # of 2026", other="db01"))
    (tmp_path / "winter.yaml").write_text(PLAN.format(key="plan", name="winter", other="autumn").replace("web01", "w"))
    return tmp_path


def dag_ids(folder: PlanFolder) -> list[str]:
    return [vm.dag_id for plan in folder.plans for vm in plan.vms]


def test_a_task_reads_its_own_vm_and_gets_the_dag_that_the_processor_has(plans: Path) -> None:
    (plans / "broken.yaml").write_text("plan: [")  # read by the processor only
    own = read_plan_of(DAG_ID)
    assert (dag_ids(own), own.faults) == ([DAG_ID], [])
    everything = read_plan_folder()
    assert DAG_ID in dag_ids(everything)
    assert everything.faults
    (plan,) = (one for one in everything.plans if one.name == "autumn")
    dags = [build_dag(one, next(vm for vm in one.vms if vm.dag_id == DAG_ID)) for one in (own.plans[0], plan)]
    assert DagSerialization.to_dict(dags[0]) == DagSerialization.to_dict(dags[1])


@pytest.mark.parametrize("dag_id", ["migrate.autumn.gone", "migrate.nobody.web01", "hyperflow_janitor", "migrate", ""])
def test_for_what_no_plan_has_every_plan_is_read(plans: Path, dag_id: str) -> None:
    assert dag_ids(read_plan_of(dag_id)) == dag_ids(read_plan_folder())


def test_a_plan_in_another_notation_is_found_all_the_same(plans: Path) -> None:
    (plans / "any-name.yaml").write_text(PLAN.format(key='"plan"', name="autumn", other="db01"))
    assert DAG_ID in dag_ids(read_plan_of(DAG_ID))


def test_two_plans_of_one_name_are_judged_together(plans: Path) -> None:
    (plans / "again.yaml").write_text(PLAN.format(key="plan", name="autumn", other="db02"))
    assert dag_ids(read_plan_of(DAG_ID)) == dag_ids(read_plan_folder())
