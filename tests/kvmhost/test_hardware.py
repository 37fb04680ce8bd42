"""One description of the hardware: what QEMU is given for the proof is what libvirt is given to keep."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost import firmware
from hyperflow.kvmhost.hardware import (
    Hardware,
    Image,
    Nic,
    disk_elements,
    qemu_arguments,
    require_sound,
    virt_install_arguments,
)
from hyperflow.kvmhost.probe.machine import Machine
from hyperflow.kvmhost.stage import BadRequest, Job, StageError
from hyperflow.kvmhost.stages import define

from lab import kvmhost
from tests.kvmhost.stages import running

MACS = ["00:50:56:9a:77:01", "00:50:56:9a:77:02", "00:50:56:9a:77:03"]


@pytest.fixture
def images(tmp_path: Path) -> list[Image]:
    paths = [tmp_path / "disk-0.raw", tmp_path / "disk-1.raw"]
    for path in paths:
        path.write_bytes(bytes(1 << 20))
    return [Image(path, "raw") for path in paths]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kvmhost.KvmHost]:
    state = tmp_path_factory.mktemp("kvmhost")
    yield kvmhost.start(state)
    kvmhost.stop(state)


def described(machine: str, network: str | None = None) -> Hardware:
    return Hardware("bios", 1, 64, [Nic(mac, network) for mac in MACS], machine=machine)


def block_devices(images: list[Image]) -> list[dict[str, Any]]:
    return [{"driver": "raw", "file": {"driver": "file", "filename": str(image.path)}} for image in images]


def networks(count: int) -> list[str]:
    return [word for index in range(count) for word in ("-netdev", f"hubport,id=net{index},hubid={index}")]


@pytest.mark.lab
@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_every_device_of_the_proof_has_the_address_that_libvirt_gives_it(
    machine: str, images: list[Image], host: kvmhost.KvmHost
) -> None:
    hardware = described(machine, host.network)
    identity = str(uuid.uuid4())
    options = {
        "name": f"test-{identity[:8]}",
        "uuid": identity,
        "images": [{"path": str(image.path), "format": image.format} for image in images],
        "hardware": {
            "firmware": "bios",
            "cpus": 1,
            "memory_mb": 64,
            "machine": machine,
            "nics": [{"mac": mac, "network": host.network} for mac in MACS],
        },
        "metadata": {"vm": "test"},
    }
    try:
        defined = running.run("define", options)
        assert defined["exit_status"] == 0, defined["log"]
        xml = subprocess.run(["virsh", "-c", kvmhost.URI, "dumpxml", identity], capture_output=True, check=True).stdout
    finally:
        kvmhost.undefine_domains_below(host, images[0].path.parent)

    assert addresses_in_domain(xml) == addresses_in_arguments(
        qemu_arguments(hardware, block_devices(images), "tcg"), machine
    )


def addresses_in_domain(xml: bytes) -> list[tuple[str, int, int]]:
    kinds = {
        "interface": "virtio-net-pci",
        "disk": "virtio-blk-pci",
        "memballoon": "virtio-balloon-pci",
        "rng": "virtio-rng-pci",
        "video": "VGA",
    }
    found = []
    for device in ET.fromstring(xml).findall("devices/*"):  # noqa: S314 - libvirt wrote it
        kind = kinds.get(device.tag)
        if device.tag == "controller":
            kind = {"usb": "qemu-xhci", "virtio-serial": "virtio-serial-pci"}.get(device.get("type", ""))
        address = device.find("address")
        if kind and address is not None:
            found.append((kind, int(address.get("bus", ""), 16), int(address.get("slot", ""), 16)))
    return sorted(found)


def addresses_in_arguments(arguments: list[str], machine: str) -> list[tuple[str, int, int]]:
    found = []
    for one in arguments:
        match = re.match(r"([\w-]+),.*bus=(port|pci\.|pcie\.)(\d+),addr=0x([0-9a-f]+)", one)
        if match and match[1] != "pcie-root-port":
            bus = int(match[3]) if match[2] == "port" else 0
            found.append((match[1], bus, int(match[4], 16)))
    assert machine in " ".join(arguments)
    return sorted(found)


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_qemu_takes_the_arguments_and_has_the_interfaces_with_their_macs(
    machine: str, images: list[Image], tmp_path: Path
) -> None:
    hardware = described(machine)
    arguments = qemu_arguments(hardware, block_devices(images), "tcg")
    command = ["qemu-system-x86_64", "-display", "none", "-S", *networks(len(MACS)), *arguments]

    with Machine(command, tmp_path, tmp_path / "console.log") as guest:
        answer = guest.qmp.execute("human-monitor-command", **{"command-line": "info network"})
        blocks = guest.qmp.execute("query-block")

    assert all(mac in answer for mac in MACS)
    assert len([one for one in blocks if one.get("inserted")]) == len(images)


@pytest.mark.parametrize("secure", [False, True])
def test_a_uefi_machine_starts_with_the_firmware_of_the_host(secure: bool, images: list[Image], tmp_path: Path) -> None:
    job = Job("test")
    found = firmware.choose("q35", secure, job)
    variables = tmp_path / "variables"
    variables.write_bytes(found.variables.read_bytes())
    arguments = qemu_arguments(described("q35"), block_devices(images), "tcg", found, variables)
    command = ["qemu-system-x86_64", "-display", "none", "-S", *networks(len(MACS)), *arguments]

    with Machine(command, tmp_path, tmp_path / "console.log") as guest:
        status = guest.qmp.execute("query-status")["status"]

    assert status == "prelaunch"
    assert found.secure is secure
    assert job.warnings == []


def descriptor(folder: Path, name: str, features: list[str], kind: str = "qcow2") -> None:
    """Write a firmware descriptor as distributions ship them, with files of its own."""
    files = {part: folder / f"{name}-{part}" for part in ("executable", "nvram-template")}
    for path in files.values():
        path.write_bytes(b"")
    mapping = {part: {"filename": str(path), "format": kind} for part, path in files.items()}
    document = {
        "interface-types": ["uefi"],
        "mapping": {"device": "flash", **mapping},
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": features,
    }
    (folder / f"{name}.json").write_text(json.dumps(document))


def test_a_host_without_enrolled_keys_boots_without_secure_boot_and_says_so(tmp_path: Path) -> None:
    descriptor(tmp_path, "50-plain", ["acpi-s3"])
    job = Job("test")

    found = firmware.choose("q35", True, job, (tmp_path,))

    assert not found.secure
    assert found.code_format == "qcow2"
    assert len(job.warnings) == 1


def test_a_uefi_without_smm_is_preferred_where_secure_boot_is_off(tmp_path: Path) -> None:
    descriptor(tmp_path, "40-enrolled", ["secure-boot", "enrolled-keys", "requires-smm"])
    descriptor(tmp_path, "50-smm", ["secure-boot", "requires-smm"])
    descriptor(tmp_path, "60-plain", [])

    assert firmware.choose("q35", False, Job("test"), (tmp_path,)).code.name == "60-plain-executable"
    assert firmware.choose("q35", True, Job("test"), (tmp_path,)).code.name == "40-enrolled-executable"


def test_a_host_without_uefi_says_which_package_brings_it(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="install ovmf"):
        firmware.choose("q35", False, Job("test"), (tmp_path,))


def test_a_mac_that_is_there_twice_is_refused(images: list[Image]) -> None:
    with pytest.raises(BadRequest, match="twice"):
        require_sound(Hardware("bios", 1, 64, [Nic("00:50:56:9A:77:01"), Nic("00-50-56-9a-77-01")]), images)


def test_a_domain_has_no_tpm_for_its_boot_was_proven_without_one(images: list[Image]) -> None:
    """virt-install gives every UEFI guest one where the host has swtpm."""
    hardware = Hardware("bios", 1, 64)
    arguments = virt_install_arguments(hardware, images, "tcg")
    assert arguments[arguments.index("--tpm") + 1] == "none"
    domain = ET.Element("domain")
    devices = ET.SubElement(domain, "devices")
    devices.extend(disk_elements(hardware, images))
    options = define.Options("web01", str(uuid.uuid4()), images, hardware, {"vm": "test"})
    assert len(define._require_devices(options, ET.tostring(domain, encoding="unicode"), "libvirt")["disks"]) == 2
    ET.SubElement(devices, "tpm", model="tpm-crb")
    with pytest.raises(StageError, match="libvirt: found a TPM, expected none"):
        define._require_devices(options, ET.tostring(domain, encoding="unicode"), "libvirt")
