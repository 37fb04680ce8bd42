"""The mark of a cutover on its source, for people in vCenter and for another Airflow that has the same VM in a plan.

It is a custom attribute, not a vSphere tag. Tags live behind another API (vCenter's REST, with a session and privileges
of its own, and a category that must exist), which pyVmomi does not speak; a custom attribute goes through the session
that is open, holds a text (which run, when, to where), and every inventory export shows it.
"""

from __future__ import annotations

from pyVmomi import vim

from hyperflow.vsphere.errors import VsphereError
from hyperflow.vsphere.properties import first_refusal, retrieve
from hyperflow.vsphere.session import Session

ATTRIBUTE = "hyperflow.migrated"


def can_be_marked(session: Session) -> bool:
    """Whether there are custom attributes; a lone ESXi host has none."""
    return session.content.customFieldsManager is not None


def mark(session: Session, moref: str, text: str) -> bool:
    """Write a VM's attribute :data:`ATTRIBUTE`, which is made where vCenter has none.

    :param text: empty to take the mark away, which is a success where nothing can be marked
    :return: whether it had another text
    :raises NotFound: when the VM is gone
    :raises PermissionMissing: naming the privilege
    """
    if (mark_of(session, moref) or "") == text:
        return False
    reference = session.object(vim.VirtualMachine, moref)
    session.call(session.content.customFieldsManager.SetField, reference, attribute(session), text)
    return True


def mark_of(session: Session, moref: str) -> str | None:
    """What the VM's attribute says; None where it has none.

    :raises NotFound: when the VM is gone
    """
    key = find_attribute(session)
    (vm,) = retrieve(session, [session.object(vim.VirtualMachine, moref)], {vim.VirtualMachine: ["customValue"]})
    refusal = first_refusal(session, vm)
    if refusal is not None:
        raise refusal
    values = [each.value for each in vm.get("customValue", []) if each.key == key]
    return str(values[0]) if values and values[0] else None


def attribute(session: Session) -> int:
    """The key of :data:`ATTRIBUTE`, which is made where vCenter has none; that takes a privilege on vCenter's root."""
    key = find_attribute(session)
    if key is not None:
        return key
    session.call(_add_attribute, session)
    key = find_attribute(session)
    if key is None:
        raise VsphereError(
            f"{session.host} says that it has made the custom attribute {ATTRIBUTE}, but does not list it for virtual "
            "machines. See Tags and custom attributes in vCenter"
        )
    return key


def _add_attribute(session: Session) -> None:
    try:
        session.content.customFieldsManager.AddCustomFieldDef(ATTRIBUTE, vim.VirtualMachine, None, None)
    except vim.fault.DuplicateName:
        return  # another run made it this moment; what is listed decides


def find_attribute(session: Session) -> int | None:
    """The key of :data:`ATTRIBUTE`; None where vCenter has it not, or has no attributes."""
    reference = session.content.customFieldsManager
    if reference is None:
        return None
    (found,) = retrieve(session, [reference], {vim.CustomFieldsManager: ["field"]})
    for field in found.get("field", []):
        if field.name == ATTRIBUTE and field.managedObjectType in (None, vim.VirtualMachine):
            return int(field.key)
    return None
