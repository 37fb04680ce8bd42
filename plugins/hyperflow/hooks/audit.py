"""Writes what a task does into its run's audit file, and into the task's log, with the entry's number and digest.

Who can write the records' folder can make an audit file and its head anew. The tasks' logs lie in Airflow's own place,
so they tell what was there.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowFailException

from hyperflow.audit.chain import NAME, HeadNotWritten, append
from hyperflow.audit.entry import Entry
from hyperflow.hooks.records import run_folder
from hyperflow.manifest.shown import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow.sdk import Context

    from hyperflow.audit.anchors import Anchor
    from hyperflow.audit.entry import Kind, State
    from hyperflow.vsphere.observed import Change

log = logging.getLogger(__name__)


def audit(
    kind: Kind,
    what: str,
    *,
    state: State = "done",
    by: str | None = None,
    on: str | None = None,
    seconds: float | None = None,
    exit_status: int | None = None,
    said: str | None = None,
    details: Mapping[str, Any] | None = None,
    task: Any = None,
    with_head: bool = False,
) -> Anchor | None:
    """Write an entry of the task that works now; outside of a task there is no run to write it for.

    An entry that cannot be written stops nothing: a rollback must go on when the records' disk is full. The log says
    so, and the run's first task has tried it before anything was changed (:func:`audit_start`).

    :param task: the task instance, where it is not the current context's: a trigger's
    :param with_head: an entry whose head could not be written counts as not written
    :return: number and digest of the entry; None when it was not written
    """
    ti = task if task is not None else _current()
    if ti is None:
        return None
    where = {"task": ti.task_id, "map_index": ti.map_index, "try": ti.try_number}
    if where["map_index"] is None or where["map_index"] < 0:
        del where["map_index"]
    entry = Entry(
        *(kind, what, state, by, on, where, seconds, exit_status, said),
        details=details or {},
    )
    headed = True
    try:
        anchor = append(audit_file(ti.dag_id, ti.run_id), entry)
    except HeadNotWritten as fault:
        log.error("audit: the run's head could not be written: %s", fault)
        anchor, headed = fault.anchor, False
    except OSError as fault:
        log.error("audit: the entry could not be written: %s", fault)
        log.info("audit: no entry: %s", shown(entry.sentence()))
        return None
    log.info("audit: entry %d sha256 %s: %s", anchor.entries, anchor.sha256, shown(entry.sentence()))
    return anchor if headed or not with_head else None


def audit_start(context: Context, what: str, details: Mapping[str, Any]) -> None:
    """Write who started a run and what was asked, before anything is changed.

    :param what: that is started
    :raises AirflowFailException: it cannot be written
    """
    dag_run = cast("Any", context["dag_run"])
    kind = str(getattr(dag_run.run_type, "value", dag_run.run_type))
    by = getattr(dag_run, "triggering_user_name", None)
    file = audit_file(context["dag"].dag_id, str(context["run_id"]))
    if audit("run", f"{what} started", by=by, details={**details, "run_type": kind}, with_head=True) is None:
        raise AirflowFailException(
            f"{file}: the run's audit file cannot be written, so nothing is started; the task's log says why. Make "
            "room there, or let Airflow's user write in [hyperflow] records_folder"
        )


def audit_decision(decision: Mapping[str, Any]) -> None:
    """Write what a person decided: ``{"question", "answer", "by", "at"}``; nobody, when the time was over."""
    audit(
        *("decision", str(decision["question"])),
        by=decision.get("by"),
        details={"answer": decision["answer"], "at": decision.get("at")},
    )


def audit_file(dag_id: str, run_id: str) -> Path:
    """The audit file of a run."""
    return run_folder(dag_id, run_id) / NAME


def observer_of(connection: str, task: Any = None) -> Callable[[Change], None]:
    """Make what writes the changes at a vCenter.

    :param connection: of the vCenter
    :param task: as for :func:`audit`
    """

    def observe(change: Change) -> None:
        details = dict(change.arguments)
        if change.answer is not None:
            details["answer"] = change.answer
        audit(
            *("vsphere", change.method),
            state=change.state,
            on=f"{connection} {change.on}",
            seconds=change.seconds,
            said=change.said,
            details=details,
            task=task,
        )

    return observe


def _current() -> Any:
    try:
        return get_current_context()["ti"]
    except RuntimeError:
        return None
