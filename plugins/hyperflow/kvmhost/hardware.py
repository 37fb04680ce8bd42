"""The virtual hardware a guest gets on KVM: one description, rendered for QEMU and for virt-install.

The boot proof runs QEMU with it and the domain is defined from it, so what was proven is what is defined:
machine, firmware, CPU model, and every device at the PCI address it will have. The addresses follow libvirt's own
order (interfaces, USB, serial, disks, balloon, random numbers): a guest names its interfaces by them.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from hyperflow.kvmhost import acceleration
from hyperflow.kvmhost.firmware import Firmware
from hyperflow.kvmhost.stage import BadRequest

MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
FORMATS = ("qcow2", "raw", "vdi")
DEVICES_LIMIT = {"q35": 100, "pc": 20}  # interfaces and disks; q35: 8 root ports a slot, pc: 32 slots in all


@dataclass(frozen=True)
class Nic:
    """A network interface: the source's MAC, and on the target the libvirt network it is plugged into."""

    mac: str
    network: Optional[str] = None  # noqa: UP045 - read at run time, by Python 3.9 too


@dataclass(frozen=True)
class Hardware:
    """What the guest runs on.

    :param firmware: ``bios`` or ``uefi``
    :param memory_mb: MiB
    :param secureboot: wanted; see :func:`hyperflow.kvmhost.firmware.choose`
    :param machine: ``q35``, or ``pc`` (i440fx) for guests older than 2007
    """

    firmware: str
    cpus: int
    memory_mb: int
    nics: list[Nic] = field(default_factory=list)
    secureboot: bool = False
    machine: str = "q35"


@dataclass(frozen=True)
class Image:
    """A disk of the guest; the first of a list is the one it boots from."""

    path: Path
    format: str
    disk_id: str = ""


def require_sound(hardware: Hardware, images: list[Image]) -> None:
    """Refuse a description that is wrong.

    :raises BadRequest: with every fault, as ``where: found X, expected Y``
    """
    found = [*_faults_of_machine(hardware), *_faults_of_images(images)]
    devices, limit = len(hardware.nics) + len(images), DEVICES_LIMIT.get(hardware.machine, 0)
    if limit and devices > limit:
        found.append(f"hardware: found {devices} interfaces and disks, expected at most {limit}")
    if found:
        raise BadRequest("; ".join(found))


def mac(nic: Nic) -> str:
    """Write a MAC as libvirt does: lower case, colons."""
    return nic.mac.lower().replace("-", ":")


def place(hardware: Hardware, disks: int, kind: str, index: int = 0) -> int:
    """Give a device's place: on q35 the PCI bus behind its root port, on pc the slot of the only bus.

    :param disks: how many disks there are
    :param kind: nic, usb, serial, disk, balloon or rng
    :param index: which of the interfaces or disks
    """
    first = 1 if hardware.machine == "q35" else 3  # on pc the slots below are the chip set and the video
    behind_nics = first + len(hardware.nics)
    starts = {"nic": first, "usb": behind_nics, "serial": behind_nics + 1, "disk": behind_nics + 2}
    starts.update(balloon=behind_nics + 2 + disks, rng=behind_nics + 3 + disks)
    return starts[kind] + index


def qemu_arguments(
    hardware: Hardware,
    disks: list[dict[str, Any]],
    accelerator: str,
    firmware: Firmware | None = None,
    variables: Path | None = None,
) -> list[str]:
    """Make QEMU's arguments for the machine, without consoles, monitor, and what is behind the interfaces.

    Interface ``i`` expects a ``-netdev`` with the id ``neti``; the virtio-serial controller is ``serial``.

    :param disks: a block device each, as QMP's blockdev-add takes it, without node-name; boot disk first
    :param accelerator: ``kvm`` or ``tcg``
    :param variables: the guest's own copy of the firmware's variables
    """
    smm = ",smm=on" if firmware is not None and firmware.secure else ""
    arguments = [
        *("-nodefaults", "-no-user-config", "-machine", hardware.machine + smm, "-accel", accelerator),
        *("-cpu", "host" if accelerator == acceleration.KVM else "max", "-smp", str(hardware.cpus)),
        *("-m", f"{hardware.memory_mb}M", "-rtc", "base=utc"),
    ]
    if firmware is not None and variables is not None:
        arguments += _flash(firmware, variables)
    if hardware.machine == "q35":
        arguments += _root_ports(place(hardware, len(disks), "rng"))

    def device(model: str, kind: str, index: int = 0) -> None:
        at = place(hardware, len(disks), kind, index)
        where = f"bus=port{at},addr=0x0" if hardware.machine == "q35" else f"bus=pci.0,addr={at:#x}"
        arguments.extend(("-device", f"{model},{where}"))

    for index, nic in enumerate(hardware.nics):
        device(f"virtio-net-pci,netdev=net{index},mac={mac(nic)}", "nic", index)
    device("qemu-xhci,id=usb", "usb")
    device("virtio-serial-pci,id=serial", "serial")
    for index, disk in enumerate(disks):
        arguments += ["-blockdev", json.dumps({**disk, "node-name": f"disk{index}"})]
        device(f"virtio-blk-pci,drive=disk{index}{',bootindex=1' if index == 0 else ''}", "disk", index)
    device("virtio-balloon-pci", "balloon")
    arguments += ["-object", "rng-random,id=random,filename=/dev/urandom"]
    device("virtio-rng-pci,rng=random", "rng")
    video = f"VGA,bus={'pcie.0,addr=0x1' if hardware.machine == 'q35' else 'pci.0,addr=0x2'}"
    return [*arguments, "-device", video, "-device", "usb-tablet,bus=usb.0"]


def virt_install_arguments(
    hardware: Hardware, images: list[Image], accelerator: str, firmware: Firmware | None = None
) -> list[str]:
    """Make virt-install's arguments for the same machine without disks; every interface needs its network.

    The disks are :func:`disk_elements`: virt-install, given a path, makes a storage pool of its folder in libvirt,
    even when it is only to print.
    """
    arguments = [
        *("--import", "--virt-type", "kvm" if accelerator == acceleration.KVM else "qemu"),
        *(
            "--arch",
            "x86_64",
            "--machine",
            hardware.machine,
            "--osinfo",
            "detect=off,require=off,name=linux2022",
        ),
        *("--cpu", "host-passthrough" if accelerator == acceleration.KVM else "mode=maximum"),
        *("--vcpus", str(hardware.cpus), "--memory", str(hardware.memory_mb)),
        *("--boot", "hd" if firmware is None else _boot(firmware)),
        *("--features", "smm=on" if firmware is not None and firmware.secure else "acpi=on"),
        *("--controller", "type=usb,model=qemu-xhci" + _address(hardware, len(images), "usb")),
        *("--controller", "type=virtio-serial" + _address(hardware, len(images), "serial")),
    ]
    for index, nic in enumerate(hardware.nics):
        arguments += ["--network", _escaped(f"network={nic.network}", f"mac={mac(nic)}", "model=virtio")]
        arguments[-1] += _address(hardware, len(images), "nic", index)
    arguments += ["--disk", "none"]
    if not hardware.nics:
        arguments += ["--network", "none"]
    return [
        *arguments,
        *("--memballoon", "model=virtio" + _address(hardware, len(images), "balloon")),
        *("--rng", "/dev/urandom" + _address(hardware, len(images), "rng")),
        *("--video", "vga", "--graphics", "vnc,listen=127.0.0.1", "--console", "pty,target.type=serial"),
        *(
            "--channel",
            "unix,target.type=virtio,target.name=org.qemu.guest_agent.0",
            "--input",
            "tablet,bus=usb",
        ),
        # virt-install gives every UEFI guest a TPM where the host has swtpm; the proof ran without
        *("--sound", "none", "--tpm", "none", "--noautoconsole"),
    ]


def disk_elements(hardware: Hardware, images: list[Image]) -> list[ET.Element]:
    """Make the ``disk`` elements of a libvirt domain, in the order of the images."""
    elements = []
    for index, image in enumerate(images):
        at = place(hardware, len(images), "disk", index)
        bus, slot = (at, 0) if hardware.machine == "q35" else (0, at)
        disk = ET.Element("disk", type="file", device="disk")
        ET.SubElement(disk, "driver", name="qemu", type=image.format)
        ET.SubElement(disk, "source", file=str(image.path))
        ET.SubElement(disk, "target", dev=f"vd{_letters(index)}", bus="virtio")
        if index == 0:
            ET.SubElement(disk, "boot", order="1")
        ET.SubElement(disk, "address", type="pci", domain="0", bus=str(bus), slot=str(slot), function="0")
        elements.append(disk)
    return elements


def _letters(index: int) -> str:
    """Count as Linux counts disks: a to z, then aa, ab, ..."""
    letters = ""
    while index >= 0:
        letters = chr(ord("a") + index % 26) + letters
        index = index // 26 - 1
    return letters


def _faults_of_machine(hardware: Hardware) -> list[str]:
    found = []
    if hardware.firmware not in ("bios", "uefi"):
        found.append(f"hardware.firmware: found {hardware.firmware!r}, expected bios or uefi")
    if hardware.machine not in DEVICES_LIMIT:
        found.append(f"hardware.machine: found {hardware.machine!r}, expected q35 or pc")
    if not 1 <= hardware.cpus <= 1024:
        found.append(f"hardware.cpus: found {hardware.cpus}, expected 1 to 1024")
    if not 16 <= hardware.memory_mb <= 1 << 30:
        found.append(f"hardware.memory_mb: found {hardware.memory_mb}, expected MiB, 16 or more")
    macs = [mac(nic) for nic in hardware.nics]
    found += [f"hardware.nics: found MAC {one!r}, expected six hex pairs" for one in macs if not MAC.fullmatch(one)]
    found += [f"hardware.nics: found MAC {one} twice" for one in sorted(set(macs)) if macs.count(one) > 1]
    return found


def _faults_of_images(images: list[Image]) -> list[str]:
    found = [] if images else ["images: found none, expected at least one"]
    for image in images:
        if image.format not in FORMATS:
            found.append(f"{image.path}: found format {image.format!r}, expected one of {', '.join(FORMATS)}")
        if image.path.is_symlink() or not image.path.is_file():
            found.append(f"{image.path}: found no regular file, expected a disk image")
    return found


def _flash(firmware: Firmware, variables: Path) -> list[str]:
    secure = ["-global", "driver=cfi.pflash01,property=secure,value=on"] if firmware.secure else []
    code: dict[str, Any] = {"driver": firmware.code_format, "node-name": "code", "read-only": True}
    code["file"] = {"driver": "file", "filename": str(firmware.code)}
    store: dict[str, Any] = {"driver": firmware.variables_format, "node-name": "variables"}
    store["file"] = {"driver": "file", "filename": str(variables)}
    return [
        *secure,
        *("-blockdev", json.dumps(code), "-blockdev", json.dumps(store)),
        *("-machine", "pflash0=code,pflash1=variables"),
    ]


def _root_ports(count: int) -> list[str]:
    """Make the root ports of buses 1 to ``count`` where libvirt puts them: slot 2 and up, eight a slot."""
    arguments = []
    for index in range(count):
        slot, function = 2 + index // 8, index % 8
        many = ",multifunction=on" if function == 0 else ""
        where = f"port={0x10 + index:#x},chassis={index + 1},bus=pcie.0,addr={slot:#x}.{function:#x}{many}"
        arguments += ["-device", f"pcie-root-port,id=port{index + 1},{where}"]
    return arguments


def _boot(firmware: Firmware) -> str:
    """Name the same firmware files for libvirt, rather than let it choose."""
    secure = "yes" if firmware.secure else "no"
    loader = _escaped(f"loader={firmware.code}", "loader.readonly=yes", "loader.type=pflash", f"loader.secure={secure}")
    return loader + "," + _escaped(f"nvram.template={firmware.variables}")


def _address(hardware: Hardware, disks: int, kind: str, index: int = 0) -> str:
    at = place(hardware, disks, kind, index)
    bus, slot = (at, 0) if hardware.machine == "q35" else (0, at)
    return f",address.type=pci,address.domain=0,address.bus={bus},address.slot={slot},address.function=0"


def _escaped(*values: str) -> str:
    """Join values for an option of virt-install or QEMU: a comma inside a value is doubled."""
    return ",".join(value.replace(",", ",,") for value in values)
