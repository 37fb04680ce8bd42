"""How far the cutover of a VM is, and how its source was: written down before each change, and kept after the run.

The record is a variable of Airflow's, so that a person can still roll back days later, until the plan is finalized. It
is all that says how the source was, so a run never writes over one that somebody may still need: of a VM that is cut
over, or whose cutover was left in its middle. The task that shuts the source down leaves it as an XCom too, for a run
whose variable a person has deleted or changed.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import Variable
from airflow.sdk.exceptions import AirflowFailException

from hyperflow.hooks.records import safe
from hyperflow.manifest.shown import shown
from hyperflow.operators.base import SHUTDOWN, has_run, vm_key

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.vsphere.facts import VmFacts
    from hyperflow.vsphere.session import Session

# Phases, in their order; each in -ing, and the first four, are written before what they say is begun.
SHUTTING_DOWN = "shutting down"
SOURCE_OFF = "source off"
OFF_NETWORK = "source off the network"
TARGET_STARTED = "target started"
CUT_OVER = "cut over"  # the target was well; from here on only a person rolls back
ROLLING_BACK = "rolling back"
ROLLED_BACK = "rolled back"
FINALIZING = "finalizing"  # the source may have its new name already: only finalize goes on from here
FINALIZED = "finalized"
NOT_STARTED = (SHUTTING_DOWN, SOURCE_OFF, OFF_NETWORK)  # of its target
MOVED = (CUT_OVER, FINALIZING, FINALIZED)  # its target is the machine now

RECORD_KEY = "cutover"  # XCom of the shutdown: the record as it was first
START = "start"  # id of the task that starts the target
_TEXTS = ("vcenter", "moref", "name", "vm", "power", "host", "domain", "uuid", "root", "run", "phase", "at")

log = logging.getLogger(__name__)


def begin(context: Context, record: dict[str, Any]) -> None:
    """Write down how the source is before anything of it is changed, and that it is this DAG which has the record."""
    note(context, record)
    context["ti"].xcom_push(key=RECORD_KEY, value=record)
    Variable.set(
        _moved_key(record["vm"]),
        _dag(context),
        description=f"Hyperflow: the DAG that has the record of the cutover of {record['name']}",
    )


def note(context: Context, record: dict[str, Any]) -> None:
    """Write down how far the cutover of this run's VM is, before the next step is taken."""
    put(_dag(context), {**record, "run": str(context["run_id"])})


def record_of_this_run(context: Context) -> dict[str, Any]:
    """What this run has written down; empty when it has nothing yet."""
    try:
        record = cutover_of(_dag(context))
    except AirflowFailException as fault:
        log.warning("%s", fault)
        record = None
    if record is not None:
        return record if record["run"] == str(context["run_id"]) else {}
    ti = context["ti"]
    if ti.task_id != SHUTDOWN and not has_run(context, SHUTDOWN):  # else it has left the record of an earlier round
        return {}
    kept = ti.xcom_pull(task_ids=SHUTDOWN, key=RECORD_KEY, map_indexes=-1)
    if not isinstance(kept, dict):
        return {}
    log.warning(
        "the record of the cutover is gone from %s: it is taken from the shutdown", key_of(context["dag"].dag_id)
    )
    phase = kept["phase"]
    if has_run(context, START):
        phase = TARGET_STARTED if ti.xcom_pull(task_ids=START, map_indexes=-1) is None else CUT_OVER
    at = datetime.now(UTC).isoformat()
    return {**kept, "run": str(context["run_id"]), "phase": phase, "at": at}


def put(dag_id: str, record: dict[str, Any], *, at: str | None = None) -> None:
    """Keep the record of a VM's cutover.

    :param at: of a record that is put back as it was; now for any other
    """
    Variable.set(
        key_of(dag_id),
        {**record, "at": at or datetime.now(UTC).isoformat()},
        description=f"Hyperflow: how far the cutover of {dag_id} is, and how its source was",
        serialize_json=True,
    )


def cutover_of(dag_id: str) -> dict[str, Any] | None:
    """How far the cutover of a VM is, and how its source was; None when there was none.

    :raises AirflowFailException: the variable holds something else
    """
    try:
        found = Variable.get(key_of(dag_id), default=None, deserialize_json=True)
    except ValueError:  # no JSON
        found = ""
    if found is None:
        return None
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("nics"), list)
        or not all(isinstance(found.get(key), str) for key in _TEXTS)
    ):
        raise AirflowFailException(
            f"Airflow's variable {key_of(dag_id)} is not the record of a cutover that Hyperflow has written there"
        )
    return found


def target_stays(record: dict[str, Any]) -> bool:
    """Whether the target of a cutover is the machine now, on or off: it was well, and was not taken back.

    One that a rollback is at work on still is: only that rollback may undefine it.

    :param record: of :func:`cutover_of` or :func:`record_of_this_run`; may be empty
    """
    phase = record.get("phase")
    return phase in MOVED or (phase == ROLLING_BACK and bool(record.get("was_well")))


def is_left_in_its_middle(context: Context) -> bool:
    """Whether this run has begun a cutover that is neither done nor taken back: it was cleared as a whole."""
    return is_in_its_middle(_dag(context), str(context["run_id"]))


def may_run(record: dict[str, Any]) -> bool:
    """Whether the target of a cutover is the machine now, or was left as it is because the source did not come back:
    nobody but a rollback undefines it.

    :param record: of :func:`cutover_of` or :func:`record_of_this_run`; may be empty
    """
    return bool(record) and record["phase"] != ROLLED_BACK


def is_result(dag_id: str, run_id: str) -> bool:
    """Whether the domain that a run defined is the machine now, however that run ended: nobody but a rollback undefines
    it.

    Where the record cannot be read nobody knows, so it is taken for one.
    """
    try:
        record = cutover_of(dag_id)
    except AirflowFailException as fault:
        log.warning("%s", fault)
        return True
    return record is not None and record["run"] == run_id and target_stays(record)


def is_in_its_middle(dag_id: str, run_id: str) -> bool:
    """Whether the cutover of a run is neither done (:func:`is_result`) nor taken back, so that its target may run."""
    try:
        record = cutover_of(dag_id)
    except AirflowFailException as fault:
        log.warning("%s", fault)
        return False
    return record is not None and record["run"] == run_id and may_run(record) and not target_stays(record)


def refuse_moved(context: Context, facts: VmFacts, *, begins: bool) -> None:
    """Refuse a VM that is cut over, or whose cutover was left in its middle: a new run would take it for one that was
    off and without network before, and start a second target.

    :param begins: this run is about to begin, so its own record of a cutover that was taken back is no run's any more
    :raises AirflowFailException: saying what to do first
    """
    own = _dag(context)
    other = Variable.get(_moved_key(vm_key(facts)), default=None)
    for dag_id in dict.fromkeys([own, *([str(other)] if other else [])]):
        record = cutover_of(dag_id)
        same = record is not None and record["vm"] == vm_key(facts)
        if record is None or (not same and (dag_id != own or record["phase"] == FINALIZED)):
            continue  # the name is another VM's now, or the plan names another VM
        if record["phase"] != ROLLED_BACK:
            raise AirflowFailException(_why_refused(dag_id, record))
    mine = cutover_of(own)
    if begins and mine is not None and (mine["run"], mine["phase"]) == (str(context["run_id"]), ROLLED_BACK):
        put(own, {**mine, "run": ""}, at=mine["at"])


def refuse_marked(session: Session, facts: VmFacts) -> None:
    """Refuse a VM that a cutover has marked at the vCenter: by another Airflow, or this one has forgotten it.

    :raises AirflowFailException: saying what to do first
    """
    from hyperflow.vsphere.mark import ATTRIBUTE, mark_of

    found = mark_of(session, facts.moref)
    if found is not None:
        raise AirflowFailException(
            f"{facts.name} is marked by a cutover that this Airflow does not know (attribute {ATTRIBUTE}: "
            f"{shown(found)}): its target may be the machine now. See there, and roll it back where it was made; when "
            "no target of it is left, clear the attribute in vCenter and start a new run"
        )


def _why_refused(dag_id: str, record: dict[str, Any]) -> str:
    from hyperflow.vsphere.mark import ATTRIBUTE

    name, when = record["name"], f"by run {record['run']} of DAG {dag_id} (last written {record['at']})"
    if record["phase"] == FINALIZED:
        return (
            f"{name} was cut over {when} and finalized: it is moved for good. Who wants to move the source once more "
            f"deletes Airflow's variable {key_of(dag_id)} and clears the VM's attribute {ATTRIBUTE} in vCenter"
        )
    if record["phase"] == FINALIZING:
        return f"{name} was cut over {when}, and is being finalized. Run ./hyperflow finalize for it again"
    if record["phase"] == CUT_OVER:
        return (
            f"{name} was cut over {when}: its target on {record['host']} is the machine now. To move the source once "
            "more, run ./hyperflow rollback for it first"
        )
    return (
        f"{name}: its cutover {when} was left at {record['phase']!r}, so the source is not as it was. Run ./hyperflow "
        "rollback for it first"
    )


def _dag(context: Context) -> str:
    return str(context["dag"].dag_id)


def key_of(dag_id: str) -> str:
    """Name the variable that holds the record of a VM's cutover."""
    return f"hyperflow_cutover_{safe(dag_id)}"


def _moved_key(vm: str) -> str:
    return f"hyperflow_moved_{safe(vm)}"
