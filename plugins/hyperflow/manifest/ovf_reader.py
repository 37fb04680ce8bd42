"""Reads what an OVF descriptor of any exporter says of a VM (DMTF DSP0243, versions 0.9 to 2), and trusts nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from hyperflow.manifest.documents import read_text
from hyperflow.manifest.faults import DocumentError, Fault, show

SIZE_LIMIT = 8 * 1024 * 1024  # bytes; a descriptor of 256 disks has some 300 kB
ELEMENTS_LIMIT = 50_000
DEPTH_LIMIT = 32

# ResourceType of CIM_ResourceAllocationSettingData
_PROCESSOR, _MEMORY, _ETHERNET, _DISK = "3", "4", "10", "17"
_UNITS = {"byte": 1, "kilobytes": 1 << 10, "megabytes": 1 << 20, "gigabytes": 1 << 30}


@dataclass(frozen=True)
class OvfDisk:
    """A disk of the descriptor.

    :param label: what the exporter calls it
    :param href: its file, relative to the descriptor's folder and inside it
    :param capacity_bytes: size the guest sees; None when the descriptor does not say
    """

    label: str | None
    href: str
    capacity_bytes: int | None


@dataclass(frozen=True)
class OvfNic:
    """A network adapter; ``mac`` is None when the exporter leaves it to the importer."""

    mac: str | None
    network: str | None


@dataclass(frozen=True)
class OvfVm:
    """A VM as its descriptor says; None is what it does not say.

    :param firmware: ``bios`` or ``efi``
    :param guest_id: VMware's, as ``ubuntu64Guest``
    :param disks: in the order of their controllers and places on them
    """

    name: str
    cpu: int | None
    memory_mb: int | None
    firmware: str | None
    secureboot: bool | None
    guest_id: str | None
    guest_full_name: str | None
    nics: tuple[OvfNic, ...]
    disks: tuple[OvfDisk, ...]


def read_ovf(path: Path) -> OvfVm:
    """Read a descriptor.

    :raises DocumentError: everything that is wrong with it
    """
    root = _parse(read_text(path, SIZE_LIMIT), str(path))
    systems = [element for element in root.iter() if _name(element) == "VirtualSystem"]
    if _name(root) != "Envelope" or len(systems) != 1:
        found = f"{len(systems)} virtual systems in {_name(root)}"
        raise DocumentError(str(path), [Fault("Envelope", found, "an OVF descriptor of one virtual machine")])
    faults: list[Fault] = []
    disks = _disks(root, systems[0], faults)
    vm = _vm(systems[0], disks, path.stem, faults)
    if faults:
        raise DocumentError(str(path), faults)
    return vm


class _Guarded(ElementTree.TreeBuilder):
    """Builds a tree of limited size; a document type, and with it every entity, is refused."""

    def __init__(self) -> None:
        super().__init__()
        self._elements = self._depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> Element:  # type: ignore[override]
        self._elements += 1
        self._depth += 1
        if self._elements > ELEMENTS_LIMIT or self._depth > DEPTH_LIMIT:
            raise ValueError(f"more than {ELEMENTS_LIMIT} elements or {DEPTH_LIMIT} levels")
        return super().start(tag, attributes)

    def end(self, tag: str) -> Element:
        self._depth -= 1
        return super().end(tag)

    def doctype(self, name: str, _public: str, _system: str) -> None:
        raise ValueError(f"a document type {show(name)}")


def _parse(text: str, source: str) -> Element:
    parser = ElementTree.XMLParser(target=_Guarded())  # noqa: S314 - _Guarded refuses what makes XML dangerous
    try:
        # A text has no encoding: what the declaration says of one was true of the bytes.
        parser.feed(re.sub(r"^<\?xml[^>]*\?>", "", text.lstrip("\ufeff")))
        root: Element = parser.close()
    except ElementTree.ParseError as fault:
        line, column = fault.position
        raise DocumentError(source, [Fault("(document)", str(fault), "XML", line, column + 1)]) from None
    except ValueError as fault:
        raise DocumentError(source, [Fault("(document)", str(fault), "a plain OVF descriptor")]) from None
    return root


def _vm(system: Element, disks: tuple[OvfDisk, ...], file_name: str, faults: list[Fault]) -> OvfVm:
    items = [_values(item) for item in system.iter() if _name(item) in ("Item", "EthernetPortItem")]
    config = {
        _attribute(element, "key"): _attribute(element, "value")
        for element in system.iter()
        if _name(element) in ("Config", "ExtraConfig")
    }
    guest = next((element for element in system.iter() if _name(element) == "OperatingSystemSection"), None)
    secure = config.get("bootOptions.efiSecureBootEnabled")
    return OvfVm(
        name=_text(system, "Name") or _attribute(system, "id") or file_name,
        cpu=_number(_of_type(items, _PROCESSOR).get("VirtualQuantity"), "processor", faults),
        memory_mb=_memory_mb(_of_type(items, _MEMORY), faults),
        firmware=config.get("firmware"),
        secureboot=None if secure is None else secure == "true",
        guest_id=_attribute(guest, "osType") if guest is not None else None,
        guest_full_name=_text(guest, "Description") if guest is not None else None,
        nics=tuple(
            OvfNic(item.get("Address"), item.get("Connection"))
            for item in items
            if item.get("ResourceType") == _ETHERNET
        ),
        disks=disks,
    )


def _disks(root: Element, system: Element, faults: list[Fault]) -> tuple[OvfDisk, ...]:
    files = {_attribute(file, "id"): file for file in root.iter() if _name(file) == "File"}
    known = {_attribute(disk, "diskId"): disk for disk in root.iter() if _name(disk) == "Disk"}
    found = []
    for item in _in_boot_order(system):
        named = item.get("HostResource", "").removeprefix("ovf:").rpartition("/disk/")[2]
        path = f"disk {item.get('ElementName') or named}"
        disk = known.get(named)
        if disk is None:
            faults.append(Fault(path, show(item.get("HostResource")), "a disk of the DiskSection"))
            continue
        if _attribute(disk, "parentRef"):
            faults.append(Fault(path, "a difference to another disk", "a whole disk"))
        file = files.get(_attribute(disk, "fileRef"))
        href = _href(file, path, faults) if file is not None else None
        if file is None:
            faults.append(Fault(path, "no file: an empty disk", "a disk with a file"))
        if href is not None:
            found.append(OvfDisk(item.get("ElementName"), href, _capacity(disk, path, faults)))
    return tuple(found)


def _in_boot_order(system: Element) -> Iterator[dict[str, str]]:
    """Give the disk items by controller, then by place on it: the descriptor may list them in any order."""
    items = [_values(item) for item in system.iter() if _name(item) in ("Item", "StorageItem")]
    controllers = [item.get("InstanceID") for item in items]

    def place(item: dict[str, str]) -> tuple[int, int]:
        parent = item.get("Parent")
        unit = item.get("AddressOnParent", "")
        return controllers.index(parent) if parent in controllers else -1, int(unit) if re.fullmatch(
            "[0-9]{1,9}", unit
        ) else 0

    yield from sorted((item for item in items if item.get("ResourceType") == _DISK), key=place)


def _href(file: Element, path: str, faults: list[Fault]) -> str | None:
    written = _attribute(file, "href") or ""
    name = unquote(written)
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or urlsplit(written).scheme:
        faults.append(Fault(f"{path}: href", show(written), "a file beside the descriptor"))
        return None
    if _attribute(file, "compression") not in (None, "", "identity") or _attribute(file, "chunkSize"):
        faults.append(Fault(f"{path}: file", "a compressed or divided file", "a whole one; unpack it first"))
        return None
    return name


def _capacity(disk: Element, path: str, faults: list[Fault]) -> int | None:
    count = _number(_attribute(disk, "capacity"), f"{path}: capacity", faults)
    unit = _unit(_attribute(disk, "capacityAllocationUnits") or "byte", f"{path}: capacityAllocationUnits", faults)
    return None if count is None else count * unit


def _memory_mb(item: dict[str, str], faults: list[Fault]) -> int | None:
    count = _number(item.get("VirtualQuantity"), "memory", faults)
    unit = _unit(item.get("AllocationUnits") or "byte * 2^20", "memory: AllocationUnits", faults)
    return None if count is None else -(-count * unit // (1 << 20))


def _number(text: str | None, path: str, faults: list[Fault]) -> int | None:
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", text):
        faults.append(Fault(path, show(text), "an integer"))
        return None
    return int(text)


def _unit(text: str, path: str, faults: list[Fault]) -> int:
    """Read a unit as ``byte * 2^20`` (DSP0004, annex C) or, in old descriptors, ``MegaBytes``."""
    match = re.fullmatch(r"byte\s*\*\s*(2|10)\s*\^\s*([0-9]{1,2})", text.strip())
    if match:
        return 10 ** int(match[2]) if match[1] == "10" else 1 << int(match[2])
    if text.strip().casefold() not in _UNITS:
        faults.append(Fault(path, show(text), "bytes, as byte * 2^20"))
    return _UNITS.get(text.strip().casefold(), 1)


def _of_type(items: list[dict[str, str]], kind: str) -> dict[str, str]:
    return next((item for item in items if item.get("ResourceType") == kind), {})


def _values(item: Element) -> dict[str, str]:
    return {_name(child): child.text.strip() for child in item if child.text and child.text.strip()}


def _text(parent: Element, name: str) -> str | None:
    return next((child.text.strip() for child in parent if _name(child) == name and child.text), None)


def _name(element: Element) -> str:
    """Give the name without its namespace: each version of OVF has another."""
    return str(element.tag).rpartition("}")[2]


def _attribute(element: Element, name: str) -> str | None:
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), None)
