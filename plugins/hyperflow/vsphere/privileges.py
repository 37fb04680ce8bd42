"""Which privileges a migration needs, and which of them the user lacks; asked of vCenter before anything is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from hyperflow.vsphere.mark import ATTRIBUTE, can_be_marked, find_attribute
from hyperflow.vsphere.session import Session

_not_authenticated: Any = vim.fault.NotAuthenticated  # pyVmomi's constructors are not typed

# Privilege -> what for; docs/vcenter.md says the same for a person.
EXPORT = {
    "VirtualMachine.State.CreateSnapshot": "take the snapshot that is exported",
    "VirtualMachine.State.RemoveSnapshot": "remove that snapshot again",
    "VApp.Export": "open the export lease and download the disks",
}
CUTOVER = {
    "VirtualMachine.Interact.PowerOff": "shut the source's guest down, or power it off",
    "VirtualMachine.Interact.PowerOn": "start the source again when the cutover is taken back",
    "VirtualMachine.Interact.DeviceConnection": "disconnect the source's network adapters, and connect them again",
    "VirtualMachine.Config.EditDevice": "have its network adapters disconnected at power on",
    "VirtualMachine.Config.Rename": "rename the source when the migration is finalized",
    "Global.SetCustomField": f"mark the source with the attribute {ATTRIBUTE}",
}
# On the vCenter's root, and only until the attribute is there.
ATTRIBUTES = {"Global.ManageCustomFields": f"make the custom attribute {ATTRIBUTE}, once"}


@dataclass(frozen=True)
class MissingPrivilege:
    """A privilege that the session's user does not have on an object."""

    privilege: str
    moref: str
    what_for: str

    def sentence(self) -> str:
        """What to do about it."""
        return (
            f"the user lacks the privilege {self.privilege} on {self.moref}, needed to {self.what_for}. Add it to the "
            "user's role, and see that the role is granted there with 'Propagate to children' (docs/vcenter.md)"
        )


def missing_privileges(session: Session, moref: str, *, for_cutover: bool) -> list[MissingPrivilege]:
    """What this user may not do of what a migration does to a VM; nothing is tried.

    :param for_cutover: also what a cutover and its finalizing need
    :raises NotFound: when the VM is gone
    """
    wanted = EXPORT | CUTOVER if for_cutover else EXPORT
    missing = _missing(session, session.object(vim.VirtualMachine, moref), wanted)
    if for_cutover and can_be_marked(session) and find_attribute(session) is None:
        missing += _missing(session, session.content.rootFolder, ATTRIBUTES)
    return missing


def _missing(session: Session, entity: Any, wanted: dict[str, str]) -> list[MissingPrivilege]:
    def ask() -> Iterable[Any]:
        own = session.content.sessionManager.currentSession
        if own is None:  # ended there, which this property tells in its own way; session.call logs in again
            raise _not_authenticated()
        answer = session.content.authorizationManager.HasPrivilegeOnEntities([entity], own.key, list(wanted))
        return [each for of_entity in answer for each in of_entity.privAvailability]

    granted = {str(each.privId) for each in session.call(ask) if each.isGranted}
    return [MissingPrivilege(each, str(entity._moId), wanted[each]) for each in wanted if each not in granted]
