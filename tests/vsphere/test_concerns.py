"""What speaks against a migration: pure, from facts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hyperflow.vsphere.concerns import LEVELS, Concern, concerns
from hyperflow.vsphere.facts import CdFacts, DiskFacts, NicFacts, SnapshotFacts, VmFacts

DISK = DiskFacts(
    id="disk-0",
    key=2000,
    label="Hard disk 1",
    bus="scsi",
    bus_number=0,
    unit=0,
    controller="ParaVirtualSCSIController",
    capacity_bytes=4 << 30,
    datastore="ds",
    file="[ds] web01/web01.vmdk",
    mode="persistent",
    sharing="none",
    bus_sharing="none",
    backing="flat",
    uuid="6000c29e",
    thin=True,
    is_rdm=False,
    encrypted=False,
)
NIC = NicFacts(4000, "Network adapter 1", "00:50:56:9a:10:01", "VM Network", True, True, "vmxnet3")
PLAIN = VmFacts(
    moref="vm-1",
    name="web01",
    inventory_path="/DC0/vm/web01",
    datacenter="DC0",
    host="esx1",
    connection_state="connected",
    instance_uuid="i",
    bios_uuid="b",
    guest_id="debian12_64Guest",
    guest_full_name="Debian GNU/Linux 12 (64-bit)",
    hardware_version="vmx-19",
    firmware="bios",
    secure_boot=False,
    cpus=1,
    cores_per_socket=1,
    memory_mb=1024,
    power_state="poweredOff",
    template=False,
    change_version="1",
    annotation="",
    tools_running=False,
    tools_version=None,
    guest_hostname=None,
    nics=(NIC,),
    disks=(DISK,),
)
SNAPSHOT = SnapshotFacts("snapshot-1", "before upgrade", "", "2026-01-01T00:00:00Z")


def found(**changes: Any) -> dict[str, Concern]:
    return {concern.id: concern for concern in concerns(replace(PLAIN, **changes))}


def test_a_plain_machine_that_is_off_raises_no_concern() -> None:
    assert concerns(PLAIN) == []


@pytest.mark.parametrize(
    ("change", "concern_id"),
    [
        ({"mode": "independent_persistent"}, "disk.independent"),
        ({"mode": "independent_nonpersistent"}, "disk.independent"),
        ({"mode": "nonpersistent"}, "disk.independent"),
        ({"backing": "rdm-virtual", "is_rdm": True}, "disk.raw-device"),
        ({"backing": "raw"}, "disk.raw-device"),
        ({"sharing": "multi-writer"}, "disk.shared"),
        ({"bus_sharing": "physical"}, "disk.shared"),
        ({"file": None}, "disk.no-backing"),
        ({"datastore": None}, "disk.no-backing"),
        ({"capacity_bytes": 0}, "disk.no-capacity"),
        ({"capacity_bytes": -1}, "disk.no-capacity"),
        ({"encrypted": True}, "encryption"),
    ],
)
def test_a_disk_that_can_not_be_exported_is_critical_and_named(change: dict[str, Any], concern_id: str) -> None:
    concern = found(disks=(DISK, replace(DISK, id="disk-1", **change)))[concern_id]
    assert concern.level == "critical"
    assert "disk-1" in concern.message


@pytest.mark.parametrize(
    ("change", "concern_id"),
    [
        ({"connection_state": "inaccessible"}, "vm.disconnected"),
        ({"template": True}, "vm.template"),
        ({"power_state": "suspended"}, "power.suspended"),
        ({"fault_tolerance": True}, "fault-tolerance"),
        ({"snapshots": (SNAPSHOT,)}, "snapshot.exists"),
        ({"disks": ()}, "disk.none"),
        ({"encrypted": True}, "encryption"),
        ({"passthrough": ("PCI device 0",)}, "device.passthrough"),
    ],
)
def test_what_rules_a_migration_out_is_critical(change: dict[str, Any], concern_id: str) -> None:
    assert found(**change)[concern_id].level == "critical"


@pytest.mark.parametrize(
    ("change", "concern_id", "level"),
    [
        ({"power_state": "poweredOn", "tools_running": True}, "power.on", "warning"),
        ({"power_state": "poweredOn"}, "tools.not-running", "information"),
        ({"consolidation_needed": True}, "disk.consolidation-needed", "warning"),
        ({"has_vtpm": True, "encrypted": True}, "vtpm", "warning"),
        ({"secure_boot": True}, "secure-boot", "information"),
        ({"usb_devices": ("USB 1",)}, "device.usb", "warning"),
        ({"cds": (CdFacts("CD/DVD drive 1", "[iso] a.iso", True),)}, "device.cd", "information"),
        ({"other_devices": ("Serial port 1",)}, "device.other", "information"),
        ({"nics": ()}, "nic.none", "information"),
        ({"nics": (replace(NIC, network=None),)}, "nic.no-network", "warning"),
        ({"nics": (replace(NIC, connect_at_power_on=False),)}, "nic.disconnected", "information"),
        ({"nics": (replace(NIC, type="sriov"),)}, "nic.sriov", "warning"),
        ({"disks": (DISK,) * 25}, "disk.many", "warning"),
        ({"disks": (replace(DISK, bus="unknown"),)}, "disk.unknown-controller", "warning"),
        ({"guest_id": "windows2022srvNext_64Guest"}, "guest.windows", "warning"),
        ({"firmware": "unknown"}, "firmware.unknown", "warning"),
        ({"name": "../x y"}, "name.odd", "information"),
        ({"name": "x" * 64}, "name.odd", "information"),
        ({"name": ""}, "name.odd", "information"),
    ],
)
def test_what_a_person_should_know_does_not_stop_a_migration(
    change: dict[str, Any], concern_id: str, level: str
) -> None:
    every = found(**change)
    assert every[concern_id].level == level
    assert not [concern for concern in every.values() if concern.level == "critical"]


def test_existing_snapshots_are_a_warning_when_the_plan_allows_them() -> None:
    (concern,) = concerns(replace(PLAIN, snapshots=(SNAPSHOT,)), allow_snapshots=True)
    assert (concern.id, concern.level) == ("snapshot.exists", "warning")
    assert "before upgrade" in concern.message


def test_every_concern_says_what_to_do_and_the_gravest_come_first() -> None:
    every = concerns(
        replace(PLAIN, nics=(), disks=(replace(DISK, mode="independent_persistent"),), power_state="poweredOn")
    )
    assert [LEVELS.index(concern.level) for concern in every] == sorted(LEVELS.index(each.level) for each in every)
    assert len(every) == 4
    assert all(concern.message and concern.what_to_do.endswith(".") for concern in every)
