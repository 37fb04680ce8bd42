"""Where virtual machines are and how large they are: what waves are planned with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyVmomi import vim

from hyperflow.vsphere.errors import moref_of
from hyperflow.vsphere.inventory import inventory_paths, unescaped
from hyperflow.vsphere.properties import Found, retrieve
from hyperflow.vsphere.session import Session

_PATHS = ["name", "runtime.host", "runtime.powerState", "summary.storage", "config.hardware.device"]


def read_placements(session: Session, morefs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read name, folder, ESXi host, power state and sizes of several VMs, in three round trips.

    :return: by MoRef: ``name``, ``inventory_path``, ``host`` (its name, None where this user may not see it),
        ``power_state``, ``capacity_bytes`` (of all disks), ``used_bytes`` (on the datastores, None where not told)
    :raises NotFound: when one of them is gone
    """
    if not morefs:
        return {}
    start = [session.object(vim.VirtualMachine, moref) for moref in morefs]
    found = {each.moref: each for each in retrieve(session, start, {vim.VirtualMachine: _PATHS})}
    paths = inventory_paths(session, morefs)
    hosts = _host_names(session, list(found.values()))
    return {moref: _placement(found[moref], paths[moref], hosts) for moref in morefs}


def _placement(vm: Found, path: str, hosts: dict[str, str]) -> dict[str, Any]:
    devices = vm.get("config.hardware.device") or []
    disks = [device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)]
    storage = vm.get("summary.storage")
    host = vm.get("runtime.host")
    return {
        "name": unescaped(str(vm.get("name", ""))),
        "inventory_path": path,
        "host": hosts.get(moref_of(host)) if host is not None else None,
        "power_state": str(vm.get("runtime.powerState", "unknown")),
        "capacity_bytes": sum(int(disk.capacityInBytes or disk.capacityInKB * 1024) for disk in disks),
        "used_bytes": int(storage.committed) if storage is not None and storage.committed else None,
    }


def _host_names(session: Session, vms: Sequence[Found]) -> dict[str, str]:
    hosts = {moref_of(host): host for vm in vms if (host := vm.get("runtime.host")) is not None}
    if not hosts:
        return {}
    found = retrieve(session, hosts.values(), {vim.HostSystem: ["name"]})
    return {each.moref: str(each.get("name", each.moref)) for each in found}
