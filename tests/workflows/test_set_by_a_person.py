"""What Airflow does with a whole run whose state a person sets: its own code, on a database of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import own_airflow

ROOT = Path(__file__).resolve().parents[2]
PLAN = """
plan: autumn
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms:
  - name: web01
    cutover: {strategy: cold}
waves: [{name: first, members: [web01]}]
"""
# What the API's PATCH of a run does, and then what the scheduler does, task by task, as far as states go.
RUN = """
import json, sys
from datetime import UTC, datetime
from airflow.api_fastapi.core_api.datamodels.dag_run import DagRunMutableStates
from airflow.api_fastapi.core_api.services.public.dag_run import patch_dag_run_state
from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
from airflow.models.dagbag import DBDagBag
from airflow.models.dagbundle import DagBundleModel
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunTriggeredByType, DagRunType

dags = sys.argv[1]
with create_session() as session:
    session.merge(DagBundleModel(name="dags-folder"))
sync_bag_to_db(DagBag(dags, bundle_path=dags, bundle_name="dags-folder"), "dags-folder", None)


def play(session, wanted, at_work, name="migrate.autumn.web01", done=("preflight", "shutdown", "snapshot")):
    dag = DBDagBag().get_latest_version_of_dag(name, session=session)
    now = datetime.now(UTC)
    run = dag.create_dagrun(
        run_id=wanted, run_after=now, start_date=now, run_type=DagRunType.MANUAL, state=DagRunState.RUNNING,
        triggered_by=DagRunTriggeredByType.TEST, session=session,
    )
    tasks = lambda: {ti.task_id: ti for ti in run.get_task_instances(session=session)}
    for task_id in done:
        tasks()[task_id].set_state("success", session=session)
    for task_id in at_work:
        tasks()[task_id].set_state("deferred", session=session)
    session.flush()
    patch_dag_run_state(dag=dag, dag_run=run, state=DagRunMutableStates(wanted), session=session)
    after = {name: ti.state for name, ti in tasks().items()}
    ran = []
    while True:
        run.dag = dag
        schedulable, _callback = run.update_state(session=session)
        if not schedulable:
            return {"after": after, "ran": ran, "run": run.state}
        for ti in schedulable:
            ran.append(ti.task_id)
            ti.set_state("failed" if ti.task_id == "report" else "success", session=session)
        session.flush()


with create_session() as session:
    told = {
        "failed": play(session, "failed", ["export"]),
        "success": play(session, "success", []),
        "wave": play(session, "failed", ["vms.web01"], "wave.autumn.first", ["check"]),
    }
print("ANSWER", json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of two runs of a cold cutover, by the state that a person set after the snapshot was taken.

    ``{"after": task states at once, "ran": tasks that still ran, "run": its state at last}`` each. The first is set to
    failed while it exports, the second to success when no task is at work; the report of either fails.
    """
    home = tmp_path_factory.mktemp("airflow")
    (home / "plans").mkdir()
    (home / "plans/autumn.yaml").write_text(PLAN)
    (home / "run.py").write_text(RUN)
    environment = own_airflow.make(home, AIRFLOW__HYPERFLOW__PLANS_FOLDER=str(home / "plans"))
    output = own_airflow.run(home / "run.py", environment, str(ROOT / "dags"))
    answers = [line for line in output.splitlines() if line.startswith("ANSWER ")]
    assert answers, output[-5000:]
    answer: dict[str, Any] = json.loads(answers[0].removeprefix("ANSWER "))
    return answer


CLOSED = ["remove_snapshot", "rollback", "cleanup", "report"]


def test_a_run_that_is_set_to_failed_is_rolled_back_cleaned_up_and_reported_and_ends_as_failed(
    told: dict[str, Any],
) -> None:
    run = told["failed"]
    assert (run["after"]["export"], run["after"]["convert"]) == ("failed", "skipped")
    assert (run["ran"], run["run"]) == (CLOSED, "failed")


def test_a_run_that_is_set_to_success_between_two_tasks_is_closed_too_and_is_what_its_report_says(
    told: dict[str, Any],
) -> None:
    run = told["success"]
    assert set(run["after"].values()) == {"success", "skipped", None}
    assert (run["ran"], run["run"]) == (CLOSED, "failed")


def test_a_wave_that_is_set_to_failed_is_reported_too(told: dict[str, Any]) -> None:
    run = told["wave"]
    assert (run["after"]["vms.web01"], run["ran"], run["run"]) == ("failed", ["report"], "failed")
