"""What the lab's vCenter holds: the real guest, and VMs that a migration must refuse or take with care."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lab.small_guest import CAPACITY, ensure_small_guest

USER = "administrator@vsphere.local"
NETWORK = "VM Network"
PRODUCTION = "Production"  # a distributed port group
HOSTILE_NAME = 'hostile ../"na\'me" é'
CUTOVER_FOLDER = "/DC0/vm/Cutover"
SMALL_FOLDER = "/DC0/vm/Small"
WAVE_FOLDER = "/DC0/vm/Wave"
SMALL_DISK = 64 * 1024 * 1024


def write_inventory(path: Path, guest_json: Path, small: int = 0) -> None:
    """Write the inventory file for `lab.vcenter.start`.

    :param small: how many VMs ``small01``, ``small02``, ... with the small guest's disk there are besides, and with
        them those of the whole wave
    :param guest_json: the guest cache's facts, `{"disks": [{"file", "capacity_bytes", "sha256"}, ...]}`; the
        files are relative to its folder.
    :raises ValueError: the guest has not two disks.
    """
    disks = _guest_disks(guest_json)
    inventory = {
        "networks": [{"name": PRODUCTION, "kind": "distributed"}],
        "vms": [
            _web01(disks),
            {**_off01(), "disks": [disks[1]]},
            *_refused(),
            *_ordinary(),
            *_cutover(),
            *_small(small),
        ],
    }
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(inventory, indent=2, ensure_ascii=False) + "\n")
    partial.rename(path)


def _small(count: int) -> list[dict[str, Any]]:
    if not count:
        return []
    disk = {"file": str(ensure_small_guest()), "capacity_bytes": CAPACITY, "thin": True}
    return [
        *(
            _vm(f"small{number:02d}", 0x40 + number, folder=SMALL_FOLDER, disks=[disk])
            for number in range(1, count + 1)
        ),
        *_wave([disk]),
    ]


def _wave(disks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Twelve VMs with the small guest's disk that move together; each is named by what it is, or what becomes of it.

    Those of a cold cutover run, with VMware Tools and two adapters, of which one is not connected.
    """
    off = ["orders-db", "orders-app1", "orders-app2", "unbootable", "unbootable-app", "files1", "files2"]
    running = ["drifting", "rejected", "unwell", "moved"]
    tools = {"toolsRunningStatus": "guestToolsRunning"}
    made = [_vm(name, 0x70 + at, folder=WAVE_FOLDER, disks=disks) for at, name in enumerate(off)]
    for number, name in enumerate([*running, "deaf"], 0x70 + len(off)):
        nics = [
            {"mac": f"00:50:56:9a:10:{number:02x}", "network": NETWORK, "type": "vmxnet3"},
            {"mac": f"00:50:56:9a:11:{number:02x}", "network": PRODUCTION, "type": "vmxnet3", "disconnected": True},
        ]
        guest = {**tools, "ignores_shutdown": True} if name == "deaf" else tools
        state = {"powerState": "poweredOn", "nics": nics, "guest": guest}
        made.append(_vm(name, number, folder=WAVE_FOLDER, disks=disks, **state))
    return made


def _guest_disks(guest_json: Path) -> list[dict[str, Any]]:
    facts = json.loads(guest_json.read_text())["disks"]
    if len(facts) != 2:
        raise ValueError(f"{guest_json}: the lab's guest has two disks, not {len(facts)}")
    return [
        {
            "file": str((guest_json.parent / disk["file"]).resolve()),
            "capacity_bytes": disk["capacity_bytes"],
            "thin": True,
        }
        for disk in facts
    ]


def _vm(name: str, number: int, **more: Any) -> dict[str, Any]:
    """Return a small Debian VM; `number` makes its MAC, address and UUIDs its own."""
    return {
        "name": name,
        "folder": "/DC0/vm/Production",
        "guestId": "debian12_64Guest",
        "guestFullName": "Debian GNU/Linux 12 (64-bit)",
        "firmware": "bios",
        "uuid": f"4210a000-5c1e-4a00-8000-{number:012x}",
        "instanceUuid": f"5010a000-5c1e-4a00-8000-{number:012x}",
        "cpus": 1,
        "memory_mb": 1024,
        "powerState": "poweredOff",
        "nics": [{"mac": f"00:50:56:9a:10:{number:02x}", "network": NETWORK, "type": "vmxnet3"}],
        "disks": [{"capacity_bytes": SMALL_DISK, "thin": True}],
        **more,
    }


def _web01(disks: list[dict[str, Any]]) -> dict[str, Any]:
    mac = "00:50:56:9a:10:01"
    return _vm(
        "web01",
        0x01,
        powerState="poweredOn",
        annotation="The lab's real guest: Debian 12 on pvscsi and vmxnet3.",
        disks=disks,
        guest={
            "hostName": "web01",
            "ipAddress": "192.0.2.10",
            "toolsRunningStatus": "guestToolsRunning",
            "net": [{"network": NETWORK, "mac": mac, "ipAddresses": ["192.0.2.10/24"]}],
        },
    )


def _off01() -> dict[str, Any]:
    return _vm("off01", 0x02, annotation="Powered off: for ExportVm. Its disk is web01's second one.")


def _refused() -> list[dict[str, Any]]:
    """VMs that a migration must refuse, each with an error that says why."""
    disk = {"capacity_bytes": SMALL_DISK}
    return [
        _vm("app01", 0x10, folder="/DC0/vm/Production/Blue"),
        _vm("app01", 0x11, folder="/DC0/vm/Production/Green"),
        _vm("independent01", 0x12, disks=[{**disk, "thin": True}, {**disk, "mode": "independent_persistent"}]),
        _vm("rdm01", 0x13, disks=[disk, {**disk, "rdm": True}]),
        _vm("shared01", 0x14, disks=[disk, {**disk, "sharing": "sharingMultiWriter"}]),
        _vm("lost01", 0x16, disks=[disk, {**disk, "missing": True}]),
        _vm("snap01", 0x15, snapshots=["before-upgrade"]),
    ]


def _cutover() -> list[dict[str, Any]]:
    """VMs that run, for a cutover: one whose guest shuts down, one whose guest does not, one without VMware Tools."""
    nics = [
        {"mac": "00:50:56:9a:10:30", "network": NETWORK, "type": "vmxnet3"},
        {"mac": "00:50:56:9a:11:30", "network": PRODUCTION, "type": "vmxnet3", "disconnected": True},
    ]
    tools = {"toolsRunningStatus": "guestToolsRunning"}
    running = {"folder": CUTOVER_FOLDER, "powerState": "poweredOn"}
    return [
        _vm("cutover01", 0x30, nics=nics, guest=tools, **running),
        _vm("deaf01", 0x31, guest={**tools, "ignores_shutdown": True}, **running),
        _vm("mute01", 0x32, guest={"toolsRunningStatus": "guestToolsNotRunning"}, **running),
    ]


def _ordinary() -> list[dict[str, Any]]:
    return [
        _vm(HOSTILE_NAME, 0x20, folder="/DC0/vm/Odd names %2f here"),
        _vm(
            "db01",
            0x21,
            firmware="efi",
            secureBoot=True,
            cpus=2,
            memory_mb=2048,
            nics=[{"mac": "00:50:56:9a:10:21", "network": PRODUCTION, "type": "vmxnet3"}],
            # fileSize 0 in the lease, as real servers often say.
            disks=[{"capacity_bytes": SMALL_DISK, "thin": True, "hide_file_size": True}] * 2,
        ),
        _vm("mail01", 0x22, disks=[{"capacity_bytes": SMALL_DISK, "controller": "lsilogic-sas"}]),
        _vm("diskless01", 0x23, disks=[]),
    ]
