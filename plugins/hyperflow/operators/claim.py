"""One run at a time for one VM, whichever plans name it.

The claim is a variable of Airflow's: it is there where all plans and hosts meet, and a person can look at it. It is
taken by preflight, looked at again by every task, and given back by the last one. A claim of a run that works no more
counts for nothing, so one that was never given back keeps nobody waiting; the janitor removes it.

Airflow writes a variable whatever it holds. So whoever reads a claim and then writes it has a lock meanwhile, a file in
the records' folder, which all workers share: of runs that begin in the same moment, the first has the VM, and the
others find its claim. Were the folder not shared, a later look would tell all but one of them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import Variable
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from hyperflow.audit import locks
from hyperflow.hooks.records import records_folder, safe
from hyperflow.manifest.shown import shown
from hyperflow.operators.ownership import instance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.sdk import Context

    from hyperflow.vsphere.facts import VmFacts

ACTIVE = ["queued", "running"]  # states of a run that works
PREFIX = "hyperflow_vm_"  # of the variables
LOCK_LIMIT = 600.0  # seconds; who has it asks Airflow twice, which may be busy, and each disk's task in its turn
LOCKS = ".claims"  # folder of the locks, below the records; an empty file for each VM stays there


def claim(context: Context, vm: str, name: str) -> None:
    """Take the VM for this run, or see that this run still has it.

    :param vm: the VM for good (``vm_key``)
    :param name: the VM as a person knows it
    :raises AirflowFailException: naming the run that has it
    """
    key, mine = PREFIX + safe(vm), _of(context)
    if _holder(key) == mine:
        return
    with _alone(key):
        holder = _holder(key)
        if holder == mine:  # another disk's task of this run was faster
            return
        if _works(context, holder):
            raise AirflowFailException(
                f"{name} is being migrated already, by run {holder['run']} of DAG {holder['dag']}, and one VM is "
                "migrated once at a time. Wait for the end of that run, or mark it as failed, then start this one again"
            )
        Variable.set(key, mine, description=f"Hyperflow: the run that migrates {name}", serialize_json=True)


def refuse_snapshots_of_others(context: Context, facts: VmFacts) -> None:
    """Refuse a VM that has a snapshot of another run: another Airflow may be at work, whose claims are not seen here.

    :raises AirflowFailException: naming the run
    """
    from hyperflow.vsphere.snapshot import read_ownership

    mine = (context["dag"].dag_id, str(context["run_id"]))
    for snapshot in facts.snapshots:
        owner = read_ownership(snapshot.description)
        if owner is None:
            continue
        is_here = not owner.airflow or owner.airflow == instance()
        if (owner.dag, owner.run) != mine or not is_here:
            where = "" if is_here else f" of another Airflow ({shown(owner.airflow)})"
            raise AirflowFailException(
                f"{facts.name} has the snapshot {snapshot.name} of run {owner.run} of DAG {owner.dag}{where}. If that "
                "run works, wait for its end. If it is over, ./hyperflow janitor removes what it left; then start again"
            )


def release(context: Context, vm: str) -> None:
    """Give the VM back, when it is this run that has it; nobody takes it from a run that works, so without the lock."""
    key = PREFIX + safe(vm)
    if _holder(key) == _of(context):
        Variable.delete(key)


def release_of(key: str, holder: Any) -> None:
    """Remove a claim of a run that works no more, unless another run has taken the VM by now.

    :param key: the variable
    :param holder: what it was seen to hold
    """
    with _alone(key):
        if _holder(key) == holder:
            Variable.delete(key)


def claims() -> dict[str, Any]:
    """List what the claims of this Airflow hold, by the names of their variables; see :func:`is_claim`."""
    held = {key: _holder(key) for key in Variable.keys(PREFIX)}
    return {key: holder for key, holder in held.items() if holder is not None}  # else it was given back just now


def is_claim(holder: Any) -> bool:
    """Whether a variable holds what a run writes there, ``{"dag", "run"}``."""
    return isinstance(holder, dict) and all(isinstance(holder.get(key), str) for key in ("dag", "run"))


@contextlib.contextmanager
def _alone(key: str) -> Iterator[None]:
    """Have a claim for oneself from its reading to its writing.

    :raises AirflowException: another process has it for too long
    """
    folder = records_folder() / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / safe(key)).open("w") as lock:
        if not locks.take(lock.fileno(), LOCK_LIMIT):
            raise AirflowException(
                f"{lock.name}: another task has been at work on this claim for {LOCK_LIMIT:.0f} s; see which (fuser, "
                "on each machine that has the folder), and end it if it hangs"
            )
        yield


def _holder(key: str) -> Any:
    """What a claim holds; None where there is none, or no JSON."""
    return Variable.get(key, default=None, deserialize_json=True)


def _of(context: Context) -> dict[str, str]:
    return {"dag": context["dag"].dag_id, "run": str(context["run_id"])}


def _works(context: Context, holder: Any) -> bool:
    if not is_claim(holder):
        return False
    ti = cast("Any", context["ti"])
    return bool(ti.get_dr_count(dag_id=holder["dag"], run_ids=[holder["run"]], states=ACTIVE))
