"""What somebody did to a virtual machine while it was exported."""

from __future__ import annotations

from hyperflow.vsphere.facts import VmFacts


def changes(before: VmFacts, after: VmFacts) -> list[str]:
    """Tell what is other than it was, as far as it makes a difference to a migration; a sentence each.

    :param before: the VM as the migration took it
    :param after: the VM now
    """
    told = []
    if after.name != before.name:
        told.append(f"the VM was renamed from {before.name!r} to {after.name!r}: it is migrated under its old name")
    elif after.inventory_path != before.inventory_path:
        told.append(f"the VM was moved from {before.inventory_path} to {after.inventory_path}")
    if after.power_state != before.power_state:
        told.append(
            f"the VM was {before.power_state} and is {after.power_state} now: what was written in it since its "
            "snapshot is not in the migrated disks"
        )
    earlier, present = {disk.key: disk for disk in before.disks}, {disk.key: disk for disk in after.disks}
    for key in present.keys() - earlier.keys():
        told.append(f"{present[key].label} was added after the snapshot: it is not migrated. Start a new run for it")
    for key in earlier.keys() - present.keys():
        told.append(f"{earlier[key].label} was taken from the VM after the snapshot: it is migrated all the same")
    for key in earlier.keys() & present.keys():
        if present[key].capacity_bytes != earlier[key].capacity_bytes:
            told.append(
                f"{earlier[key].label} had {earlier[key].capacity_bytes} bytes and has {present[key].capacity_bytes} "
                "now: it is migrated as it was. Start a new run for the new size"
            )
    return told
