"""The one thing a migration creates at the source, and its removal."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException

from hyperflow.manifest.shown import shown
from hyperflow.operators.base import PREFLIGHT, SHUTDOWN
from hyperflow.operators.drift import heed_drift
from hyperflow.operators.ownership import snapshot_record
from hyperflow.operators.preflight import STATE_KEY
from hyperflow.operators.source import SourceOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.vsphere.facts import VmFacts
    from hyperflow.vsphere.session import Session

CREATION_LIMIT = 1800.0  # seconds to take a snapshot; the connection's task_time_limit says otherwise
REMOVAL_LIMIT = 7200.0  # seconds to remove one: joining a large delta disk takes hours


class CreateSnapshotOperator(SourceOperator):
    """Takes the snapshot that the export reads from.

    Returns ``{"entity": MoRef to export, "snapshot": name or None, "since": when this began by the server's clock,
    "quiesced": bool, "warnings": [...]}``. A VM that is off and of which no snapshot can be taken is exported itself,
    and must stay off until the last disk is here.
    """

    def work(self, session: Session, context: Context) -> dict[str, Any]:
        """Take the snapshot; one that an earlier try of this run left is used."""
        from hyperflow.vsphere.errors import TaskFailed
        from hyperflow.vsphere.power_events import server_time
        from hyperflow.vsphere.snapshot import create_snapshot, find_snapshots

        moref = self.facts.moref
        cold = self.settings.cutover.strategy == "cold"
        since = server_time(session)
        warnings = heed_drift(self, session, context, since=SHUTDOWN if cold else PREFLIGHT)
        name, ownership = snapshot_record(context)
        # Said before it is done: whoever finds the snapshot can tell whose it is, also when this task dies now.
        self.log.info("taking snapshot %s of %s (%s): %s", name, shown(self.facts.name), moref, ownership.description())
        older = self.seen_before(context, SHUTDOWN if cold else PREFLIGHT)
        for found in find_snapshots(session, moref, name):
            if ownership.owns(found) and found.moref not in older:
                self.log.info("found it already there, from an earlier try: %s", found.moref)
                taken: dict[str, Any] = {"entity": found.moref, "snapshot": name, "quiesced": None, "since": since}
                return {**taken, "warnings": warnings}
        self.note(context, name)
        try:
            created = create_snapshot(
                session,
                moref,
                name=name,
                description=ownership.description(),
                time_limit=self.vcenter.task_time_limit(CREATION_LIMIT),
                on_progress=lambda percent: self.log.info("snapshot: %d %%", percent),
            )
        except TaskFailed as fault:
            if self.facts.power_state != "poweredOff":
                raise
            warning = f"no snapshot could be taken ({fault}); the VM is off, so it is exported itself"
            self.log.warning(shown(warning))
            taken = {"entity": moref, "snapshot": None, "quiesced": True, "since": since}
            return {**taken, "warnings": [*warnings, warning]}
        for warning in created.warnings:
            self.log.warning(shown(warning))
        return {
            "entity": created.moref,
            "snapshot": name,
            "since": since,
            "quiesced": created.quiesced,
            "warnings": [*warnings, *created.warnings],
        }

    def seen_before(self, context: Context, task_id: str) -> set[str]:
        """MoRefs of the snapshots that an earlier task saw, as of a run that was cleared: they hold less than the VM's
        disks do now.
        """
        seen = context["ti"].xcom_pull(task_ids=task_id, key=STATE_KEY, map_indexes=-1)
        return {str(each["moref"]) for each in seen["snapshots"]}

    def note(self, context: Context, name: str) -> None:
        """Have the host's ledger name the snapshot before it is there."""
        connection, moref = self.settings.vcenter_connection, self.facts.moref
        facts = {"vcenter": connection, "vm": moref, "vm_name": self.facts.name, "name": name}
        entry = {"kind": "snapshot", "thing": f"{connection}/{moref}/{name}", "facts": facts}
        self.sign_ledger(context, entry)


class RemoveSnapshotOperator(SourceOperator):
    """Removes this run's snapshots and reads back that none is left; a teardown.

    Returns ``{"removed": [MoRef], "left": [], "warnings": [...]}``; a warning is also what somebody did to the VM
    since preflight.
    """

    works_on_vm = False

    def work(self, session: Session, context: Context) -> dict[str, Any]:
        """Remove what this run created, whoever recorded it."""
        limit = self.vcenter.task_time_limit(REMOVAL_LIMIT)
        removed = remove_own_snapshots(session, self.facts.moref, context, limit)
        for warning in (told := self.changes_meanwhile(session)):
            self.log.warning(warning)
        return {**removed, "warnings": [*removed["warnings"], *told]}

    def changes_meanwhile(self, session: Session) -> list[str]:
        """Tell what somebody did to the VM while it was exported; that it is gone is told with its snapshot."""
        from hyperflow.vsphere.changes import changes
        from hyperflow.vsphere.errors import NotFound
        from hyperflow.vsphere.inventory import read_vm

        try:
            return changes(self.expected(), read_vm(session, self.facts.moref))
        except NotFound:
            return []

    def expected(self) -> VmFacts:
        """The VM as it is to be found: as preflight saw it, but for the power that a cold cutover has taken off."""
        cold = self.settings.cutover.strategy == "cold"
        return replace(self.facts, power_state="poweredOff") if cold else self.facts


def remove_own_snapshots(
    session: Session, moref: str, context: Context, time_limit: float = REMOVAL_LIMIT
) -> dict[str, Any]:
    """Remove every snapshot that this run made of a VM and read back which are left.

    :param time_limit: seconds for each
    """
    from hyperflow.vsphere.errors import NotFound
    from hyperflow.vsphere.snapshot import find_snapshots, remove_owned_snapshots

    name, ownership = snapshot_record(context)
    try:
        removed = remove_owned_snapshots(session, moref, name=name, ownership=ownership, time_limit=time_limit)
        left = [each.moref for each in find_snapshots(session, moref, name) if ownership.owns(each)]
    except NotFound as fault:
        gone = f"{fault}: if it was deleted, its snapshots went with it; if the role on it was taken away, look there"
        return {"removed": [], "left": [], "warnings": [gone]}
    if left:
        raise AirflowException(f"snapshots {', '.join(left)} of {moref} are still there after their removal")
    return {
        "removed": [each.moref for each in removed if each.existed],
        "left": left,
        "warnings": [warning for each in removed for warning in each.warnings],
    }
