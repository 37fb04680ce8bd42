"""fix: the guest is changed on overlays, and what is told of it was read back."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lab.guest import ensure_guest
from lab.guest.proof import vmdks
from tests.kvmhost.guest import phony
from tests.kvmhost.stages import running

MAC = "00:50:56:9a:10:01"
VIRTIO = {"virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net"}


def options(
    folder: Path,
    disks: list[Path],
    source_format: str = "raw",
    configuration: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    return {
        "manifest": phony.manifest(folder, disks, source_format, configuration),
        "work_directory": str(folder / "work"),
        "backup": True,
        "update_grub": True,
        "regen_initramfs": False,
        "print_fstab": False,
        "remove_vmware_tools": False,
        "fstab_mode": "stabilize-all",
        "nics": [{"mac": MAC}],
        **changes,
    }


@pytest.mark.lab
def test_the_labs_guest_is_fixed_and_every_claim_was_read_back(tmp_path: Path) -> None:
    disks = vmdks(ensure_guest())
    before = [phony.digest(disk) for disk in disks]
    services = {"enable": ["debug-shell"], "disable": ["systemd-timesyncd"], "mask": ["fstrim.timer"]}
    configuration = {"services": services, "users": {"deploy": {"password_hash": "$6$saltsalt$" + "a" * 86}}}
    wanted = options(tmp_path, disks, "vmdk", regen_initramfs=True, configuration=configuration)
    result = running.run("fix", wanted)
    assert result["succeeded"], result["log"]
    observed = result["observed"]
    assert [phony.digest(disk) for disk in disks] == before, "the staged files are never written to"
    assert [Path(path).parent for path in observed["overlays"].values()] == [tmp_path / "work/fix"] * 2
    assert all(Path(path).stat().st_size < 256 << 20 for path in observed["overlays"].values())

    uuid = observed["root"]["uuid"]
    assert f"UUID={uuid} " in observed["fstab"]["after"]
    assert "/dev/sda1" not in observed["fstab"]["after"]
    assert "/dev/sdb1" not in observed["fstab"]["after"]
    assert len(observed["boot_entries"]) >= 3
    assert {entry["root"] for entry in observed["boot_entries"]} == {f"UUID={uuid}"}
    assert len(observed["initramfs"]) == 2
    for image in observed["initramfs"]:
        assert set(image["virtio_modules"]) >= VIRTIO
        assert "10-hyperflow-ens192.link" in image["links"]
    assert [(one["name"], one["mac"]) for one in observed["network"]] == [("ens192", MAC)]
    services = observed["vmware_tools"]["services"]
    assert {one["condition_virtualization"] for one in services} == {"vmware"}, "they do nothing on KVM"
    kept = {one["path"]: one["backup"] for one in observed["changed_files"]}
    assert kept["/etc/fstab"].startswith("/var/backups/hyperflow/")
    assert result["warnings"] == []
    assert observed["configuration"]["services"] == [
        {"unit": "debug-shell.service", "before": "disabled", "state": "enabled"},
        {"unit": "systemd-timesyncd.service", "before": "enabled", "state": "disabled"},
        {"unit": "fstrim.timer", "before": "enabled", "state": "masked"},
    ]
    assert observed["configuration"]["users"][0]["uid"] == 1000


def test_links_odd_bytes_and_missing_tools_of_a_guest_are_coped_with(tmp_path: Path) -> None:
    table = b"# gr\xfc\xdfe\n/dev/sda / ext4 defaults 0 1\n/dev/sr0 /cd iso9660 noauto 0 0\n"
    files = {**phony.LINUX, "data/table": table, "etc/network/interfaces": "auto ens192\niface ens192 inet dhcp\n"}
    del files["etc/fstab"]
    disk = phony.disk(tmp_path / "a.raw", files, links={"etc/fstab": "/data/table", "var/backups": "/data"})
    before = phony.digest(disk)
    (tmp_path / "work/fix").mkdir(parents=True)
    (tmp_path / "work/fix/leftover").touch()
    result = running.run("fix", options(tmp_path, [disk]))
    assert result["succeeded"], result["log"]
    assert phony.digest(disk) == before
    overlay = Path(result["observed"]["overlays"]["disk-0"])
    assert [path.name for path in overlay.parent.iterdir()] == ["disk-0.qcow2"], "an earlier try is thrown away"
    assert phony.read(overlay, "/data/table") == table.replace(b"/dev/sda ", f"UUID={phony.UUID} ".encode())
    kept = {one["path"]: one["backup"] for one in result["observed"]["changed_files"]}
    assert phony.read(overlay, kept["/data/table"].replace("/var/backups", "/data")) == table
    assert b"Name=ens192" in phony.read(overlay, "/etc/systemd/network/10-hyperflow-ens192.link")
    assert f"root=UUID={phony.UUID} ro".encode() in phony.read(overlay, "/boot/grub/grub.cfg")


def test_a_boot_entry_that_keeps_its_device_name_fails_the_fix(tmp_path: Path) -> None:
    grub = phony.GRUB_CFG.replace("/dev/sda", "/dev/sdz9")
    disk = phony.disk(tmp_path / "a.raw", {**phony.LINUX, "boot/grub/grub.cfg": grub})
    result = running.run("fix", options(tmp_path, [disk]))
    assert result["exit_status"] == 1
    assert (
        "read back after the change: /boot/grub/grub.cfg, 'Phony': found root=/dev/sdz9" in result["error"]["message"]
    )
    assert not (tmp_path / "work/fix").exists(), "what is not complete has no name to be taken for it"


def test_a_guest_without_a_tool_for_its_initramfs_is_not_called_fixed(tmp_path: Path) -> None:
    disk = phony.disk(tmp_path / "a.raw", phony.LINUX)
    result = running.run("fix", options(tmp_path, [disk], regen_initramfs=True))
    assert result["exit_status"] == 1
    assert "neither update-initramfs nor dracut" in result["error"]["message"]


def test_a_guest_that_is_not_linux_is_a_bad_request(tmp_path: Path) -> None:
    result = running.run("fix", options(tmp_path, [phony.disk(tmp_path / "a.raw", phony.FREEBSD)]))
    assert result["exit_status"] == 64, result["log"]
    assert "only Linux can be fixed yet" in result["error"]["message"]


def test_an_unknown_mode_is_a_bad_request_before_anything_is_made(tmp_path: Path) -> None:
    disk = tmp_path / "a.raw"
    disk.write_bytes(bytes(512))
    result = running.run("fix", options(tmp_path, [disk], fstab_mode="all"))
    assert result["exit_status"] == 64
    assert not (tmp_path / "work").exists()


def test_a_fix_that_was_killed_leaves_no_appliance_and_is_done_again(tmp_path: Path) -> None:
    disk = phony.disk(tmp_path / "a.raw", phony.LINUX)
    wanted = options(tmp_path, [disk])
    process = running.start("fix", wanted, tmp_path / "result.json")
    partial = tmp_path / "work/.fix.partial/disk-0.qcow2"
    wait_for(lambda: bool(appliances(partial)))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not appliances(partial))
    assert not (tmp_path / "work/fix").exists()
    assert running.run("fix", wanted)["succeeded"]
    assert not partial.parent.exists()
    shutil.rmtree(tmp_path / "work")


def appliances(overlay: Path) -> list[str]:
    """The processes that have the overlay on their command line: libguestfs' QEMU."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if str(overlay).encode() in command and b"qemu-system" in command:
            found.append(path.parent.name)
    return found


def wait_for(condition: Any, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
