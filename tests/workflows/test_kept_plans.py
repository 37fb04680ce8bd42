"""A plan that is deleted or broken while a run of it works: the run's DAG stays until its end, and is the same."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from airflow.serialization.serialized_objects import DagSerialization
from hyperflow.operators.kept_plan import ENDED, FOLDER, GRACE, keep_plan, kept_plans, let_go_of_plan
from hyperflow.workflows.migration import build_dag
from hyperflow.workflows.plan_folder import read_plan_folder

PLAN = """
plan: autumn
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms: [{name: web01}, {name: db01}]
"""
RUN = "migrate.autumn.web01/manual__1"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan of which the DAG of web01 has a run that works."""
    path = tmp_path / "plans" / "autumn.yaml"
    path.parent.mkdir()
    path.write_text(PLAN)
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__PLANS_FOLDER", str(path.parent))
    keep_plan(path, RUN)
    return path


def dags() -> dict[str, object]:
    return {
        vm.dag_id: DagSerialization.to_dict(build_dag(plan, vm)) for plan in read_plan_folder().plans for vm in plan.vms
    }


@pytest.mark.parametrize("what", ["deleted", "broken", "without the VM"])
def test_the_dag_of_a_run_that_works_stays_as_it_was(plan: Path, what: str) -> None:
    before = dags()
    assert set(before) == {"migrate.autumn.web01", "migrate.autumn.db01"}
    if what == "deleted":
        plan.unlink()
    else:
        plan.write_text(PLAN.replace("vms:", "vmz:") if what == "broken" else PLAN.replace("{name: web01}, ", ""))
    after = dags()
    assert after["migrate.autumn.web01"] == before["migrate.autumn.web01"]
    assert ("migrate.autumn.db01" in after) == (what == "without the VM")


def test_the_dag_is_there_until_airflow_has_seen_the_end_and_then_goes_with_its_copy(plan: Path) -> None:
    plan.unlink()
    let_go_of_plan(plan, RUN)
    assert list(dags()) == ["migrate.autumn.web01"]
    ended = plan.parent / FOLDER / RUN / ENDED
    ended.write_text((datetime.now(UTC) - GRACE * 1.1).isoformat())
    assert dags() == {}
    assert not ended.parent.parent.exists()


def test_a_run_that_is_gone_on_with_has_its_copy_for_itself_again(plan: Path) -> None:
    let_go_of_plan(plan, RUN)
    keep_plan(plan, RUN)
    assert not (plan.parent / FOLDER / RUN / ENDED).exists()


def test_a_folder_that_cannot_be_written_keeps_nothing_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = tmp_path / "plans" / "autumn.yaml"
    plan.parent.mkdir()
    plan.write_text(PLAN)
    (plan.parent / FOLDER).write_text("a file where the folder would be")
    keep_plan(plan, RUN)
    let_go_of_plan(plan, RUN)
    assert "do not delete or break it" in caplog.text
    assert list(kept_plans(plan.parent)) == []
