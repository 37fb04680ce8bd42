"""What tasks that work at the vCenter of the source share."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from hyperflow.hooks.vsphere import VsphereHook
from hyperflow.manifest.shown import shown
from hyperflow.operators.base import VmOperator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.sdk import Context

    from hyperflow.vsphere.facts import VmFacts
    from hyperflow.vsphere.session import Session


class SourceOperator(VmOperator):
    """A task that works at the vCenter."""

    @property
    def vcenter(self) -> VsphereHook:
        """The vCenter of the VM."""
        return VsphereHook(self.settings.vcenter_connection)

    def perform(self, context: Context) -> Any:
        """Log in and do the work."""
        started = datetime.now(UTC)
        try:
            with at_vcenter(self.settings.vcenter_connection) as session:
                return self.keep_result(context, self.work(session, context), started)
        except ValueError as fault:
            raise AirflowFailException(str(fault)) from fault

    def work(self, session: Session, context: Context) -> dict[str, Any]:
        """Do the task's work at the vCenter."""
        raise NotImplementedError


@contextmanager
def at_vcenter(connection: str) -> Iterator[Session]:
    """Log in at a vCenter; its errors decide whether the task is tried again."""
    from hyperflow.vsphere.errors import TaskUnfinished, VsphereError

    try:
        with VsphereHook(connection).session() as session:
            yield session
    except TaskUnfinished as fault:
        limit = f"connection {connection}, task_time_limit in its extra"
        raise AirflowFailException(f"{shown(str(fault))}. Who needs more time sets it: {limit}") from fault
    except VsphereError as fault:
        raise (AirflowException if fault.temporary else AirflowFailException)(shown(str(fault))) from fault


def refuse_switched_on(session: Session, facts: VmFacts, since: str) -> None:
    """Refuse a VM that was on for a while, or is: what it wrote then is not in the copy, or only in a part of it.

    :param since: by the server's clock, when it was seen to be off
    :raises AirflowFailException: saying when it was switched on, and by whom
    """
    from hyperflow.vsphere.power import OFF, power_state
    from hyperflow.vsphere.power_events import switched_on_since

    times = switched_on_since(session, facts.moref, since)
    if not times and (state := power_state(session, facts.moref)) != OFF:
        times = [f"it is {state}"]
    if times:
        raise AirflowFailException(
            f"{facts.name} did not stay off since its shutdown: {'; '.join(times)}. What it wrote then is not in the "
            "copy. Start a new run"
        )
