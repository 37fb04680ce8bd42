"""What the scheduler tells at a run's begin and end, with Airflow's own models and the plugin that it loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import own_airflow

WAVE, VM, OTHER = "wave.autumn.first", "migrate.autumn.web01", "somebody_elses"
# Runs as (DAG, conf, how it ends); what the scheduler does with one, in its own transaction.
PROGRAM = """
import json, sys
from airflow.listeners.listener import get_listener_manager
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.pool import Pool
from airflow.utils import timezone
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunTriggeredByType, DagRunType

home, dags = sys.argv[1], json.loads(sys.argv[2])
with create_session() as session:
    session.add(DagBundleModel(name="here"))
    session.add(Pool(pool="hyperflow_nfc_vc", slots=8, include_deferred=True))
    session.add(Pool(pool="theirs", slots=1, include_deferred=False))
    session.flush()
    for dag_id, _, _ in dags:
        session.add(DagModel(dag_id=dag_id, bundle_name="here", is_paused=False))
for dag_id, conf, end in dags:
    with create_session() as session:
        now = timezone.utcnow()
        for number, (kind, asked) in enumerate(json.loads(sys.argv[3])):
            session.add(DagRun(dag_id=dag_id, run_id=f"waits__{number}", run_after=now, conf=asked,
                               run_type=DagRunType(kind), state=DagRunState.QUEUED,
                               triggered_by=DagRunTriggeredByType.REST_API))
        run = DagRun(dag_id=dag_id, run_id="manual__1", run_after=now, conf=conf, run_type=DagRunType.MANUAL,
                     state=DagRunState.RUNNING, start_date=now, triggered_by=DagRunTriggeredByType.REST_API)
        session.add(run)
        session.flush()
        run.notify_dagrun_state_changed(msg="started")
        if end == "set to failed":  # by a person: its last task goes on
            get_listener_manager().hook.on_dag_run_failed(dag_run=run, msg=end)
            continue
        run.state = DagRunState(end)
        run.notify_dagrun_state_changed(msg=end)
with create_session() as session:
    print("PAUSED", json.dumps(sorted(one.dag_id for one in session.query(DagModel).filter(DagModel.is_paused))))
"""


def told(
    home: Path, *dags: tuple[str, dict[str, Any], str], waiting: Sequence[tuple[str, dict[str, Any]]] = ()
) -> list[str]:
    """Have an Airflow begin and end a run of each DAG; which of these are paused then.

    :param waiting: types and confs of runs that wait for it
    """
    (home / "program.py").write_text(PROGRAM)
    environment = own_airflow.make(home)
    output = own_airflow.run(home / "program.py", environment, str(home), json.dumps(dags), json.dumps(waiting))
    lines = [line for line in output.splitlines() if line.startswith("PAUSED ")]
    assert lines, output[-3000:]
    paused = json.loads(lines[0].removeprefix("PAUSED "))
    assert isinstance(paused, list)
    return paused


def test_a_run_that_begins_finds_the_pools_of_plans_in_the_records(tmp_path: Path) -> None:
    told(tmp_path, (VM, {}, "failed"))
    kept = json.loads((tmp_path / "hyperflow/.pools.json").read_text())
    assert kept["pools"] == {"hyperflow_nfc_vc": {"slots": 8, "include_deferred": True}}


def test_runs_of_other_dags_are_nothing_to_it(tmp_path: Path) -> None:
    assert told(tmp_path, (OTHER, {"dry_run": True, "pause_after": True}, "success")) == []
    assert not (tmp_path / "hyperflow").exists()


@pytest.mark.parametrize("end", ["success", "failed"])
def test_a_wave_that_was_paused_before_its_rehearsal_is_paused_when_that_is_over(tmp_path: Path, end: str) -> None:
    rehearsed: tuple[str, dict[str, Any], str] = (WAVE, {"dry_run": True, "pause_after": True}, end)
    assert told(tmp_path, rehearsed, ("wave.autumn.second", {"dry_run": True}, end), (VM, {}, end)) == [WAVE]


@pytest.mark.parametrize(
    ("end", "waiting", "paused"),
    [
        ("success", ("manual", {}), []),
        ("success", ("scheduled", {}), [WAVE]),
        ("success", ("manual", {"dry_run": True, "pause_after": True}), [WAVE]),
        ("set to failed", ("scheduled", {}), []),
    ],
)
def test_a_wave_is_not_paused_under_a_run_that_a_person_has_started_nor_before_the_rehearsal_is_over(
    tmp_path: Path, end: str, waiting: tuple[str, dict[str, Any]], paused: list[str]
) -> None:
    assert told(tmp_path, (WAVE, {"dry_run": True, "pause_after": True}, end), waiting=[waiting]) == paused
