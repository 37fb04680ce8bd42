"""Tells the tasks of a run which pools Airflow has: they cannot see them, and wait for ever for one that is missing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow.listeners import hookimpl
from sqlalchemy import select
from sqlalchemy.orm import object_session

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun

OURS = ("migrate.", "wave.")  # ids of DAGs whose tasks wait for pools of plans

log = logging.getLogger(__name__)


@hookimpl
def on_dag_run_running(dag_run: DagRun, msg: str) -> None:
    """Keep the pools as they are when a VM's or a wave's run begins; its first task looks at them.

    The scheduler calls this in the transaction in which it starts the run. So the pools are read in that one too, and
    nothing is written into the database: SQLite has one writer.
    """
    from airflow.models.pool import Pool

    from hyperflow.hooks.records import keep_pools
    from hyperflow.plans.pools import PREFIX

    session = object_session(dag_run)
    if session is None or not dag_run.dag_id.startswith(OURS):
        return
    with session.no_autoflush:
        found = select(Pool.pool, Pool.slots, Pool.include_deferred).where(Pool.pool.startswith(PREFIX))
        rows = session.execute(found.order_by(Pool.pool)).all()
    try:
        keep_pools({str(name): {"slots": slots, "include_deferred": counts} for name, slots, counts in rows})
    except OSError as fault:  # the run says that its pools were not looked at
        log.warning("Hyperflow's runs cannot be told which pools there are: %s", fault)
