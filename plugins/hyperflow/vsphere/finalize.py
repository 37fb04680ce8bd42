"""The source after its migration: renamed and marked, so that nobody starts it again by mistake. Never deleted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from hyperflow.vsphere.errors import NameTaken, TaskFailed, TaskUnfinished, VsphereError, moref_of
from hyperflow.vsphere.inventory import unescaped
from hyperflow.vsphere.mark import ATTRIBUTE, attribute, can_be_marked, mark, mark_of
from hyperflow.vsphere.properties import Found, first_refusal, retrieve
from hyperflow.vsphere.session import Session
from hyperflow.vsphere.snapshot import give_up, wait_for_task

NAME_LIMIT = 80  # characters of a virtual machine's name (Folder.CreateVM_Task in the vSphere API reference)
RENAME_LIMIT = 300  # seconds


@dataclass(frozen=True)
class Finalized:
    """What became of the source.

    :ivar previous_name: its name before this call, to take the rename back with; ``name`` when it had it already
    :ivar mark: the text of the attribute, as read back
    :ivar changed: what this call did: "renamed", "marked", or nothing of them
    """

    moref: str
    name: str
    previous_name: str
    mark: str
    changed: tuple[str, ...]


def finalize(session: Session, moref: str, new_name: str, tag: str, time_limit: float = RENAME_LIMIT) -> Finalized:
    """Rename a VM and mark it (:mod:`hyperflow.vsphere.mark`); done already is a success. Each is read back.

    The disks' files keep their names: vSphere renames those only when they are moved.

    :param new_name: as a person reads it; vSphere's escapes are made here
    :param tag: the text of the attribute
    :param time_limit: seconds that the rename may take
    :raises NameTaken: something in the same folder has the name; nothing was changed
    :raises VsphereError: a name or text that vCenter cannot hold; or there is no vCenter, but a lone ESXi host
    :raises TaskFailed: with vCenter's reason
    :raises TaskUnfinished: the time is over; vCenter was asked to give the rename up
    """
    name = _checked(new_name)
    if not tag.strip():
        raise VsphereError(f"the text for the attribute {ATTRIBUTE} is empty. Say which run migrated the VM, and when")
    if not can_be_marked(session):
        raise VsphereError(f"{session.host} is no vCenter and has no custom attributes. Connect to the vCenter instead")
    vm = _read(session, moref)
    previous = unescaped(str(vm.get("name")))
    changed = []
    attribute(session)  # before the VM is changed: it cannot be made without a privilege on the vCenter's root
    if previous != name:
        _rename(session, vm, name, time_limit)
        changed.append("renamed")
    if mark(session, moref, tag):
        changed.append("marked")
    return _read_back(session, moref, Finalized(moref, name, previous, tag, tuple(changed)))


def name_after(name: str, ending: str) -> str:
    """Put an ending to a VM's name, which is cut where both are more than vSphere takes."""
    return name[: NAME_LIMIT - len(ending)] + ending


def _checked(new_name: str) -> str:
    if not new_name.strip() or len(new_name) > NAME_LIMIT or not new_name.isprintable():
        raise VsphereError(
            f"{new_name!r} cannot be a virtual machine's name: expected 1 to {NAME_LIMIT} printable characters, found "
            f"{len(new_name)}. Choose another one"
        )
    return new_name


def _rename(session: Session, vm: Found, name: str, time_limit: float) -> None:
    """Rename a VM; vCenter judges whether the name is free, in the same moment as it takes it."""
    escaped = name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")

    def start() -> Any:
        try:
            return vm.reference.Rename_Task(escaped)
        except vim.fault.DuplicateName as fault:
            raise _taken(session, vm, name, fault) from fault

    task = session.call(start)
    try:
        wait_for_task(session, task, f"the renaming of {vm.moref} to {name!r}", time_limit)
    except TaskFailed as failed:
        if isinstance(failed.fault, vim.fault.DuplicateName):
            raise _taken(session, vm, name, failed.fault) from failed
        raise
    except TaskUnfinished:
        give_up(task)
        raise


def _taken(session: Session, vm: Found, name: str, fault: Any) -> NameTaken:
    other = f" by {moref_of(fault.object)}" if getattr(fault, "object", None) is not None else ""
    return NameTaken(
        f"{unescaped(str(vm.get('name')))!r} ({vm.moref}) cannot be renamed to {name!r}: the name is taken{other} in "
        f"its folder at {session.host}. Rename or move that one, or choose another name"
    )


def _read(session: Session, moref: str) -> Found:
    (vm,) = retrieve(session, [session.object(vim.VirtualMachine, moref)], {vim.VirtualMachine: ["name"]})
    refusal = first_refusal(session, vm)
    if refusal is not None:
        raise refusal
    return vm


def _read_back(session: Session, moref: str, done: Finalized) -> Finalized:
    name, text = unescaped(str(_read(session, moref).get("name"))), mark_of(session, moref)
    if (name, text) != (done.name, done.mark):
        raise VsphereError(
            f"{session.host} says that {moref} was renamed and marked, but it is called {name!r} and its attribute "
            f"{ATTRIBUTE} is {text!r}. See its recent tasks and events in vCenter for who changed it"
        )
    return done
