"""The power state of a virtual machine. Nothing here changes it."""

from __future__ import annotations

from pyVmomi import vim

from hyperflow.vsphere.properties import retrieve
from hyperflow.vsphere.session import Session


def power_state(session: Session, moref: str) -> str:
    """``poweredOn``, ``poweredOff`` or ``suspended``, as it is at this moment.

    :raises NotFound: when the VM is gone
    """
    (vm,) = retrieve(session, [session.object(vim.VirtualMachine, moref)], {vim.VirtualMachine: ["runtime.powerState"]})
    return str(vm.get("runtime.powerState", "unknown"))
