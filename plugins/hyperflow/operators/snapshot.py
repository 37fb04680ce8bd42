"""The one thing a migration creates at the source, and its removal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from hyperflow.hooks.vsphere import VsphereHook
from hyperflow.manifest.shown import shown
from hyperflow.operators.base import VmOperator, run_key, safe
from hyperflow.operators.ownership import owner_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.vsphere.session import Session
    from hyperflow.vsphere.snapshot import Ownership


class SourceOperator(VmOperator):
    """A task that works at the vCenter."""

    def perform(self, context: Context) -> Any:
        """Log in and do the work; vCenter's errors decide whether it is tried again."""
        from hyperflow.vsphere.errors import VsphereError

        started = datetime.now(UTC)
        try:
            with VsphereHook(self.settings.vcenter_connection).session() as session:
                return self.keep_result(context, self.work(session, context), started)
        except VsphereError as fault:
            raise (AirflowException if fault.temporary else AirflowFailException)(str(fault)) from fault

    def work(self, session: Session, context: Context) -> dict[str, Any]:
        """Do the task's work at the vCenter."""
        raise NotImplementedError


class CreateSnapshotOperator(SourceOperator):
    """Takes the snapshot that the export reads from.

    Returns ``{"entity": MoRef to export, "snapshot": name or None, "quiesced": bool, "warnings": [...]}``. A VM that
    is off and of which no snapshot can be taken is exported itself.
    """

    def work(self, session: Session, context: Context) -> dict[str, Any]:
        """Take the snapshot; one that an earlier try of this run left is used."""
        from hyperflow.vsphere.errors import TaskFailed
        from hyperflow.vsphere.snapshot import create_snapshot, find_snapshots

        moref = self.facts.moref
        name, ownership = snapshot_record(context)
        # Said before it is done: whoever finds the snapshot can tell whose it is, also when this task dies now.
        self.log.info("taking snapshot %s of %s (%s): %s", name, shown(self.facts.name), moref, ownership.description())
        for found in find_snapshots(session, moref, name):
            if ownership.owns(found):
                self.log.info("found it already there, from an earlier try: %s", found.moref)
                return {"entity": found.moref, "snapshot": name, "quiesced": None, "warnings": []}
        self.note(context, name)
        try:
            created = create_snapshot(
                session,
                moref,
                name=name,
                description=ownership.description(),
                on_progress=lambda percent: self.log.info("snapshot: %d %%", percent),
            )
        except TaskFailed as fault:
            if self.facts.power_state != "poweredOff":
                raise
            warning = f"no snapshot could be taken ({fault}); the VM is off, so it is exported itself"
            self.log.warning(shown(warning))
            return {"entity": moref, "snapshot": None, "quiesced": True, "warnings": [warning]}
        for warning in created.warnings:
            self.log.warning(shown(warning))
        return {
            "entity": created.moref,
            "snapshot": name,
            "quiesced": created.quiesced,
            "warnings": list(created.warnings),
        }


    def note(self, context: Context, name: str) -> None:
        """Have the host's ledger name the snapshot before it is there."""
        connection, moref = self.settings.vcenter_connection, self.facts.moref
        facts = {"vcenter": connection, "vm": moref, "vm_name": self.facts.name, "name": name}
        entry = {"kind": "snapshot", "thing": f"{connection}/{moref}/{name}", "facts": facts}
        with self.host.connected() as client:
            self.host.ensure_program(client)
            request = {"owner": owner_of(context), "entries": [entry]}
            self.host.ledger(client, "add", "--run", run_key(context), request=request)


class RemoveSnapshotOperator(SourceOperator):
    """Removes this run's snapshots and reads back that none is left; a teardown.

    Returns ``{"removed": [MoRef], "left": [], "warnings": [...]}``.
    """

    def work(self, session: Session, context: Context) -> dict[str, Any]:
        """Remove what this run created, whoever recorded it."""
        return remove_own_snapshots(session, self.facts.moref, context)


def remove_own_snapshots(session: Session, moref: str, context: Context) -> dict[str, Any]:
    """Remove every snapshot that this run made of a VM and read back which are left."""
    from hyperflow.vsphere.snapshot import find_snapshots, remove_owned_snapshots

    name, ownership = snapshot_record(context)
    removed = remove_owned_snapshots(session, moref, name=name, ownership=ownership)
    left = [each.moref for each in find_snapshots(session, moref, name) if ownership.owns(each)]
    if left:
        raise AirflowException(f"snapshots {', '.join(left)} of {moref} are still there after their removal")
    return {
        "removed": [each.moref for each in removed if each.existed],
        "left": left,
        "warnings": [warning for each in removed for warning in each.warnings],
    }


def snapshot_record(context: Context) -> tuple[str, Ownership]:
    """Name and ownership of this run's snapshot: the same whenever they are asked for, so that it is always found."""
    from hyperflow.vsphere.snapshot import Ownership, snapshot_name

    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return snapshot_name(safe(context["run_id"])), Ownership(**owner_of(context), created=created)
