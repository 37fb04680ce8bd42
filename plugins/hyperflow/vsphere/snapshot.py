"""Snapshots that a migration makes of its source: created, found again, and removed; nobody else's is
touched.

The caller records name and ownership before it creates, so that a snapshot whose creation was cut off is
found by them and removed all the same.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from hyperflow.vsphere.errors import (
    TRANSPORT_FAULTS,
    Busy,
    NotOurs,
    TaskFailed,
    TaskUnfinished,
    TimeLimitReached,
    describe,
    moref_of,
)
from hyperflow.vsphere.facts import SnapshotFacts
from hyperflow.vsphere.inventory import read_snapshots, unescaped
from hyperflow.vsphere.observed import Change, named
from hyperflow.vsphere.properties import Found, first_refusal, list_all, retrieve, wait_until
from hyperflow.vsphere.session import Session

OWNER = "hyperflow"
NAME_LIMIT = 80  # characters vCenter allows for a snapshot's name

Progress = Callable[[int], None]

_QUIESCE_FAULTS = (
    vim.fault.ApplicationQuiesceFault,
    vim.fault.FilesystemQuiesceFault,
    vim.fault.VmToolsUpgradeFault,
    vim.fault.ToolsUnavailable,
)
_BUSY_FAULTS = (vim.fault.TaskInProgress, vim.fault.ConcurrentAccess)


@dataclass(frozen=True)
class Ownership:
    """Who made a snapshot: kept as JSON in its description, so that a person at the vCenter can read it too.

    :param dag: the DAG's id
    :param run: the DAG run's id
    :param created: UTC, as ``2026-11-23T21:00:00Z``
    :param airflow: which Airflow has the run; empty in a description that does not say
    """

    dag: str
    run: str
    created: str
    airflow: str = ""
    owner: str = OWNER

    def description(self) -> str:
        """The text for the snapshot's description."""
        document = {"owner": self.owner, "dag": self.dag, "run": self.run, "created": self.created}
        return json.dumps(document | ({"airflow": self.airflow} if self.airflow else {}))

    def owns(self, snapshot: SnapshotFacts) -> bool:
        """Whether a snapshot's description says that the same DAG run made it."""
        other = read_ownership(snapshot.description)
        return other is not None and self.is_of_same_run(other)

    def is_of_same_run(self, other: Ownership) -> bool:
        """Whether both are of one run.

        Another Airflow with the same plans has runs of the same ids, so which Airflow it is counts where both say it.
        """
        if self.airflow and other.airflow and self.airflow != other.airflow:
            return False
        return (other.owner, other.dag, other.run) == (self.owner, self.dag, self.run)


@dataclass(frozen=True)
class CreatedSnapshot:
    """What was created: ``quiesced`` tells whether the guest's file systems were at rest, warnings why
    not.
    """

    moref: str
    name: str
    quiesced: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RemovedSnapshot:
    """What became of a removal: ``existed`` is false when the snapshot was gone already."""

    moref: str
    existed: bool
    warnings: tuple[str, ...] = ()


def snapshot_name(run_slug: str) -> str:
    """The name of a run's snapshot, ``hyperflow-<slug>``, cut to what vCenter allows."""
    return f"{OWNER}-{re.sub(r'[^A-Za-z0-9._-]+', '-', run_slug)}"[:NAME_LIMIT]


def read_ownership(description: str) -> Ownership | None:
    """The ownership in a snapshot's description, or None when there is none of Hyperflow's."""
    try:
        document = json.loads(description)
        fields = {key: document[key] for key in ("owner", "dag", "run", "created")}
        fields["airflow"] = document.get("airflow", "")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if fields["owner"] != OWNER or not all(isinstance(value, str) for value in fields.values()):
        return None
    return Ownership(**fields)


def create_snapshot(
    session: Session,
    moref: str,
    *,
    name: str,
    description: str,
    quiesce: bool = True,
    time_limit: float = 1800,
    on_progress: Progress | None = None,
) -> CreatedSnapshot:
    """Take a snapshot of a VM, without its memory, and wait for it.

    :param quiesce: have VMware Tools bring the guest's file systems to rest. Where Tools does not run, or the
        guest refuses, the snapshot is crash-consistent, as after a power cut, and a warning says so
    :param time_limit: seconds
    :param on_progress: gets per cent
    :raises Busy: another operation holds the VM
    :raises TaskFailed: vCenter's reason is in the message
    :raises TaskUnfinished: the time is over; vCenter was asked to give the task up
    """
    reference = session.object(vim.VirtualMachine, moref)
    (vm,) = retrieve(session, [reference], {vim.VirtualMachine: ["runtime.powerState", "guest.toolsRunningStatus"]})
    warnings: list[str] = []
    running = vm.get("runtime.powerState") == "poweredOn"
    if quiesce and running and vm.get("guest.toolsRunningStatus") != "guestToolsRunning":
        warnings.append("VMware Tools does not run in the guest, so the snapshot is crash-consistent, not quiesced")
        quiesce = False
    quiesce = quiesce and running  # a VM that is off is at rest

    def take(quiesced: bool) -> str:
        task = session.call(reference.CreateSnapshot_Task, name, description, False, quiesced)
        try:
            return moref_of(wait_for_task(session, task, f"the snapshot {name!r} of {moref}", time_limit, on_progress))
        except TaskUnfinished:
            give_up(task)
            raise

    try:
        return CreatedSnapshot(take(quiesce), name, quiesce, tuple(warnings))
    except TaskFailed as failed:
        if not (quiesce and isinstance(failed.fault, _QUIESCE_FAULTS)):
            raise
        warnings.append(
            f"the guest could not be quiesced ({describe(failed.fault)}), so the snapshot is "
            "crash-consistent. See the log of VMware Tools in the guest"
        )
    return CreatedSnapshot(take(False), name, False, tuple(warnings))


def find_snapshots(session: Session, moref: str, name: str | None = None) -> list[SnapshotFacts]:
    """The snapshots of a VM, parents first; only those called ``name`` where one is given.

    :raises NotFound: when the VM is gone
    """
    snapshots = read_snapshots(_vm(session, moref).get("snapshot"))
    return [each for each in snapshots if name is None or each.name == name]


def list_snapshots(session: Session) -> list[tuple[str, str, tuple[SnapshotFacts, ...]]]:
    """MoRef, name and snapshots (parents first) of every virtual machine that has some and that this user may see."""
    found = list_all(session, vim.VirtualMachine, ["name", "snapshot"])
    return [
        (each.moref, unescaped(str(each.get("name", each.moref))), read_snapshots(each.get("snapshot")))
        for each in found
        if each.get("snapshot") is not None
    ]


def remove_snapshot(
    session: Session,
    moref: str,
    snapshot: str,
    *,
    name: str,
    ownership: Ownership,
    time_limit: float = 7200,
    on_progress: Progress | None = None,
) -> RemovedSnapshot:
    """Remove one snapshot that this run made, wait for it, and read back that it is gone.

    :param snapshot: its MoRef
    :param time_limit: seconds; joining a large delta disk takes hours
    :raises NotOurs: when its name or its description is another one
    :raises TaskUnfinished: the time is over; vCenter goes on with it
    """
    present = {each.moref: each for each in find_snapshots(session, moref)}
    if snapshot not in present:
        return RemovedSnapshot(snapshot, existed=False)
    found = present[snapshot]
    if found.name != name or not ownership.owns(found):
        raise NotOurs(
            f"the snapshot {found.name!r} ({snapshot}) of {moref} was not made by the run "
            f"{ownership.run!r}, so it is left alone. Remove it in vCenter if it is not wanted"
        )
    reference = session.object(vim.vm.Snapshot, snapshot)
    task = session.call(reference.RemoveSnapshot_Task, False, True)
    wait_for_task(session, task, f"the removal of the snapshot {name!r} of {moref}", time_limit, on_progress)
    return RemovedSnapshot(snapshot, existed=True, warnings=_after_removal(session, moref, snapshot))


def remove_owned_snapshots(
    session: Session, moref: str, *, name: str, ownership: Ownership, time_limit: float = 7200
) -> list[RemovedSnapshot]:
    """Remove every snapshot of this name and ownership: what a teardown calls, whatever was recorded of
    MoRefs.
    """
    ours = [each for each in find_snapshots(session, moref, name) if ownership.owns(each)]
    return [
        remove_snapshot(session, moref, each.moref, name=name, ownership=ownership, time_limit=time_limit)
        for each in reversed(ours)  # children first
    ]


def wait_for_task(
    session: Session, task: Any, what: str, time_limit: float, on_progress: Progress | None = None
) -> Any:
    """Wait for a vCenter task and return its result.

    :raises TaskFailed: with the server's reason
    :raises Busy: when the task failed because another one holds the VM
    :raises TaskUnfinished: the time is over; the task goes on at vCenter
    """
    shown = -1
    begun = time.monotonic()

    def done(info: dict[str, Any]) -> bool:
        nonlocal shown
        progress = info.get("info.progress")
        if on_progress is not None and progress is not None and progress != shown:
            shown = progress
            on_progress(progress)
        return info.get("info.state") in ("success", "error")

    paths = ["info.state", "info.progress", "info.error", "info.result"]
    try:
        info = wait_until(session, task, paths, done, time_limit=time_limit, what=what)
    except TimeLimitReached as reached:
        session.tell(Change(what, named(task), "failed", seconds=time_limit, said="not done within the time limit"))
        raise TaskUnfinished(
            f"{reached}. Its task {moref_of(task)} may still be going on: see the virtual machine's recent tasks in "
            "vCenter and what its host and datastore are busy with, and try again when it has ended"
        ) from reached
    seconds = time.monotonic() - begun
    if info["info.state"] == "success":
        session.tell(Change(what, named(task), "done", seconds=seconds))
        return info.get("info.result")
    fault = info.get("info.error")
    said = describe(fault) if fault else "no reason given"
    session.tell(Change(what, named(task), "failed", seconds=seconds, said=said))
    message = f"{session.host} could not finish {what}: {said}"
    if isinstance(fault, _BUSY_FAULTS):
        raise Busy(f"{message}. Another operation holds the virtual machine; try again when it has ended")
    raise TaskFailed(message, fault)


def give_up(task: Any) -> None:
    """Ask vCenter to cancel a task, so that it does nothing later, when nobody waits for it any more."""
    with contextlib.suppress(vmodl.MethodFault, *TRANSPORT_FAULTS):  # it cannot be cancelled, or it has just ended
        task.CancelTask()


def _after_removal(session: Session, moref: str, snapshot: str) -> tuple[str, ...]:
    vm = _vm(session, moref)
    if snapshot in {each.moref for each in read_snapshots(vm.get("snapshot"))}:
        raise TaskFailed(f"{session.host} says that the snapshot {snapshot} of {moref} was removed, but still lists it")
    if vm.get("runtime.consolidationNeeded"):
        return (
            f"the snapshot is gone, but the disks of {moref} need consolidation: in vCenter, choose "
            "Snapshots, Consolidate on the virtual machine",
        )
    return ()


def _vm(session: Session, moref: str) -> Found:
    reference = session.object(vim.VirtualMachine, moref)
    paths = ["snapshot", "runtime.consolidationNeeded"]
    (vm,) = retrieve(session, [reference], {vim.VirtualMachine: paths})
    refusal = first_refusal(session, vm)
    if refusal is not None:
        raise refusal
    return vm
