"""Who a run is, as Hyperflow signs what it creates: which Airflow, which DAG, which run."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hyperflow.hooks.records import safe

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.vsphere.snapshot import Ownership

INSTANCE_VARIABLE = "hyperflow_instance"
FIRST_WAIT = 1.0  # seconds, once in an Airflow's life, in which another first task's name may still replace ours


def instance() -> str:
    """Name this Airflow: a UUID that is made once and kept among its variables, beside its runs.

    Two Airflows may share a vCenter or a host. Only the one that has a run's record can tell whether the run is dead,
    so what another one signed is never touched. An Airflow that loses its database becomes another one.
    """
    from airflow.sdk import Variable

    known = Variable.get(INSTANCE_VARIABLE, default=None)
    if known is None:
        Variable.set(INSTANCE_VARIABLE, str(uuid.uuid4()), description="Who Hyperflow is; signs what it creates")
        time.sleep(FIRST_WAIT)
        known = Variable.get(INSTANCE_VARIABLE)  # of two tasks that are the first at once, one has won
    return str(known)


def owner_of(context: Context) -> dict[str, str]:
    """Give the owner that entries of the ledger carry."""
    return {"airflow": instance(), "dag": context["dag"].dag_id, "run": str(context["run_id"])}


def snapshot_record(context: Context) -> tuple[str, Ownership]:
    """Name and ownership of this run's snapshot: the same whenever they are asked for, so that it is always found."""
    from hyperflow.vsphere.snapshot import Ownership, snapshot_name

    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return snapshot_name(safe(context["run_id"])), Ownership(**owner_of(context), created=created)
