"""Define the converted guest as a libvirt domain, with the hardware on which its boot was proven."""

from __future__ import annotations

import hashlib
import os
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperflow.kvmhost import acceleration, commands, domains, firmware
from hyperflow.kvmhost.hardware import (
    Hardware,
    Image,
    disk_elements,
    mac,
    require_sound,
    virt_install_arguments,
)
from hyperflow.kvmhost.stage import BadRequest, Job, StageError, TryAgain

DESCRIBE_LIMIT = 600.0  # seconds for virt-install: some five, and libvirt may look at QEMU anew for it


@dataclass(frozen=True)
class Options:
    """What to define.

    :param uuid: the source's, so that the guest keeps its machine identity
    :param images: boot disk first
    :param hardware: every interface with its MAC and the libvirt network it goes to
    :param metadata: ``vm`` (required: whose domain this is), ``run``, and whatever else is to be remembered
    """

    name: str
    uuid: str
    images: list[Image]
    hardware: Hardware
    metadata: dict[str, str]
    description: str = ""
    uri: str = field(default="qemu:///system")


def run(options: Options, job: Job) -> dict[str, Any]:
    """Define the domain and return what libvirt then has.

    :raises BadRequest: when the request is wrong
    :raises StageError: when the name, the UUID or a MAC is another's, a network is missing, the domain runs already, or
        libvirt refuses
    """
    _require_sound(options)
    existing = domains.every_domain(options.uri)
    networks = domains.networks(options.uri)
    macs = [mac(nic) for nic in options.hardware.nics]
    wanted = [str(nic.network) for nic in options.hardware.nics]
    uuid = options.uuid.lower()
    faults = domains.conflicts(existing, options.name, uuid, macs, options.metadata["vm"])
    faults += domains.network_faults(networks, wanted)
    faults += domains.running_faults(options.uri, existing, uuid, options.metadata["vm"])
    if faults:
        raise StageError("; ".join(faults))
    for name in sorted({name for name in wanted if not networks[name]}):
        job.warn(f"network {name} is not active: the domain will not start before `virsh net-start {name}`")
    closed = domains.closed_to_qemu(options.images[0].path.parent)
    if closed is not None:
        job.warn(f"{closed} is closed to libvirt's QEMU user: the domain will not start before `chmod o+x {closed}`")
    again = any(domain.uuid == uuid for domain in existing)
    xml = _describe(options, job)
    _require_devices(options, xml, "virt-install")  # before libvirt has it
    with tempfile.TemporaryDirectory(prefix="hyperflow-define-") as folder:
        path = Path(folder, "domain.xml")
        path.write_text(xml, encoding="utf-8")
        job.creating("domain", uuid, name=options.name, vm=options.metadata["vm"])
        domains.virsh(options.uri, "define", "--validate", str(path))
    defined = domains.virsh(options.uri, "dumpxml", "--inactive", uuid)
    there = _require_devices(options, defined, "libvirt")
    job.log(f"define: {options.name} ({uuid}) {'defined anew' if again else 'defined'}")
    return {
        "name": domains.read_domain(defined).name,
        "uuid": domains.read_domain(defined).uuid,
        "xml_sha256": hashlib.sha256(defined.encode()).hexdigest(),
        **there,
        "networks_active": {name: networks[name] for name in sorted(set(wanted))},
        "redefined": again,
    }


def _require_sound(options: Options) -> None:
    require_sound(options.hardware, options.images)
    faults = []
    if not domains.NAME.fullmatch(options.name) or not options.name.isprintable():
        faults.append(f"options.name: found {options.name!r}, expected a name without a slash")
    if not domains.UUID.fullmatch(options.uuid.lower()):
        faults.append(f"options.uuid: found {options.uuid!r}, expected a UUID")
    if not options.metadata.get("vm"):
        faults.append("options.metadata.vm: missing, expected whose domain this is")
    for index, nic in enumerate(options.hardware.nics):
        if not nic.network:
            faults.append(f"options.hardware.nics[{index}].network: found none, expected a libvirt network")
    for text in (options.description, *options.metadata, *options.metadata.values()):
        if any(not char.isprintable() and char not in "\n\t" for char in text):
            faults.append(f"options: found {text!r}, expected text without control characters")
    if faults:
        raise BadRequest("; ".join(faults))


def _describe(options: Options, job: Job) -> str:
    """Let virt-install write the domain, and add the disks and what is ours."""
    accelerator = acceleration.explain(job)
    if accelerator.kind != acceleration.KVM:
        job.warn(f"the domain is of type qemu and will be slow: {accelerator.reason}")
    uefi = None
    if options.hardware.firmware == "uefi":
        uefi = firmware.choose(options.hardware.machine, options.hardware.secureboot, job)
    root = ET.fromstring(_virt_install(options, accelerator.kind, uefi, job))  # noqa: S314 - virt-install's own
    equipment = root.find("devices")
    if equipment is None:
        raise StageError("virt-install wrote a domain without devices")
    for index, disk in enumerate(disk_elements(options.hardware, options.images)):
        equipment.insert(index, disk)
    for system in root.findall("os"):
        for order in system.findall("boot"):
            system.remove(order)  # the disk says it, by an order of its own
    if uefi is not None:
        _name_formats(root, uefi)
    _sign(root, options)
    return ET.tostring(root, encoding="unicode")


def _sign(root: ET.Element, options: Options) -> None:
    """Write the description, and whose domain this is."""
    if options.description:
        ET.SubElement(root, "description").text = options.description
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    ET.register_namespace("hyperflow", domains.NAMESPACE)
    ours = ET.SubElement(metadata, f"{{{domains.NAMESPACE}}}migration")
    for key in ("vm", "run"):
        ours.set(key, options.metadata.get(key, ""))
    for key, value in options.metadata.items():
        if key not in ("vm", "run"):
            ET.SubElement(ours, f"{{{domains.NAMESPACE}}}item", {"name": key}).text = value


def _virt_install(options: Options, accelerator: str, uefi: firmware.Firmware | None, job: Job) -> str:
    """Run virt-install, which with --print-xml only writes, but asks libvirt what it can."""
    try:
        made = commands.run(
            [
                *(
                    "virt-install",
                    "--connect",
                    options.uri,
                    "--name",
                    options.name,
                    "--uuid",
                    options.uuid.lower(),
                ),
                *virt_install_arguments(options.hardware, options.images, accelerator, uefi),
                *("--check", "all=off", "--print-xml"),
            ],
            stdin=commands.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DESCRIBE_LIMIT,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except commands.TimeoutExpired as fault:
        raise TryAgain(
            f"virt-install had not written the domain after {DESCRIBE_LIMIT:.0f} s; "
            f"does libvirt at {options.uri} answer?"
        ) from fault
    if made.returncode != 0:
        raise StageError(f"virt-install refused the domain: {' '.join(made.stderr.split())}")
    for line in made.stderr.splitlines():
        if line.startswith("WARNING"):
            job.log(f"virt-install: {line}")
    return str(made.stdout)


def _name_formats(root: ET.Element, uefi: firmware.Firmware) -> None:
    """Name qcow2 where the firmware is one: libvirt takes raw for granted, and virt-install has no option for it."""
    for path, attribute, kind in (
        ("os/loader", "format", uefi.code_format),
        ("os/nvram", "templateFormat", uefi.variables_format),
    ):
        element = root.find(path)
        if element is not None and kind != "raw":
            element.set(attribute, kind)


def _require_devices(options: Options, xml: str, who: str) -> dict[str, Any]:
    """Read disks and interfaces back, and refuse any that is not what was asked for, and a TPM, which never is.

    :raises StageError: with what was found
    """
    there = domains.devices(xml)
    disks = [(one["path"], one["format"], one["bus"], one["boot_order"]) for one in there["disks"]]
    expected = [
        (str(image.path), image.format, "virtio", 1 if index == 0 else None)
        for index, image in enumerate(options.images)
    ]
    nics = [(one["mac"], one["network"], one["model"]) for one in there["nics"]]
    wanted = [(mac(nic), nic.network, "virtio") for nic in options.hardware.nics]
    if disks != expected:
        raise StageError(f"{who}: found the disks {disks}, expected {expected}")
    if nics != wanted:
        raise StageError(f"{who}: found the interfaces {nics}, expected {wanted}")
    if ET.fromstring(xml).find("devices/tpm") is not None:  # noqa: S314 - libvirt or virt-install wrote it
        raise StageError(f"{who}: found a TPM, expected none: the boot was proven without one")
    return there
