"""Which VMs are migrated and proven: remembered by their runs, so that a wave that is run again leaves them alone.

A VM whose plan wants a cold cutover is done when its target is the machine; a copy that was proven before is not that.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.sdk import Variable
from airflow.sdk.exceptions import AirflowFailException

from hyperflow.hooks.records import keep_state, safe
from hyperflow.operators.cutover_record import CUT_OVER, FINALIZED, MOVED, cutover_of
from hyperflow.plans.cutover import COLD, LIVE_COPY
from hyperflow.plans.subject import otherwise

if TYPE_CHECKING:
    from collections.abc import Mapping

SUMMARY_KEY = "summary"  # XCom: VmSummary as JSON, of a VM's run and of a wave's task
PROVEN = "proven"  # outcome of a run whose guest was booted
MIGRATED = "migrated"  # outcome that such a run's summary tells, and a wave's
# What a cutover's record tells of its VM. Not its host: that is where it is now.
OF_RECORD = ("vcenter", "datacenter", "selector")

log = logging.getLogger(__name__)


def remember_proven(
    dag_id: str,
    run_id: str,
    summary: dict[str, Any],
    strategy: str = LIVE_COPY,
    subject: Mapping[str, str] | None = None,
) -> None:
    """Remember that a run proved its VM.

    :param summary: of the run (``VmSummary`` as JSON)
    :param strategy: how the run cut the VM over
    :param subject: what it is a proof of (``plans.subject``)
    """
    Variable.set(
        _key(dag_id),
        {"run_id": run_id, "strategy": strategy, "summary": summary, "subject": subject},
        description=f"Hyperflow: run {run_id} of {dag_id} proved its VM",
        serialize_json=True,
    )


def forget_proven(dag_id: str) -> None:
    """Forget it: the VM is being migrated once more, or was rolled back."""
    if _remembered(dag_id) is not None:
        Variable.delete(_key(dag_id))


def proven_run(
    dag_id: str, strategy: str = LIVE_COPY, subject: Mapping[str, str] | None = None
) -> tuple[dict[str, Any] | None, str | None]:
    """The last run after which the VM is done, ``{"run_id", "summary"}``, None when there is none; and why one does not
    count.

    :param strategy: how the VM's plan wants it to be cut over; with ``cold`` it is the run whose target is the machine
        now, whatever else was proven
    :param subject: what it must be a proof of; one of another VM, or for another host, does not count
    """
    found = _remembered(dag_id)
    if strategy != COLD:
        why = _why_no_proof(found, subject)
        return (None, why) if why else (found, None)
    try:
        record = cutover_of(dag_id)
    except AirflowFailException as fault:
        log.warning("%s", fault)
        return None, str(fault)
    if record is None or record["phase"] not in MOVED:
        return None, None
    if why := why_other(record, subject):
        return None, why
    if found is not None and found["run_id"] == record["run"]:
        return found, None
    known = {"dag_id": dag_id, "run_id": record["run"], "slug": dag_id.split(".", 2)[-1], "name": record["name"]}
    return {"run_id": record["run"], "summary": known}, None  # its report had errors: the target was well all the same


def why_other(record: dict[str, Any], subject: Mapping[str, str] | None) -> str | None:
    """Say why the record of a cutover is not of the VM that a plan means; None where it is.

    :param subject: what it must be of
    """
    other = otherwise({key: record.get(key) for key in OF_RECORD}, subject or {})
    return other and f"run {record['run']} has cut over another VM than the plan means now: {other}"


def _why_no_proof(found: dict[str, Any] | None, subject: Mapping[str, str] | None) -> str | None:
    other = otherwise(found.get("subject"), subject or {}) if found is not None else None
    return other and f"run {(found or {})['run_id']} has proven something else than the plan means now: {other}"


def was_proven_by(dag_id: str, run_id: str) -> bool:
    """Whether it was this run that proved the VM, though it was cleared since: its domain may be in use."""
    found = _remembered(dag_id)
    return found is not None and found["run_id"] == run_id


def tell_state(dag_id: str, outcome: str) -> None:
    """Keep where a VM stands, for the tag by which the list of DAGs is narrowed down.

    A run that was refused changes nothing about a VM that is cut over or was proven, so these count before its outcome.

    :param outcome: of the run, the rollback or the finalize that has just ended
    """
    try:
        record = cutover_of(dag_id)
        if record is not None and record["phase"] in MOVED:
            outcome = FINALIZED if record["phase"] == FINALIZED else CUT_OVER
        elif _remembered(dag_id) is not None:
            outcome = MIGRATED
        keep_state(dag_id, outcome)
    except (AirflowFailException, OSError) as fault:  # a tag is no reason to fail
        log.warning("the tag of %s could not be brought up to date: %s", dag_id, fault)


def _remembered(dag_id: str) -> dict[str, Any] | None:
    found = Variable.get(_key(dag_id), default=None, deserialize_json=True)
    sound = isinstance(found, dict) and isinstance(found.get("run_id"), str) and isinstance(found.get("summary"), dict)
    return found if sound else None


def _key(dag_id: str) -> str:
    return f"hyperflow_proven_{safe(dag_id)}"
