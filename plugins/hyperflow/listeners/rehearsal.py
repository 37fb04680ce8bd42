"""Pauses a wave again after a rehearsal for which it was un-paused, also when who started that has gone away."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow.listeners import hookimpl
from sqlalchemy import select
from sqlalchemy.orm import object_session

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from sqlalchemy.orm import Session

OVER = ("success", "failed")  # states of a run that is over

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
    """Have the wave's schedule not count by its rehearsal, as the command line has when it is there to the end.

    A run that a person sets to failed is told of at once, and is over only when its last task is. One that somebody has
    started meanwhile in earnest would never begin in a wave that is paused.
    """
    from airflow.models.dag import DagModel

    from hyperflow.plans.wave import PAUSE_AFTER

    session, asked = object_session(dag_run), dag_run.conf
    if session is None or not isinstance(asked, dict) or not (asked.get("dry_run") and asked.get(PAUSE_AFTER)):
        return
    if not dag_run.dag_id.startswith("wave.") or dag_run.state not in OVER:
        return
    with session.no_autoflush:
        waiting = _wanted_run(session, dag_run)
        wave = session.get(DagModel, dag_run.dag_id)
    if waiting is not None:
        log.warning("Hyperflow: %s is not paused after its rehearsal: run %s waits", dag_run.dag_id, waiting)
    elif wave is not None and not wave.is_paused:
        wave.is_paused = True
        log.info("Hyperflow: %s is paused again after its rehearsal %s", dag_run.dag_id, dag_run.run_id)


def _wanted_run(session: Session, rehearsal: DagRun) -> str | None:
    """A run of the same wave that a person has started, and that is not over; None where there is none."""
    from airflow.models.dagrun import DagRun

    from hyperflow.plans.wave import wants_the_wave

    others = select(DagRun.run_id, DagRun.run_type, DagRun.conf).where(
        DagRun.dag_id == rehearsal.dag_id, DagRun.run_id != rehearsal.run_id, DagRun.state.not_in(OVER)
    )
    return next((str(run) for run, kind, conf in session.execute(others) if wants_the_wave(kind, conf)), None)
