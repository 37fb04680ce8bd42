"""What speaks against migrating a virtual machine as it is. Pure: facts in, concerns out.

The list follows Forklift's VMware rules (validation/policies/io/konveyor/forklift/vmware), judged by what an
export from a snapshot and a boot on virtio can carry over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hyperflow.vsphere.facts import DiskFacts, NicFacts, VmFacts

Level = Literal["critical", "warning", "information"]

LEVELS: tuple[Level, ...] = ("critical", "warning", "information")

# Every virtio disk of the target takes a PCI slot; beyond this many, bus and slots have to be planned by
# hand.
DISK_LIMIT = 24


@dataclass(frozen=True)
class Concern:
    """One thing to know before a migration.

    ``critical`` stops it, ``warning`` is for a person to judge, ``information`` tells what will be
    different. ``id`` is stable, ``message`` says what was found and where, ``what_to_do`` the next step.
    """

    level: Level
    id: str
    message: str
    what_to_do: str


def concerns(facts: VmFacts, *, allow_snapshots: bool = False) -> list[Concern]:
    """Everything that speaks against migrating a VM as it is, the gravest first.

    :param allow_snapshots: existing snapshots are a warning instead of critical
    """
    found = [
        *_state(facts),
        *_snapshots(facts, allow_snapshots),
        *_disks(facts),
        *_security(facts),
        *_hardware(facts),
        *_nics(facts),
        *_guest(facts),
    ]
    return sorted(found, key=lambda concern: LEVELS.index(concern.level))


def _state(facts: VmFacts) -> Iterator[Concern]:
    if facts.connection_state != "connected":
        yield Concern(
            "critical",
            "vm.disconnected",
            f"vCenter's connection to the virtual machine is {facts.connection_state!r}",
            "See that its ESXi host and datastore are up and that vCenter shows the machine as connected.",
        )
    if facts.template:
        yield Concern(
            "critical",
            "vm.template",
            "it is a template, of which no snapshot can be taken",
            "Deploy a virtual machine from the template and migrate that.",
        )
    if facts.power_state == "suspended":
        yield Concern(
            "critical",
            "power.suspended",
            "it is suspended: what its memory holds is not on its disks",
            "Resume it, and shut it down or leave it running.",
        )
    if facts.power_state == "poweredOn":
        yield Concern(
            "warning",
            "power.on",
            "it is running: what it writes after the snapshot stays behind",
            "Shut it down before the migration, or accept the state of the moment when the snapshot is taken.",
        )
    if facts.fault_tolerance:
        yield Concern(
            "critical",
            "fault-tolerance",
            "Fault Tolerance is on, which rules out an export from a snapshot",
            "Turn Fault Tolerance off for this machine.",
        )


def _snapshots(facts: VmFacts, allowed: bool) -> Iterator[Concern]:
    if facts.snapshots:
        names = ", ".join(repr(snapshot.name) for snapshot in facts.snapshots)
        yield Concern(
            "warning" if allowed else "critical",
            "snapshot.exists",
            f"it has {len(facts.snapshots)} snapshots ({names}); only its present state is migrated",
            "Remove them in vCenter, or allow snapshots in the plan; they are never touched by Hyperflow.",
        )
    if facts.consolidation_needed:
        yield Concern(
            "warning",
            "disk.consolidation-needed",
            "its disks need consolidation: left-over delta disks slow it and may block removing a snapshot",
            "In vCenter, choose Snapshots, Consolidate.",
        )


def _disks(facts: VmFacts) -> Iterator[Concern]:
    if not facts.disks:
        yield Concern(
            "critical", "disk.none", "it has no disks", "Choose another machine; there is nothing to migrate."
        )
    if len(facts.disks) > DISK_LIMIT:
        yield Concern(
            "warning",
            "disk.many",
            f"it has {len(facts.disks)} disks; more than {DISK_LIMIT} need PCI slots planned by hand on KVM",
            "Move data together onto fewer disks, or define the target machine yourself.",
        )
    for disk in facts.disks:
        yield from _disk(disk)


def _disk(disk: DiskFacts) -> Iterator[Concern]:
    what = f"{disk.id} ({disk.label}, {disk.file or 'no file'})"
    if disk.mode.startswith("independent") or disk.mode in ("nonpersistent", "undoable", "append"):
        yield Concern(
            "critical",
            "disk.independent",
            f"{what} is in mode {disk.mode}, which snapshots and exports leave out",
            "Power the machine off and set the disk's mode to 'Dependent'.",
        )
    if disk.is_rdm or disk.backing == "raw":
        yield Concern(
            "critical",
            "disk.raw-device",
            f"{what} is a raw device ({disk.backing})",
            "Migrate its contents to a virtual disk with Storage vMotion, or detach it and give the device to KVM.",
        )
    if disk.sharing != "none" or disk.bus_sharing != "none":
        yield Concern(
            "critical",
            "disk.shared",
            f"{what} may be shared with other machines (sharing {disk.sharing}, bus sharing {disk.bus_sharing})",
            "Stop the cluster that shares it and turn multi-writer and bus sharing off, or leave the disk out.",
        )
    if not disk.file or not disk.datastore:
        yield Concern(
            "critical",
            "disk.no-backing",
            f"{what} has no file on a datastore",
            "See in vCenter whether its datastore is reachable; detach the disk if its file is lost.",
        )
    if disk.capacity_bytes <= 0:
        yield Concern(
            "critical",
            "disk.no-capacity",
            f"{what} has a capacity of {disk.capacity_bytes} bytes",
            "See in vCenter whether the disk is usable; detach it if not.",
        )
    if disk.bus == "unknown":
        yield Concern(
            "warning",
            "disk.unknown-controller",
            f"{what} is on a controller of a kind that is not known here ({disk.controller or 'none'})",
            "Check the order of the disks after the migration; it becomes a virtio disk.",
        )


def _security(facts: VmFacts) -> Iterator[Concern]:
    disks = [disk.id for disk in facts.disks if disk.encrypted]
    if disks or (facts.encrypted and not facts.has_vtpm):
        yield Concern(
            "critical",
            "encryption",
            f"it is encrypted by vSphere ({', '.join(disks) or 'its configuration'}), which rules out an export",
            "Power it off and change its storage policy to one without encryption.",
        )
    if facts.has_vtpm:
        yield Concern(
            "warning",
            "vtpm",
            "it has a virtual TPM, whose contents can not be taken along",
            "Have recovery keys at hand for whatever the TPM unlocks (BitLocker, LUKS by clevis), or remove it first.",
        )
    if facts.secure_boot:
        yield Concern(
            "information",
            "secure-boot",
            "Secure Boot is on; the target gets the firmware's standard keys, not the ones enrolled at the source",
            "Enrol keys of your own again after the migration, if there are any.",
        )


def _hardware(facts: VmFacts) -> Iterator[Concern]:
    if facts.passthrough:
        yield Concern(
            "critical",
            "device.passthrough",
            f"devices of the host are passed through to it: {', '.join(facts.passthrough)}",
            "Remove them from the machine; give the KVM guest its own afterwards.",
        )
    if facts.usb_devices:
        yield Concern(
            "warning",
            "device.usb",
            f"USB devices are connected to it: {', '.join(facts.usb_devices)}",
            "They stay behind; attach them to the KVM guest by hand.",
        )
    for cd in facts.cds:
        if cd.iso:
            yield Concern(
                "information",
                "device.cd",
                f"{cd.label} holds {cd.iso}, which is not taken along",
                "Nothing, unless the guest needs it; an /etc/fstab entry for it must not be required at boot.",
            )
    if facts.other_devices:
        yield Concern(
            "information",
            "device.other",
            f"these devices are not taken along: {', '.join(facts.other_devices)}",
            "Add what the guest needs to the domain afterwards.",
        )


def _nics(facts: VmFacts) -> Iterator[Concern]:
    if not facts.nics:
        yield Concern("information", "nic.none", "it has no network adapter", "Nothing, when that is intended.")
    for nic in facts.nics:
        yield from _nic(nic)


def _nic(nic: NicFacts) -> Iterator[Concern]:
    what = f"{nic.label} ({nic.mac or 'no MAC'})"
    if nic.network is None:
        yield Concern(
            "warning",
            "nic.no-network",
            f"{what} is on no network",
            "Connect it to a network in vCenter, or leave it out of the plan's networks.",
        )
    elif not nic.connect_at_power_on:
        yield Concern(
            "information",
            "nic.disconnected",
            f"{what} is not connected when the machine is powered on",
            "Nothing, when that is intended; on KVM it will be connected.",
        )
    if nic.type == "sriov":
        yield Concern(
            "warning",
            "nic.sriov",
            f"{what} is an SR-IOV adapter; it becomes a virtio one",
            "Check its throughput on KVM, or give the guest a virtual function there.",
        )


def _guest(facts: VmFacts) -> Iterator[Concern]:
    if facts.power_state == "poweredOn" and not facts.tools_running:
        yield Concern(
            "information",
            "tools.not-running",
            "VMware Tools does not run in it, so the snapshot is as after a power cut and addresses are not known",
            "Start VMware Tools in the guest, or shut the guest down.",
        )
    if (facts.guest_id or "").lower().startswith("win"):
        yield Concern(
            "warning",
            "guest.windows",
            f"its guest is set to {facts.guest_full_name or facts.guest_id}; only Linux guests are fixed today",
            "Prepare virtio drivers in the guest yourself, or keep it on vSphere for now.",
        )
    if facts.firmware == "unknown":
        yield Concern(
            "warning",
            "firmware.unknown",
            "vCenter does not say whether it boots by BIOS or UEFI",
            "Say it in the plan; what is found on the disks decides otherwise.",
        )
    plain = facts.name != "" and facts.name.isascii() and all(char.isalnum() or char in "._-" for char in facts.name)
    if not plain or len(facts.name) > 63 or facts.name[:1] in (".", "-"):
        yield Concern(
            "information",
            "name.odd",
            f"its name {facts.name!r} is not usable as a file or host name as it stands",
            "Files and the domain get a plain form of it; choose one in the plan if you mind.",
        )
