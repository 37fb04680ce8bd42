"""What is known of a VM and its exported disks: the input of the builders of manifest and OVF descriptor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NicFacts:
    """A network adapter.

    :param id: a name unique in the VM, as ``nic-0``
    :param mac: six pairs of hexadecimal digits
    :param network: the network's name in vSphere
    """

    id: str
    mac: str
    network: str


@dataclass(frozen=True)
class DiskFacts:
    """A virtual disk.

    :param id: a name unique in the VM, as ``disk-0``
    :param label: what vSphere calls it, as ``Hard disk 1``
    :param capacity_bytes: size the guest sees
    :param boot_order: place in the order the firmware tries, from 0
    """

    id: str
    label: str
    capacity_bytes: int
    boot_order: int


@dataclass(frozen=True)
class VmFacts:
    """A VM at its source.

    :param provider: ``vsphere``
    :param vm_id: its MoRef
    :param vm_name: its name
    :param datacenter: the datacenter's name
    :param cpu: virtual CPUs
    :param memory_mb: MiB
    :param firmware: as vSphere says, ``bios`` or ``efi``
    :param secureboot: whether UEFI Secure Boot is on
    :param guest_id: as ``debian12_64Guest``
    :param guest_full_name: as ``Debian GNU/Linux 12 (64-bit)``
    :param nics: in the order of their slots
    :param disks: in the order of the VM's disks
    """

    provider: str
    vm_id: str
    vm_name: str
    datacenter: str
    cpu: int
    memory_mb: int
    firmware: str
    secureboot: bool
    guest_id: str
    guest_full_name: str
    nics: tuple[NicFacts, ...]
    disks: tuple[DiskFacts, ...]


@dataclass(frozen=True)
class StagedDisk:
    """An exported disk on the KVM host, as the download observed it.

    :param disk_id: the :class:`DiskFacts` it belongs to
    :param path: absolute path on the host
    :param bytes: size of the file
    :param sha256: 64 hexadecimal digits, or None to leave the checksum out
    :param virtual_bytes: size the guest sees, as the file says
    """

    disk_id: str
    path: str
    bytes: int
    sha256: str | None
    virtual_bytes: int
