"""What a person does after a cutover: take it back, or make it final."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from hyperflow.hooks.audit import audit_start
from hyperflow.manifest.shown import shown
from hyperflow.operators.base import keep_failure
from hyperflow.operators.claim import claim, release
from hyperflow.operators.cutover_record import CUT_OVER, FINALIZED, FINALIZING, cutover_of, put
from hyperflow.operators.proven import tell_state
from hyperflow.operators.rollback import roll_back
from hyperflow.operators.source import at_vcenter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context


class AftermathOperator(BaseOperator):
    """A task on a VM whose cutover is on record.

    :param vm_dag: the VM's DAG (``migrate.PLAN.SLUG``); templated
    """

    template_fields: Sequence[str] = ("vm_dag",)
    ui_color = "#fdf0d0"

    def __init__(self, *, vm_dag: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vm_dag = vm_dag

    def execute(self, context: Context) -> Any:
        """Do the work with the VM for this run alone, and keep why it failed."""
        try:
            record = self.record()
            told = {"dag": self.vm_dag, "phase": record["phase"], **self.said()}
            audit_start(context, f"{self.task_id} of {record['name']}", told)
            claim(context, record["vm"], record["name"])
            try:
                return self.work(context, self.record())  # another run may have written it until the VM was claimed
            finally:
                release(context, record["vm"])
        except AirflowException as fault:
            keep_failure(context, self.task_id, fault)
            raise

    def record(self) -> dict[str, Any]:
        """The cutover on record.

        :raises AirflowFailException: there is none, or it is final
        """
        record = cutover_of(self.vm_dag)
        if record is None:
            raise AirflowFailException(
                f"vm: found no cutover of {self.vm_dag!r}, expected the DAG of a VM that was moved with "
                "cutover.strategy: cold, as migrate.PLAN.VM"
            )
        if record["phase"] == FINALIZED:
            raise AirflowFailException(f"{record['name']} was finalized at {record['at']}: that is not taken back")
        return record

    def said(self) -> dict[str, Any]:
        """What else the person has said, for the audit."""
        return {}

    def work(self, context: Context, record: dict[str, Any]) -> Any:
        """Do it."""
        raise NotImplementedError


class RollBackLaterOperator(AftermathOperator):
    """Rolls a cutover back that a person does not want any more; see :func:`roll_back`.

    :param target_is_off: a person says that the target runs nowhere; templated
    """

    template_fields: Sequence[str] = (*AftermathOperator.template_fields, "target_is_off")

    def __init__(self, *, target_is_off: Any = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target_is_off = target_is_off

    def said(self) -> dict[str, Any]:
        """Whether the person has waived the guard against two machines with one address."""
        return {"target_is_off": self.target_is_off is True}

    def work(self, context: Context, record: dict[str, Any]) -> dict[str, Any]:
        """Roll back."""
        if record["phase"] == FINALIZING and name_now(record) != record["name"]:
            raise AirflowFailException(
                f"{record['name']}: a finalize was begun at {record['at']} and not ended, and the source is renamed "
                "already: that is not taken back. Run ./hyperflow finalize again"
            )
        return roll_back(self, context, self.vm_dag, record, target_is_off=self.target_is_off is True)


class FinalizeOperator(AftermathOperator):
    """Renames and marks the source of a cutover that stays; it is never deleted. No rollback is possible afterwards."""

    def work(self, context: Context, record: dict[str, Any]) -> dict[str, Any]:
        """Rename and mark; what becomes of the source is a person's affair from here on."""
        from hyperflow.vsphere.finalize import finalize, name_after
        from hyperflow.vsphere.power import OFF, power_state

        if record["phase"] not in (CUT_OVER, FINALIZING):
            raise AirflowFailException(
                f"{record['name']}: its cutover is at {record['phase']!r}, expected {CUT_OVER!r}"
            )
        with at_vcenter(record["vcenter"]) as session:
            state = power_state(session, record["moref"])
            if state != OFF:
                raise AirflowFailException(f"{record['name']} is {state}, expected poweredOff: its target runs too")
            name = name_after(record["name"], "-migrated")
            put(self.vm_dag, {**record, "phase": FINALIZING})
            done = finalize(session, record["moref"], name, f"migrated by {self.vm_dag}, run {record['run']}")
        put(self.vm_dag, {**record, "phase": FINALIZED})
        tell_state(self.vm_dag, FINALIZED)
        self.log.info("%s is %s now, and marked; it is not deleted", shown(record["name"]), shown(name))
        return {"name": name, "changed": list(done.changed)}


def name_now(record: dict[str, Any]) -> str:
    """What the source of a cutover is called at this moment; the rename is the first thing that a finalize changes."""
    from hyperflow.vsphere.inventory import read_vm

    with at_vcenter(record["vcenter"]) as session:
        return read_vm(session, record["moref"]).name
