"""What somebody else did to a virtual machine between two looks at it.

Drift is what makes a copy other than its source, or what makes the source another machine than the one that was
planned: its name and place in the inventory, its power, its disks (which, where, how large), and snapshots that are not
ours. Another ESXi host is told and is no drift, unless the plan wants it to be: DRS moves machines by itself, and no
byte changes.

``config.changeVersion`` alone is a poor witness: it changes with anything in the configuration, our own snapshots and
the disconnecting of adapters included, and it does not change with what the guest writes. So it counts only where
nothing else was found, and where we made or removed no snapshot since: then somebody changed the configuration in a way
that is not looked at here (CPUs, memory, devices, notes). Take the first look after one's own changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypedDict

from pyVmomi import vim

from hyperflow.vsphere.devices import Names, read_disks
from hyperflow.vsphere.errors import NotFound, PermissionMissing, VsphereError, moref_of
from hyperflow.vsphere.facts import DiskFacts, SnapshotFacts, VmFacts
from hyperflow.vsphere.inventory import inventory_paths, read_snapshots, unescaped
from hyperflow.vsphere.properties import first_refusal, retrieve
from hyperflow.vsphere.session import Session

State = dict[str, Any]  # what state() gives: plain JSON

_PATHS = [
    "name",
    "config.changeVersion",
    "config.hardware.device",
    "runtime.host",
    "runtime.powerState",
    "snapshot",
]


def other_host(before: State, now: State) -> str | None:
    """Say that the VM runs on another ESXi host than before; None where it does not, or where that is not known."""
    was, host = before.get("host"), now.get("host")
    if not was or not host or was["moref"] == host["moref"]:
        return None
    return f"it runs on ESXi host {host['name']} now, and ran on {was['name']}, whose limit counts its export"


class Difference(TypedDict):
    """One thing that is other than it was.

    ``kind`` is stable: name, path, power, disk, disk-file, snapshot, host, config.
    """

    kind: str
    sentence: str


def state(session: Session, moref: str) -> State:
    """What is to be compared later, as plain JSON.

    ``{"change_version", "name", "inventory_path", "host": {"moref", "name"} or None, "power_state", "disks": [{"key",
    "label", "uuid", "file", "capacity_bytes"}], "snapshots": [{"name", "moref"}], "current_snapshot": MoRef or None}``.
    ``uuid`` and ``file`` are those of the disk's base: a snapshot lays a delta file over it, and leaves the base what
    it was. All but the path and the host's name are read in one answer.

    :raises NotFound: when the VM is gone
    """
    (vm,) = retrieve(session, [session.object(vim.VirtualMachine, moref)], {vim.VirtualMachine: _PATHS})
    devices = vm.get("config.hardware.device")
    if devices is None:
        raise first_refusal(session, vm) or VsphereError(
            f"{session.host} has no configuration of {moref}. See that its host and datastore are up"
        )
    backings = {each.key: _base(each.backing) for each in devices if isinstance(each, vim.vm.device.VirtualDisk)}
    disks = [
        {
            **_disk(disk),
            "uuid": getattr(backings[disk.key], "uuid", None),
            "file": getattr(backings[disk.key], "fileName", None),
        }
        for disk in read_disks(devices, (), Names({}, {}))
    ]
    tree = vm.get("snapshot")
    current = getattr(tree, "currentSnapshot", None)
    return {
        "change_version": vm.get("config.changeVersion"),
        "name": unescaped(str(vm.get("name", moref))),
        "inventory_path": inventory_paths(session, [moref])[moref],
        "host": _host(session, vm.get("runtime.host")),
        "power_state": str(vm.get("runtime.powerState", "unknown")),
        "disks": disks,
        "snapshots": [_snapshot(each) for each in read_snapshots(tree)],
        "current_snapshot": None if current is None else moref_of(current),
    }


def state_of(facts: VmFacts) -> State:
    """The same of facts that were read before: without host and current snapshot, and with the disks' present files."""
    return {
        "change_version": facts.change_version,
        "name": facts.name,
        "inventory_path": facts.inventory_path,
        "host": None,
        "power_state": facts.power_state,
        "disks": [_disk(disk) for disk in facts.disks],
        "snapshots": [_snapshot(each) for each in facts.snapshots],
        "current_snapshot": None,
    }


def differences(
    before: State, now: State, ours: Collection[str] = (), *, host_counts: bool = False
) -> list[Difference]:
    """What is other than it was, a sentence each; empty when nothing that counts is (see above what counts).

    :param before: of :func:`state`, as it came out of JSON; taken before our snapshots, or between them
    :param now: the same, at this moment
    :param ours: MoRefs or names of the snapshots that we made or removed since ``before``
    :param host_counts: whether another ESXi host is a difference
    """
    told = [*_place(before, now), *_power(before, now), *_disks(before, now), *_snapshots(before, now, set(ours))]
    moved = other_host(before, now) if host_counts else None
    if moved is not None:
        told.append(Difference(kind="host", sentence=moved))
    if not told and not ours and before["change_version"] != now["change_version"]:
        told.append(
            Difference(
                kind="config",
                sentence="the VM's configuration was changed, in something else than its name, power, disks and "
                "snapshots: see its tasks and events in vCenter",
            )
        )
    return told


def _place(before: State, now: State) -> list[Difference]:
    if now["name"] != before["name"]:
        sentence = f"the VM was renamed from {before['name']!r} to {now['name']!r}: it is migrated under its old name"
        return [Difference(kind="name", sentence=sentence)]
    if now["inventory_path"] != before["inventory_path"]:
        sentence = f"the VM was moved from {before['inventory_path']} to {now['inventory_path']}"
        return [Difference(kind="path", sentence=sentence)]
    return []


def _power(before: State, now: State) -> list[Difference]:
    if now["power_state"] == before["power_state"]:
        return []
    sentence = (
        f"the VM was {before['power_state']} and is {now['power_state']} now: what was written in it since its "
        "snapshot is not in the migrated disks"
    )
    return [Difference(kind="power", sentence=sentence)]


def _disks(before: State, now: State) -> list[Difference]:
    earlier, present = ({disk["key"]: disk for disk in each["disks"]} for each in (before, now))
    told = []
    for key, disk in present.items():
        if key not in earlier:
            told.append(f"{disk['label']} was added after the snapshot: it is not migrated. Start a new run for it")
    for key, disk in earlier.items():
        if key not in present:
            told.append(f"{disk['label']} was taken from the VM after the snapshot: it is migrated all the same")
        elif _replaced(disk, present[key]):
            told.append(
                f"{disk['label']} is another disk than it was (UUID {present[key]['uuid']}, was {disk['uuid']}): the "
                "old one is migrated. Start a new run for the new one"
            )
        elif present[key]["capacity_bytes"] != disk["capacity_bytes"]:
            told.append(
                f"{disk['label']} had {disk['capacity_bytes']} bytes and has {present[key]['capacity_bytes']} "
                "now: it is migrated as it was. Start a new run for the new size"
            )
    files = [
        f"{disk['label']} was in {disk['file']} and is in {present[key]['file']} now: was it moved or replaced?"
        for key, disk in earlier.items()
        if key in present and not _replaced(disk, present[key]) and disk["file"] != present[key]["file"]
    ]
    return [Difference(kind="disk", sentence=each) for each in told] + [
        Difference(kind="disk-file", sentence=each) for each in files
    ]


def _replaced(earlier: Mapping[str, Any], present: Mapping[str, Any]) -> bool:
    return bool(earlier["uuid"] and present["uuid"] and earlier["uuid"] != present["uuid"])


def _snapshots(before: State, now: State, ours: set[str]) -> list[Difference]:
    earlier, present = ({each["moref"]: each for each in look["snapshots"]} for look in (before, now))
    told = [
        f"the snapshot {each['name']!r} ({moref}) was taken of the VM, and not by this migration"
        for moref, each in present.items()
        if moref not in earlier and not ours & {moref, each["name"]}
    ]
    told += [
        f"the snapshot {each['name']!r} ({moref}) was removed from the VM, and not by this migration"
        for moref, each in earlier.items()
        if moref not in present and not ours & {moref, each["name"]}
    ]
    if not told and _reverted(before, now, ours, present):
        told.append(
            f"the VM was reverted to another snapshot (it was at {before['current_snapshot']}, and is at "
            f"{now['current_snapshot']}): its disks hold other data than those that were read"
        )
    return [Difference(kind="snapshot", sentence=each) for each in told]


def _reverted(before: State, now: State, ours: set[str], present: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether the VM stands on a snapshot that is neither the one it stood on nor one of ours."""
    current = now["current_snapshot"]
    if current == before["current_snapshot"] or current is None:
        return False
    return not ours & {current, present.get(current, {"name": ""})["name"]}


def _disk(disk: DiskFacts) -> dict[str, Any]:
    return {
        "key": disk.key,
        "label": disk.label,
        "uuid": disk.uuid,
        "file": disk.file,
        "capacity_bytes": disk.capacity_bytes,
    }


def _snapshot(snapshot: SnapshotFacts) -> dict[str, str]:
    return {"name": snapshot.name, "moref": snapshot.moref}


def _base(backing: Any) -> Any:
    """The file that a disk's deltas lie on."""
    while getattr(backing, "parent", None) is not None:
        backing = backing.parent
    return backing


def _host(session: Session, reference: Any) -> dict[str, str | None] | None:
    if reference is None:
        return None
    try:
        (host,) = retrieve(session, [reference], {vim.HostSystem: ["name"]})
    except (NotFound, PermissionMissing):  # a user that may see the VM need not see its host
        return {"moref": moref_of(reference), "name": None}
    name = host.get("name")
    return {"moref": moref_of(reference), "name": None if name is None else str(name)}
