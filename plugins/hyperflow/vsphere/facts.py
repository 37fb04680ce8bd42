"""What is known of a virtual machine: plain data that goes through JSON and back, without pyVmomi."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class NicFacts:
    """A network adapter.

    ``network`` is the name of the port group, or None when the adapter has none; ``connected`` whether it is
    connected now (always false when the VM is off), ``connect_at_power_on`` whether it will be; ``type`` is
    one of vmxnet3, vmxnet2, vmxnet, e1000, e1000e, pcnet32, sriov, unknown. ``addresses`` come from VMware
    Tools, as ``192.0.2.10/24``.
    """

    key: int
    label: str
    mac: str
    network: str | None
    connected: bool
    connect_at_power_on: bool
    type: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class DiskFacts:
    """A virtual disk. ``id`` is ``disk-0`` for the disk VMware boots from, then in VMware's order.

    ``bus`` is scsi, sata, ide, nvme or unknown; ``bus_number`` the controller's number on that bus; ``unit``
    the place on the controller. ``controller`` is its type's name in the API
    (``ParaVirtualSCSIController``), which lease URLs repeat. ``mode`` is VMware's disk mode (persistent,
    independent_persistent, ...). ``sharing`` is none or multi-writer; ``bus_sharing`` is none, virtual or
    physical. ``backing`` is flat, sparse, se-sparse, rdm-virtual, rdm-physical, raw, local-pmem or unknown.
    ``thin`` is None where the backing does not say.
    """

    id: str
    key: int
    label: str
    bus: str
    bus_number: int
    unit: int
    controller: str
    capacity_bytes: int
    datastore: str | None
    file: str | None
    mode: str
    sharing: str
    bus_sharing: str
    backing: str
    uuid: str | None
    thin: bool | None
    is_rdm: bool
    encrypted: bool


@dataclass(frozen=True)
class SnapshotFacts:
    """A snapshot of a virtual machine; ``created`` is UTC, as ``2026-11-23T21:00:00Z``."""

    moref: str
    name: str
    description: str
    created: str


@dataclass(frozen=True)
class CdFacts:
    """A CD drive; ``iso`` is the datastore path of an inserted image, or None."""

    label: str
    iso: str | None
    connected: bool


@dataclass(frozen=True)
class VmFacts:
    """A virtual machine as vCenter describes it.

    ``firmware`` is bios, uefi or unknown (vSphere's ``efi`` is written ``uefi``). ``power_state`` is
    poweredOn, poweredOff or suspended. ``tools_running`` is VMware Tools' answer at this moment.
    ``change_version`` changes when the configuration does. ``inventory_path`` keeps vCenter's escapes (%2f),
    ``name`` does not. ``disks`` are in the order VMware boots them, ``nics`` in the order of their device
    keys.
    """

    moref: str
    name: str
    inventory_path: str
    datacenter: str | None
    host: str | None
    connection_state: str
    instance_uuid: str | None
    bios_uuid: str | None
    guest_id: str | None
    guest_full_name: str | None
    hardware_version: str | None
    firmware: str
    secure_boot: bool
    cpus: int
    cores_per_socket: int
    memory_mb: int
    power_state: str
    template: bool
    change_version: str | None
    annotation: str
    tools_running: bool
    tools_version: str | None
    guest_hostname: str | None
    nics: tuple[NicFacts, ...] = ()
    disks: tuple[DiskFacts, ...] = ()
    snapshots: tuple[SnapshotFacts, ...] = ()
    cds: tuple[CdFacts, ...] = ()
    has_vtpm: bool = False
    encrypted: bool = False
    fault_tolerance: bool = False
    consolidation_needed: bool = False
    passthrough: tuple[str, ...] = ()
    usb_devices: tuple[str, ...] = ()
    other_devices: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The facts as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The facts that :meth:`to_json` wrote.

        :raises KeyError: when one is missing
        """
        return typing.cast(Self, _read(cls, document))


def _read(kind: Any, value: Any) -> Any:
    """Rebuild dataclasses and tuples, which JSON writes as objects and lists."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{field.name: _read(hints[field.name], value[field.name]) for field in dataclasses.fields(kind)})
    if typing.get_origin(kind) is tuple and not isinstance(kind, types.UnionType):
        inner = typing.get_args(kind)[0]
        return tuple(_read(inner, each) for each in value)
    return value
