"""A guest that starts by UEFI, from the disks that its source has to the boot on the target's firmware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hyperflow.operators.target import expectations
from hyperflow.vsphere.facts import NicFacts

from lab.uefi_guest import ensure_uefi_guest
from tests.kvmhost.stages import running, staged

pytestmark = [pytest.mark.lab, pytest.mark.night]

MAC = "00:50:56:9a:10:01"
# as VMware Tools told of the source: an address that no file of the guest has
SOURCE_NIC = NicFacts(4000, "Network adapter 1", MAC, "VM Network", True, True, "vmxnet3", ("192.0.2.10/24",))
FALLBACK = "/boot/efi/EFI/BOOT/BOOTX64.EFI"


def done(stage: str, options: dict[str, Any]) -> dict[str, Any]:
    result = running.run(stage, options)
    assert result["exit_status"] == 0, result["log"]
    observed: dict[str, Any] = result["observed"]
    return observed


@pytest.fixture(scope="module")
def disks() -> list[Path]:
    return ensure_uefi_guest()


def boot(folder: Path, images: list[dict[str, Any]], guest: dict[str, Any], seconds: int) -> dict[str, Any]:
    return running.run(
        "boot",
        {
            "images": [{key: image[key] for key in ("disk_id", "path", "format")} for image in images],
            "work_directory": str(folder / "work"),
            "artifacts_directory": str(folder / "boot"),
            "hardware": {
                "firmware": "uefi",
                "secureboot": False,
                "cpus": 1,
                "memory_mb": 1024,
                "nics": [{"mac": MAC}],
            },
            "timeout_seconds": seconds,
            "expect": expectations(guest, [SOURCE_NIC]),
        },
    )


@pytest.mark.parametrize("fixed", [True, False])
def test_a_uefi_guest_comes_up_by_the_boot_loader_that_fix_leaves_for_a_firmware_without_boot_entries(
    tmp_path: Path, disks: list[Path], fixed: bool
) -> None:
    manifest = staged.manifest(tmp_path, *disks)
    work = {"manifest": manifest, "work_directory": str(tmp_path / "work")}
    guest = done("inspect", {**work, "collect_guest_info": True})
    overlays: dict[str, str] = {}
    if fixed:
        switches = dict.fromkeys(("backup", "update_grub", "regen_initramfs"), True)
        switches |= dict.fromkeys(("print_fstab", "remove_vmware_tools"), False)
        made = done("fix", {**work, **switches, "fstab_mode": "stabilize-all", "nics": [{"mac": MAC}]})
        assert FALLBACK in [each["path"] for each in made["changed_files"]]
        overlays = made["overlays"]
    images = [
        done(
            "convert",
            {
                "manifest": manifest,
                "disk_id": disk_id,
                "overlay": overlays.get(disk_id),
                "output_directory": str(tmp_path / "output"),
                "filename": f"{disk_id}.qcow2",
                "format": "qcow2",
            },
        )
        for disk_id in ("disk-0", "disk-1")
    ]

    result = boot(tmp_path, images, guest, 600)

    if not fixed:
        assert result["exit_status"] == 1
        assert "the firmware found nothing to boot. Its last lines" in result["error"]["message"]
        return
    assert result["exit_status"] == 0, result["log"]
    evidence = result["observed"]["evidence"]
    assert [(nic["name"], nic["addresses"][0]) for nic in evidence["nics"]] == [("ens192", "10.0.2.15/24")], "by DHCP"
    mounts = {one["path"]: one["fstype"] for one in evidence["mounts"]}
    assert (mounts["/boot/efi"], mounts["/"], mounts["/srv/data"]) == ("vfat", "ext4", "ext4")
