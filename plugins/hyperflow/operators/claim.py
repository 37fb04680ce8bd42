"""One run at a time for one VM, whichever plans name it.

The claim is a variable of Airflow's: it is there where all plans and hosts meet, and a person can look at it. It is
taken by preflight, looked at again by every task, and given back by the last one. A claim of a run that works no more
counts for nothing, so one that was never given back keeps nobody waiting. Of two runs that take it in the same moment
one finds the other's; should both find their own, the later look, before anything is created, tells one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import Variable
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from hyperflow.hooks.records import safe

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.vsphere.facts import VmFacts

ACTIVE = ["queued", "running"]  # states of a run that works


def claim(context: Context, vm: str, name: str) -> None:
    """Take the VM for this run, or see that this run still has it.

    :param vm: the VM for good (``vm_key``)
    :param name: the VM as a person knows it
    :raises AirflowFailException: naming the run that has it
    """
    mine = {"dag": context["dag"].dag_id, "run": str(context["run_id"])}
    holder = Variable.get(_key(vm), default=None, deserialize_json=True)
    if holder == mine:
        return
    if _works(context, holder):
        raise AirflowFailException(
            f"{name} is being migrated already, by run {holder['run']} of DAG {holder['dag']}, and one VM is migrated "
            "once at a time. Wait for the end of that run, or mark it as failed, then start this one again"
        )
    Variable.set(_key(vm), mine, description=f"Hyperflow: the run that migrates {name}", serialize_json=True)
    holder = Variable.get(_key(vm), default=None, deserialize_json=True)
    if holder != mine:
        raise AirflowException(f"{name} was taken by {holder} in the same moment; trying again tells whether it works")


def release(context: Context, vm: str) -> None:
    """Give the VM back, when it is this run that has it."""
    mine = {"dag": context["dag"].dag_id, "run": str(context["run_id"])}
    if Variable.get(_key(vm), default=None, deserialize_json=True) == mine:
        Variable.delete(_key(vm))


def refuse_snapshots_of_others(context: Context, facts: VmFacts) -> None:
    """Refuse a VM that has a snapshot of another run: another Airflow may be at work, whose claims are not seen here.

    :raises AirflowFailException: naming the run
    """
    from hyperflow.vsphere.snapshot import read_ownership

    mine = (context["dag"].dag_id, str(context["run_id"]))
    for snapshot in facts.snapshots:
        owner = read_ownership(snapshot.description)
        if owner is not None and (owner.dag, owner.run) != mine:
            raise AirflowFailException(
                f"{facts.name} has the snapshot {snapshot.name} of run {owner.run} of DAG {owner.dag}. If that run "
                "works, wait for its end. If it is over, ./hyperflow janitor removes what it left; then start again"
            )


def _key(vm: str) -> str:
    return f"hyperflow_vm_{safe(vm)}"


def _works(context: Context, holder: Any) -> bool:
    if not isinstance(holder, dict) or not all(isinstance(holder.get(key), str) for key in ("dag", "run")):
        return False
    ti = cast("Any", context["ti"])
    return bool(ti.get_dr_count(dag_id=holder["dag"], run_ids=[holder["run"]], states=ACTIVE))
