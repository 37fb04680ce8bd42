"""Pauses a wave again after a rehearsal for which it was un-paused, also when who started that has gone away."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow.listeners import hookimpl
from sqlalchemy.orm import object_session

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun

log = logging.getLogger(__name__)


@hookimpl
def on_dag_run_success(dag_run: DagRun, msg: str) -> None:
    """Pause the wave, where it was to be; the scheduler calls this in the transaction in which it ends the run."""
    pause_again(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: DagRun, msg: str) -> None:
    """Do so."""
    pause_again(dag_run)


def pause_again(dag_run: DagRun) -> None:
    """Have the wave's schedule not count by its rehearsal, as the command line has when it is there to the end."""
    from airflow.models.dag import DagModel

    from hyperflow.plans.wave import PAUSE_AFTER

    session, asked = object_session(dag_run), dag_run.conf
    if session is None or not isinstance(asked, dict) or not (asked.get("dry_run") and asked.get(PAUSE_AFTER)):
        return
    wave = session.get(DagModel, dag_run.dag_id) if dag_run.dag_id.startswith("wave.") else None
    if wave is not None and not wave.is_paused:
        wave.is_paused = True
        log.info("Hyperflow: %s is paused again after its rehearsal %s", dag_run.dag_id, dag_run.run_id)
