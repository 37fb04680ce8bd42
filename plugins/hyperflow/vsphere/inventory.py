"""Finding a virtual machine and reading all that is known of it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Literal

from pyVmomi import vim

from hyperflow.vsphere.devices import Names, labels_of, read_cds, read_disks, read_nics
from hyperflow.vsphere.errors import Ambiguous, NotFound, PermissionMissing, VsphereError, moref_of
from hyperflow.vsphere.facts import SnapshotFacts, VmFacts
from hyperflow.vsphere.properties import Found, collector, first_refusal, list_all, retrieve
from hyperflow.vsphere.session import Session

# What inventory names may not hold is stored escaped (ManagedEntity.name in the vSphere API reference).
_ESCAPES = {"%2f": "/", "%5c": "\\", "%25": "%"}

_VM_PATHS = [
    "name",
    "parent",
    "config.annotation",
    "config.bootOptions",
    "config.changeVersion",
    "config.firmware",
    "config.ftInfo",
    "config.guestFullName",
    "config.guestId",
    "config.hardware",
    "config.instanceUuid",
    "config.keyId",
    "config.template",
    "config.uuid",
    "config.version",
    "guest.hostName",
    "guest.net",
    "guest.toolsRunningStatus",
    "guest.toolsVersion",
    "runtime.connectionState",
    "runtime.consolidationNeeded",
    "runtime.host",
    "runtime.powerState",
    "snapshot",
]


SelectorKind = Literal["name", "inventory_path", "moref"]


@dataclass(frozen=True)
class VmName:
    """A virtual machine of the inventory: its MoRef and its name, escapes undone."""

    moref: str
    name: str


def list_vms(session: Session) -> list[VmName]:
    """Every virtual machine this user may see, in no particular order."""
    found = list_all(session, vim.VirtualMachine, ["name"])
    return [VmName(each.moref, unescaped(str(each.get("name", "")))) for each in found]


def find_vm(session: Session, selector: str, *, kind: SelectorKind | None = None, datacenter: str | None = None) -> str:
    """The MoRef of the one virtual machine that a person means.

    :param selector: a name (``web01``), an inventory path (``/DC0/vm/Production/web01``, a slash within a
        name as ``%2f``), or a MoRef (``vm-42``)
    :param kind: which of the three it is, where that is known: a VM may be called ``vm-42``
    :param datacenter: take a name of this datacenter only
    :raises NotFound: with names that are near
    :raises Ambiguous: with the inventory path and MoRef of each
    """
    if selector.startswith("/"):
        return _find_by_path(session, selector)
    machines = list_vms(session)
    if kind == "moref":
        matches = [vm for vm in machines if selector == vm.moref]
    else:
        matches = [vm for vm in machines if selector == vm.name or (kind is None and selector == vm.moref)]
    # A name may itself hold an escape (it was typed as vCenter shows it in a path).
    if not matches and kind != "moref":
        matches = [vm for vm in machines if vm.name == unescaped(selector)]
    if matches and kind == "name" and datacenter is not None:
        matches = _in_datacenter(session, matches, datacenter)
    if not matches:
        raise NotFound(_not_found(session, selector, [vm.name for vm in machines]))
    if len(matches) > 1:
        paths = inventory_paths(session, [vm.moref for vm in matches])
        shown = ", ".join(f"{path} ({moref})" for moref, path in sorted(paths.items(), key=lambda item: item[1]))
        raise Ambiguous(
            f"{len(matches)} virtual machines at {session.host} are called {selector!r}: {shown}. Name the "
            "one that is meant by its inventory path or MoRef"
        )
    return matches[0].moref


def _in_datacenter(session: Session, machines: list[VmName], datacenter: str) -> list[VmName]:
    paths = inventory_paths(session, [vm.moref for vm in machines])
    # A datacenter may lie in folders: it is what stands before the datacenter's own folder "vm".
    return [vm for vm in machines if f"/{datacenter}/vm/" in paths[vm.moref]]


def inventory_paths(session: Session, morefs: Sequence[str]) -> dict[str, str]:
    """The inventory path of each virtual machine, such as ``/DC0/vm/Production/web01``."""
    start = [session.object(vim.VirtualMachine, moref) for moref in morefs]
    kinds: dict[type[Any], list[str]] = {
        vim.VirtualMachine: ["name", "parent", "parentVApp"],
        **_ANCESTOR_PATHS,
    }
    by_moref = {each.moref: each for each in retrieve(session, start, kinds, _ancestor_traversals())}
    return {moref: _path(by_moref, moref) for moref in morefs}


def read_vm(session: Session, moref: str) -> VmFacts:
    """All facts of a virtual machine, in two round trips.

    :raises NotFound: when it is gone
    :raises VsphereError: when vCenter itself has no configuration of it (an orphaned or inaccessible VM)
    """
    start = session.object(vim.VirtualMachine, moref)
    kinds: dict[type[Any], list[str]] = {
        vim.VirtualMachine: [*_VM_PATHS, "parentVApp"],
        **_ANCESTOR_PATHS,
        vim.Datastore: ["name"],
        vim.Network: ["name"],
        vim.dvs.DistributedVirtualPortgroup: ["name", "key"],
        vim.OpaqueNetwork: ["name", "summary"],
    }
    reached = [*_ancestor_traversals(), _from_vm("datastore"), _from_vm("network")]
    by_moref = {each.moref: each for each in retrieve(session, [start], kinds, reached)}
    vm = by_moref[moref]
    if vm.get("config.hardware") is None:
        raise first_refusal(session, vm) or VsphereError(
            f"{session.host} has no configuration of {unescaped(str(vm.get('name', moref)))} ({moref}); its "
            f"state is {vm.get('runtime.connectionState')}. See that its host and datastore are up and that "
            "vCenter shows the VM as connected"
        )
    return _facts(vm, by_moref, _host_name(session, vm))


def unescaped(name: str) -> str:
    """An inventory name as a person reads it: %2f, %5c and %25 undone."""
    return re.sub("%2f|%5c|%25", lambda match: _ESCAPES[match.group().lower()], name, flags=re.IGNORECASE)


def _find_by_path(session: Session, path: str) -> str:
    found = session.call(lambda: session.content.searchIndex.FindByInventoryPath(path.strip("/")))
    if isinstance(found, vim.VirtualMachine):
        return moref_of(found)
    name = unescaped(path.rstrip("/").rsplit("/", 1)[-1])
    machines = list_vms(session)
    same = [vm.moref for vm in machines if vm.name == name]
    elsewhere = sorted(inventory_paths(session, same).values()) if same else []
    if found is not None:
        raise NotFound(
            f"{path} at {session.host} is a {type(found)._wsdlName}, not a virtual machine. Name a virtual "
            "machine within it"
        )
    if elsewhere:
        raise NotFound(f"no virtual machine {path} at {session.host}; one of that name is {', '.join(elsewhere)}")
    raise NotFound(_not_found(session, path, [vm.name for vm in machines]))


def _not_found(session: Session, selector: str, names: list[str]) -> str:
    wanted = unescaped(selector.rstrip("/").rsplit("/", 1)[-1])
    folded = {name.casefold(): name for name in names}
    near = [folded[match] for match in difflib.get_close_matches(wanted.casefold(), folded, n=5, cutoff=0.6)]
    hint = f"Near names: {', '.join(map(repr, near))}." if near else f"This user sees {len(names)} virtual machines."
    return (
        f"no virtual machine {selector!r} at {session.host}. {hint} Names are told apart by case; a VM that "
        "exists but is not seen lacks the role on it (docs/vcenter.md)"
    )


# Folder, Datacenter and VirtualApp are all ManagedEntity; a vApp has its folder in a property of its own.
_ANCESTOR_PATHS: dict[type[Any], list[str]] = {
    vim.Folder: ["name", "parent"],
    vim.Datacenter: ["name", "parent"],
    vim.VirtualApp: ["name", "parentFolder", "parentVApp"],
}


def _ancestor_traversals() -> list[Any]:
    """Selection specs from a VM up to the root folder."""
    names = ["parent", "vapp", "vapp-folder", "vapp-vapp"]
    again = [collector.SelectionSpec(name=name) for name in names]
    steps = [
        (vim.ManagedEntity, "parent"),
        (vim.VirtualMachine, "parentVApp"),
        (vim.VirtualApp, "parentFolder"),
        (vim.VirtualApp, "parentVApp"),
    ]
    return [
        collector.TraversalSpec(name=name, type=kind, path=path, skip=False, selectSet=again)
        for name, (kind, path) in zip(names, steps, strict=True)
    ]


def _from_vm(path: str) -> Any:
    return collector.TraversalSpec(name=f"vm-{path}", type=vim.VirtualMachine, path=path, skip=False)


def _above(found: dict[str, Found], moref: str) -> list[Found]:
    """The object and what holds it, up to and without the root folder."""
    chain: list[Found] = []
    while moref in found and found[moref] not in chain:
        each = found[moref]
        chain.append(each)
        up = each.get("parentVApp") or each.get("parentFolder") or each.get("parent")
        moref = moref_of(up) if up is not None else ""
    at_root = chain and chain[-1].kind == "Folder" and chain[-1].get("parent") is None
    return chain[:-1] if at_root else chain


def _path(found: dict[str, Found], moref: str) -> str:
    return "/" + "/".join(str(each.get("name", each.moref)) for each in reversed(_above(found, moref)))


def _host_name(session: Session, vm: Found) -> str | None:
    """The name of the VM's host. ``runtime.host`` is nested, which a traversal may not name; so a second
    round trip.
    """
    reference = vm.get("runtime.host")
    if reference is None:
        return None
    try:
        (host,) = retrieve(session, [reference], {vim.HostSystem: ["name"]})
    except (NotFound, PermissionMissing):  # a user that may see the VM need not see its host
        return None
    name = host.get("name")
    return str(name) if name else None


def _facts(vm: Found, found: dict[str, Found], host: str | None) -> VmFacts:
    hardware = vm.get("config.hardware")
    boot = vm.get("config.bootOptions")
    devices = list(hardware.device or [])
    names = _names(found)
    boot_keys = [
        entry.deviceKey
        for entry in (getattr(boot, "bootOrder", None) or [])
        if isinstance(entry, vim.vm.BootOptions.BootableDiskDevice)
    ]
    datacenter = next((each for each in _above(found, vm.moref) if each.kind == "Datacenter"), None)
    return VmFacts(
        moref=vm.moref,
        name=unescaped(str(vm.get("name", vm.moref))),
        inventory_path=_path(found, vm.moref),
        datacenter=str(datacenter.get("name")) if datacenter else None,
        host=host,
        connection_state=str(vm.get("runtime.connectionState", "unknown")),
        instance_uuid=vm.get("config.instanceUuid"),
        bios_uuid=vm.get("config.uuid"),
        guest_id=vm.get("config.guestId"),
        guest_full_name=vm.get("config.guestFullName"),
        hardware_version=vm.get("config.version"),
        firmware={"bios": "bios", "efi": "uefi"}.get(str(vm.get("config.firmware")), "unknown"),
        secure_boot=bool(getattr(boot, "efiSecureBootEnabled", False)),
        cpus=int(hardware.numCPU),
        cores_per_socket=int(hardware.numCoresPerSocket or 1),
        memory_mb=int(hardware.memoryMB),
        power_state=str(vm.get("runtime.powerState", "unknown")),
        template=bool(vm.get("config.template", False)),
        change_version=vm.get("config.changeVersion"),
        annotation=str(vm.get("config.annotation", "")),
        tools_running=vm.get("guest.toolsRunningStatus") == "guestToolsRunning",
        tools_version=vm.get("guest.toolsVersion"),
        guest_hostname=vm.get("guest.hostName"),
        nics=read_nics(devices, vm.get("guest.net", []), names),
        disks=read_disks(devices, boot_keys, names),
        snapshots=read_snapshots(vm.get("snapshot")),
        cds=read_cds(devices),
        has_vtpm=bool(labels_of(devices, "VirtualTPM")),
        encrypted=vm.get("config.keyId") is not None,
        fault_tolerance=vm.get("config.ftInfo") is not None,
        consolidation_needed=bool(vm.get("runtime.consolidationNeeded", False)),
        passthrough=labels_of(devices, "VirtualPCIPassthrough", "VirtualSCSIPassthrough"),
        usb_devices=labels_of(devices, "VirtualUSB"),
        other_devices=labels_of(
            devices,
            "VirtualSerialPort",
            "VirtualParallelPort",
            "VirtualSoundCard",
            "VirtualPrecisionClock",
            "VirtualWDT",
        ),
    )


def _names(found: dict[str, Found]) -> Names:
    networks: dict[str, str] = {}
    datastores: dict[str, str] = {}
    for each in found.values():
        if each.get("name") is None:  # no permission on it; what the device itself says is better than a MoRef
            continue
        name = unescaped(str(each.get("name")))
        if each.kind == "Datastore":
            datastores[each.moref] = name
        elif each.kind in ("Network", "DistributedVirtualPortgroup", "OpaqueNetwork"):
            networks[each.moref] = name
            keys = (each.get("key"), getattr(each.get("summary"), "opaqueNetworkId", None))
            networks |= {str(key): name for key in keys if key}
    return Names(networks, datastores)


def read_snapshots(tree: Any) -> tuple[SnapshotFacts, ...]:
    """The snapshots of a VM, parents before children, from its ``snapshot`` property (None when it has
    none).
    """
    snapshots: list[SnapshotFacts] = []
    waiting = list(getattr(tree, "rootSnapshotList", None) or [])
    while waiting:
        node = waiting.pop(0)
        created = node.createTime.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        name, description = unescaped(str(node.name)), str(node.description or "")
        snapshots.append(SnapshotFacts(moref_of(node.snapshot), name, description, created))
        waiting = [*(node.childSnapshotList or []), *waiting]
    return tuple(snapshots)
