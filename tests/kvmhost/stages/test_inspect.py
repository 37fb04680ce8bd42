"""inspect: what a guest is, told without a byte written to its disks."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab.guest import ensure_guest
from lab.guest.proof import vmdks
from tests.kvmhost.guest import phony
from tests.kvmhost.stages import running


def inspect(folder: Path, disks: list[Path], source_format: str = "raw") -> dict[str, Any]:
    reference = phony.manifest(folder, disks, source_format)
    before = [phony.digest(disk) for disk in disks]
    result = running.run(
        "inspect", {"manifest": reference, "work_directory": str(folder / "work"), "collect_guest_info": True}
    )
    assert [phony.digest(disk) for disk in disks] == before, "the staged files are never written to"
    assert list((folder / "work").iterdir()) == [], "the throw-away overlays are thrown away"
    return result


@pytest.mark.lab
def test_the_labs_guest_is_told_as_it_is(tmp_path: Path) -> None:
    result = inspect(tmp_path, vmdks(ensure_guest()), "vmdk")
    assert result["succeeded"], result["log"]
    facts = result["observed"]
    assert facts["os"] == {
        "type": "linux",
        "distro": "debian",
        "product_name": "Debian GNU/Linux 12 (bookworm)",
        "version": facts["os"]["version"],
        "arch": "x86_64",
        "hostname": "web01",
    }
    assert facts["firmware"] == "bios"
    assert facts["root"]["device"] == "/dev/sda1"
    assert facts["root"]["disk_id"] == "disk-0"
    assert [(one["path"], one["spec"], one["disk_id"]) for one in facts["mounts"]] == [
        ("/", "/dev/sda1", "disk-0"),
        ("/srv/data", "/dev/sdb1", "disk-1"),
    ]
    assert len(facts["kernels"]) == 2
    for kernel in facts["kernels"]:
        assert kernel["virtio_modules"] == [], "the guest comes from VMware"
        assert {"virtio_blk", "virtio_net"} <= set(kernel["loadable"])
    assert facts["boot_loader"]["kind"] == "grub2"
    assert {entry["root"] for entry in facts["boot_loader"]["entries"]} == {"/dev/sda1"}
    (network,) = facts["network"]
    assert (network["name"], network["addresses"], network["gateway"]) == ("ens192", ["192.0.2.10/24"], "192.0.2.1")
    assert facts["vmware_tools"]["installed"]
    assert facts["vmware_tools"]["packages"][0]["name"] == "open-vm-tools"
    assert not facts["qemu_guest_agent"]
    assert facts["luks"] == []


def test_two_operating_systems_are_an_error_that_names_both(tmp_path: Path) -> None:
    first = phony.disk(tmp_path / "a.raw", phony.LINUX)
    second = phony.disk(tmp_path / "b.raw", phony.LINUX, uuid=phony.UUID.replace("6f1a", "7f1a"))
    result = inspect(tmp_path, [first, second])
    assert result["exit_status"] == 1
    assert "found 2 operating systems, expected one: /dev/sda" in result["error"]["message"]


def test_an_encrypted_guest_is_an_error_that_says_so(tmp_path: Path) -> None:
    result = inspect(tmp_path, [phony.luks(tmp_path / "a.raw")])
    assert result["exit_status"] == 1
    assert "/dev/sda is encrypted with LUKS" in result["error"]["message"]


def test_a_file_system_with_errors_is_not_worked_on(tmp_path: Path) -> None:
    disk = phony.disk(tmp_path / "a.raw", phony.LINUX)
    subprocess.run(["debugfs", "-w", "-R", "set_super_value state 2", str(disk)], check=True, capture_output=True)
    result = inspect(tmp_path, [disk])
    assert result["exit_status"] == 1
    assert "its file system has errors" in result["error"]["message"]


def test_disks_in_the_wrong_order_are_found_out(tmp_path: Path) -> None:
    empty = phony.disk(tmp_path / "data.raw", {"file": ""}, uuid=phony.UUID.replace("6f1a", "7f1a"))
    result = inspect(tmp_path, [empty, phony.disk(tmp_path / "a.raw", phony.LINUX)])
    assert result["exit_status"] == 1
    assert "the manifest's order of disks is not the guest's" in result["error"]["message"]
