"""What somebody did to a virtual machine while it was exported: of its drift, what the migrated disks miss."""

from __future__ import annotations

from hyperflow.vsphere.drift import differences, state_of
from hyperflow.vsphere.facts import VmFacts

# A snapshot of somebody else, or a disk that was moved to another datastore, takes nothing from an export.
_TOLD = ("name", "path", "power", "disk")


def changes(before: VmFacts, after: VmFacts) -> list[str]:
    """Tell what is other than it was, as far as it makes a difference to a migration; a sentence each.

    :param before: the VM as the migration took it
    :param after: the VM now
    """
    return [each["sentence"] for each in differences(state_of(before), state_of(after)) if each["kind"] in _TOLD]
