"""Virtual devices as pyVmomi gives them, read into facts. Nothing here talks to a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from hyperflow.vsphere.facts import CdFacts, DiskFacts, NicFacts

device_types: Any = vim.vm.device

# Forklift orders the same way (pkg/controller/plan/adapter/vsphere, sorting of disks by bus), as does
# libvirt's VMX driver: a guest that sees several buses boots from the first SCSI disk unless its boot order
# says otherwise.
BUS_ORDER = ("scsi", "sata", "ide", "nvme", "unknown")

_SHARED_BUS = {"noSharing": "none", "virtualSharing": "virtual", "physicalSharing": "physical"}


@dataclass(frozen=True)
class Names:
    """Names of what devices refer to: networks and datastores by MoRef, and the keys of distributed port
    groups.
    """

    networks: Mapping[str, str]
    datastores: Mapping[str, str]


@dataclass(frozen=True)
class _Controller:
    type: str
    bus: str
    bus_number: int
    sharing: str


def read_disks(devices: Sequence[Any], boot_order: Iterable[int], names: Names) -> tuple[DiskFacts, ...]:
    """The disks, in the order VMware boots from them.

    :param devices: ``config.hardware.device``
    :param boot_order: keys of disks that the VM's boot options name, first first
    """
    controllers: dict[int | None, _Controller] = {
        device.key: _controller(device) for device in devices if isinstance(device, device_types.VirtualController)
    }
    disks = [device for device in devices if isinstance(device, device_types.VirtualDisk)]
    nowhere = _Controller("", "unknown", 0, "none")
    first = {key: place for place, key in enumerate(boot_order)}

    def order(disk: Any) -> tuple[int, int, int, int, int]:
        controller = controllers.get(disk.controllerKey, nowhere)
        bus = BUS_ORDER.index(controller.bus)
        return (first.get(disk.key, len(first)), bus, controller.bus_number, disk.unitNumber or 0, disk.key)

    return tuple(
        _disk(f"disk-{place}", disk, controllers.get(disk.controllerKey, nowhere), names)
        for place, disk in enumerate(sorted(disks, key=order))
    )


def read_nics(devices: Sequence[Any], guest_nics: Sequence[Any], names: Names) -> tuple[NicFacts, ...]:
    """The network adapters by device key, with the addresses that VMware Tools reports for them.

    :param guest_nics: ``guest.net``
    """
    nics = [device for device in devices if isinstance(device, device_types.VirtualEthernetCard)]
    return tuple(_nic(nic, guest_nics, names) for nic in sorted(nics, key=lambda nic: int(nic.key)))


def read_cds(devices: Sequence[Any]) -> tuple[CdFacts, ...]:
    """The CD drives and what is in them."""
    cds = [device for device in devices if isinstance(device, device_types.VirtualCdrom)]
    return tuple(CdFacts(_label(cd), _iso(cd), _connected(cd)) for cd in cds)


def labels_of(devices: Sequence[Any], *kinds: str) -> tuple[str, ...]:
    """Labels of the devices of the types named (``VirtualUSB``); types pyVmomi does not know are left out."""
    wanted = tuple(getattr(device_types, kind) for kind in kinds if hasattr(device_types, kind))
    return tuple(_label(device) for device in devices if isinstance(device, wanted))


def _disk(disk_id: str, disk: Any, controller: _Controller, names: Names) -> DiskFacts:
    backing = disk.backing
    file = getattr(backing, "fileName", None) or None
    kind = _backing_kind(backing)
    return DiskFacts(
        id=disk_id,
        key=int(disk.key),
        label=_label(disk),
        bus=controller.bus,
        bus_number=controller.bus_number,
        unit=int(disk.unitNumber or 0),
        controller=controller.type,
        capacity_bytes=int(disk.capacityInBytes or (disk.capacityInKB or 0) * 1024),
        datastore=_datastore(backing, file, names),
        file=file,
        mode=str(getattr(backing, "diskMode", None) or "unknown"),
        sharing="multi-writer" if getattr(backing, "sharing", None) == "sharingMultiWriter" else "none",
        bus_sharing=controller.sharing,
        backing=kind,
        uuid=getattr(backing, "uuid", None) or None,
        thin=getattr(backing, "thinProvisioned", None),
        is_rdm=kind.startswith("rdm"),
        encrypted=getattr(backing, "keyId", None) is not None,
    )


def _controller(device: Any) -> _Controller:
    if isinstance(device, device_types.VirtualSCSIController):
        bus = "scsi"
    elif isinstance(device, device_types.VirtualSATAController):
        bus = "sata"
    elif isinstance(device, device_types.VirtualIDEController):
        bus = "ide"
    elif isinstance(device, device_types.VirtualNVMEController):
        bus = "nvme"
    else:
        bus = "unknown"
    sharing = _SHARED_BUS.get(str(getattr(device, "sharedBus", None) or "noSharing"), "physical")
    return _Controller(str(type(device)._wsdlName), bus, int(device.busNumber or 0), sharing)


def _backing_kind(backing: Any) -> str:
    disk = device_types.VirtualDisk
    if isinstance(backing, disk.RawDiskMappingVer1BackingInfo):
        return "rdm-physical" if backing.compatibilityMode == "physicalMode" else "rdm-virtual"
    kinds = (
        (disk.SeSparseBackingInfo, "se-sparse"),
        (disk.SparseVer1BackingInfo, "sparse"),
        (disk.SparseVer2BackingInfo, "sparse"),
        (disk.RawDiskVer2BackingInfo, "raw"),
        (disk.PartitionedRawDiskVer2BackingInfo, "raw"),
        (disk.LocalPMemBackingInfo, "local-pmem"),
        (disk.FlatVer1BackingInfo, "flat"),
        (disk.FlatVer2BackingInfo, "flat"),
    )
    return next((name for kind, name in kinds if isinstance(backing, kind)), "unknown")


def _datastore(backing: Any, file: str | None, names: Names) -> str | None:
    reference = getattr(backing, "datastore", None)
    if reference is not None and reference._moId in names.datastores:
        return names.datastores[reference._moId]
    if file and file.startswith("[") and "] " in file:  # "[datastore1] web01/web01.vmdk"
        return file[1 : file.index("] ")] or None
    return None


def _nic(nic: Any, guest_nics: Sequence[Any], names: Names) -> NicFacts:
    mac = str(nic.macAddress or "").lower()
    connectable = nic.connectable
    return NicFacts(
        key=int(nic.key),
        label=_label(nic),
        mac=mac,
        network=_network(nic.backing, names),
        connected=bool(connectable and connectable.connected),
        connect_at_power_on=bool(connectable and connectable.startConnected),
        type=_nic_type(nic),
        addresses=_addresses(int(nic.key), mac, guest_nics),
    )


def _nic_type(nic: Any) -> str:
    kinds = {  # the most derived type first: vmxnet2 and vmxnet3 are both kinds of vmxnet
        "VirtualVmxnet3": "vmxnet3",
        "VirtualVmxnet2": "vmxnet2",
        "VirtualVmxnet": "vmxnet",
        "VirtualE1000e": "e1000e",
        "VirtualE1000": "e1000",
        "VirtualPCNet32": "pcnet32",
        "VirtualSriovEthernetCard": "sriov",
    }
    return next((kind for name, kind in kinds.items() if isinstance(nic, getattr(device_types, name))), "unknown")


def _network(backing: Any, names: Names) -> str | None:
    port = getattr(backing, "port", None)
    keys = [
        getattr(port, "portgroupKey", None),
        getattr(getattr(backing, "network", None), "_moId", None),
        getattr(backing, "opaqueNetworkId", None),
    ]
    for key in keys:
        if key is not None and key in names.networks:
            return names.networks[key]
    return getattr(backing, "deviceName", None) or next((str(key) for key in keys if key), None)


def _addresses(key: int, mac: str, guest_nics: Sequence[Any]) -> tuple[str, ...]:
    for guest in guest_nics:
        if guest.deviceConfigId == key or (guest.deviceConfigId == -1 and str(guest.macAddress).lower() == mac):
            if guest.ipConfig is not None and guest.ipConfig.ipAddress:
                return tuple(f"{each.ipAddress}/{each.prefixLength}" for each in guest.ipConfig.ipAddress)
            return tuple(str(address) for address in guest.ipAddress or [])
    return ()


def _iso(cd: Any) -> str | None:
    if isinstance(cd.backing, device_types.VirtualCdrom.IsoBackingInfo):
        return str(cd.backing.fileName or "") or None
    return None


def _connected(device: Any) -> bool:
    return bool(device.connectable and device.connectable.connected)


def _label(device: Any) -> str:
    info = device.deviceInfo
    return str(info.label) if info is not None and info.label else f"device {device.key}"
