"""Writes an OVF 1.1 descriptor of an exported VM (DMTF DSP0243, with VMware's extension for the firmware)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from hyperflow.manifest.facts import DiskFacts, StagedDisk, VmFacts
from hyperflow.manifest.guest_ids import firmware

OVF = "http://schemas.dmtf.org/ovf/envelope/1"
RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
VSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
VMW = "http://www.vmware.com/schema/ovf"
STREAM_OPTIMIZED = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"

# ResourceType of CIM_ResourceAllocationSettingData
_PROCESSOR, _MEMORY, _SCSI, _ETHERNET, _DISK = "3", "4", "6", "10", "17"
_SCSI_UNITS = [unit for unit in range(16) if unit != 7]  # 7 is the controller's own


def build_ovf(vm: VmFacts, staged: Sequence[StagedDisk]) -> str:
    """Describe a VM and its disks as they lie beside the descriptor.

    :param vm: the VM at its source
    :param staged: its disks, in any order; sizes are those of the files
    :return: the XML document, UTF-8 declared
    :raises KeyError: a disk of the VM has no file
    """
    files = {disk.disk_id: disk for disk in staged}
    pairs = [(disk, files[disk.id]) for disk in vm.disks]
    envelope = Element(f"{{{OVF}}}Envelope")
    _references(envelope, pairs)
    _disk_section(envelope, pairs)
    _network_section(envelope, vm)
    _virtual_system(envelope, vm)
    for prefix, uri in (("ovf", OVF), ("rasd", RASD), ("vssd", VSSD), ("vmw", VMW)):
        ElementTree.register_namespace(prefix, uri)
    ElementTree.indent(envelope)
    body = ElementTree.tostring(envelope, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _ovf(name: str) -> str:
    return f"{{{OVF}}}{name}"


def _clean(text: str) -> str:
    """Show the control characters of a name from outside: XML 1.0 cannot carry them."""
    allowed = r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
    return re.sub(allowed, lambda match: f"\\u{ord(match[0]):04x}", text)


def _child(parent: Element, name: str, text: str) -> Element:
    element = SubElement(parent, name)
    element.text = _clean(text)
    return element


def _attributes(**values: str) -> dict[str, str]:
    return {_ovf(name): _clean(value) for name, value in values.items()}


def _references(envelope: Element, pairs: Sequence[tuple[DiskFacts, StagedDisk]]) -> None:
    section = SubElement(envelope, _ovf("References"))
    for disk, file in pairs:
        href = PurePosixPath(file.path).name
        SubElement(section, _ovf("File"), _attributes(id=f"file-{disk.id}", href=href, size=str(file.bytes)))


def _disk_section(envelope: Element, pairs: Sequence[tuple[DiskFacts, StagedDisk]]) -> None:
    section = SubElement(envelope, _ovf("DiskSection"))
    _child(section, _ovf("Info"), "Virtual disks")
    for disk, file in pairs:
        values = _attributes(
            diskId=disk.id,
            fileRef=f"file-{disk.id}",
            capacity=str(file.virtual_bytes),
            capacityAllocationUnits="byte",
            format=STREAM_OPTIMIZED,
        )
        SubElement(section, _ovf("Disk"), values)


def _network_section(envelope: Element, vm: VmFacts) -> None:
    section = SubElement(envelope, _ovf("NetworkSection"))
    _child(section, _ovf("Info"), "Logical networks")
    for name in dict.fromkeys(nic.network for nic in vm.nics):
        network = SubElement(section, _ovf("Network"), _attributes(name=name))
        _child(network, _ovf("Description"), f"The network {name} at the source")


def _virtual_system(envelope: Element, vm: VmFacts) -> None:
    system = SubElement(envelope, _ovf("VirtualSystem"), _attributes(id=vm.vm_name))
    _child(system, _ovf("Info"), "A virtual machine")
    _child(system, _ovf("Name"), vm.vm_name)
    # CIM's number for "other": the guest's kind stands in VMware's attribute, as in VMware's own descriptors.
    guest = SubElement(system, _ovf("OperatingSystemSection"), _attributes(id="1"))
    guest.set(f"{{{VMW}}}osType", _clean(vm.guest_id))
    _child(guest, _ovf("Info"), "The guest operating system")
    _child(guest, _ovf("Description"), vm.guest_full_name)
    hardware = SubElement(system, _ovf("VirtualHardwareSection"))
    _child(hardware, _ovf("Info"), "Virtual hardware")
    settings = SubElement(hardware, _ovf("System"))
    _child(settings, f"{{{VSSD}}}ElementName", "Virtual Hardware Family")
    _child(settings, f"{{{VSSD}}}InstanceID", "0")
    _child(settings, f"{{{VSSD}}}VirtualSystemIdentifier", vm.vm_name)
    _child(settings, f"{{{VSSD}}}VirtualSystemType", "vmx-13")
    _items(hardware, vm)
    # EFI is what VMware calls it in vmw:Config; uefi is the manifest's word.
    _config(hardware, "firmware", "efi" if firmware(vm.firmware) == "uefi" else "bios")
    if vm.secureboot:
        _config(hardware, "bootOptions.efiSecureBootEnabled", "true")


def _config(hardware: Element, key: str, value: str) -> None:
    values = {_ovf("required"): "false", f"{{{VMW}}}key": key, f"{{{VMW}}}value": value}
    SubElement(hardware, f"{{{VMW}}}Config", values)


def _items(hardware: Element, vm: VmFacts) -> None:
    """Write the Item elements. Within an Item, DSP0243 wants the rasd elements in alphabetical order."""
    items: list[dict[str, str]] = [
        {
            "AllocationUnits": "hertz * 10^6",
            "ElementName": f"{vm.cpu} virtual CPU(s)",
            "ResourceType": _PROCESSOR,
            "VirtualQuantity": str(vm.cpu),
        },
        {
            "AllocationUnits": "byte * 2^20",
            "ElementName": f"{vm.memory_mb} MB of memory",
            "ResourceType": _MEMORY,
            "VirtualQuantity": str(vm.memory_mb),
        },
    ]
    per_controller = len(_SCSI_UNITS)
    controllers = -(-len(vm.disks) // per_controller)
    first_controller = len(items) + 1
    items += [
        {
            "Address": str(number),
            "ElementName": f"SCSI controller {number}",
            "ResourceSubType": "VirtualSCSI",
            "ResourceType": _SCSI,
        }
        for number in range(controllers)
    ]
    items += [
        {
            "AddressOnParent": str(_SCSI_UNITS[index % per_controller]),
            "ElementName": disk.label,
            "HostResource": f"ovf:/disk/{disk.id}",
            "Parent": str(first_controller + index // per_controller),
            "ResourceType": _DISK,
        }
        for index, disk in enumerate(vm.disks)
    ]
    items += [
        {
            "Address": nic.mac,
            "AddressOnParent": str(7 + index),
            "AutomaticAllocation": "true",
            "Connection": nic.network,
            "ElementName": nic.id,
            "ResourceSubType": "VmxNet3",
            "ResourceType": _ETHERNET,
        }
        for index, nic in enumerate(vm.nics)
    ]
    for number, values in enumerate(items, start=1):
        item = SubElement(hardware, _ovf("Item"))
        for name, value in sorted({**values, "InstanceID": str(number)}.items()):
            _child(item, f"{{{RASD}}}{name}", value)
