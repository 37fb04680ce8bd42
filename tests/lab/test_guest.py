"""The lab's guest is what a migration needs for a real test: it lives on VMware's hardware, and only there."""

import hashlib
import json
import subprocess

import pytest

from lab import guest
from lab.guest import build

pytestmark = pytest.mark.lab

# The appliance mounts the guest read-only and lets the guest's own lsinitramfs list each initramfs.
LOOK_INSIDE = """
import guestfs, json, sys
g = guestfs.GuestFS(python_return_dict=True)
g.set_backend("direct")
g.set_backend_settings(["force_tcg"])
for disk in sys.argv[1:]:
    g.add_drive_opts(disk, format="vmdk", readonly=1)
g.launch()
g.mount_ro("/dev/sda1", "/")
kernels = g.glob_expand("/boot/initrd.img-*")
print(json.dumps({
    "initramfs": {kernel: g.command_lines(["lsinitramfs", kernel]) for kernel in kernels},
    "link_files": g.glob_expand("/etc/systemd/network/*.link") + g.glob_expand("/etc/udev/rules.d/*"),
    "root_arguments": g.grep("root=", "/boot/grub/grub.cfg"),
    "fstab": g.read_lines("/etc/fstab"),
    "machine_id": g.cat("/etc/machine-id").strip(),
    "sources": g.cat("/etc/apt/sources.list"),
}))
g.shutdown()
"""


@pytest.fixture(scope="module")
def folder():
    return guest.ensure_guest()


@pytest.fixture(scope="module")
def facts(folder):
    return json.loads((folder / "guest.json").read_text())


@pytest.fixture(scope="module")
def inside(folder, facts):
    disks = [str(folder / disk["file"]) for disk in facts["disks"]]
    result = subprocess.run(["/usr/bin/python3", "-c", LOOK_INSIDE, *disks], check=True, capture_output=True, text=True)
    return json.loads(result.stdout)


def test_the_disks_are_stream_optimized_and_have_the_sizes_and_digests_that_guest_json_says(folder, facts):
    assert [disk["capacity_bytes"] for disk in facts["disks"]] == [4 << 30, 1 << 30]
    for disk in facts["disks"]:
        path = folder / disk["file"]
        info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", path]))
        assert info["format"] == "vmdk"
        assert info["format-specific"]["data"]["create-type"] == "streamOptimized"
        assert info["virtual-size"] == disk["capacity_bytes"]
        assert path.stat().st_size == disk["bytes"]
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == disk["sha256"]


def test_the_cache_folder_holds_only_what_is_finished(folder):
    assert {path.name for path in folder.iterdir()} == {
        "build.log",
        "first-boot.log",
        "guest.json",
        "proof-vmware.json",
        "proof-vmware.log",
        "web01-disk1.vmdk",
        "web01-disk2.vmdk",
    }


def test_on_vmware_hardware_it_came_up_with_its_disks_and_its_address(folder, facts):
    proof = json.loads((folder / "proof-vmware.json").read_text())
    assert proof["root"] == "/dev/sda1"
    assert proof["data"] == "/dev/sdb1"
    assert proof["data_sums"] == "OK"
    assert proof["address"] == "192.0.2.10/24"
    assert proof["mac"] == facts["mac"] == "00:50:56:9a:10:01"
    assert proof["network_driver"] == "vmxnet3"
    assert proof["state"] == "running"
    assert proof["open_vm_tools"] == "enabled"
    assert proof["kernels"].split() == [f"vmlinuz-{kernel}" for kernel in facts["kernels"]]
    assert "web01 login:" in (folder / "proof-vmware.log").read_text(errors="replace")


def test_no_initramfs_has_a_virtio_module(inside, facts):
    assert sorted(inside["initramfs"]) == [f"/boot/initrd.img-{kernel}" for kernel in facts["kernels"]]
    for files in inside["initramfs"].values():
        assert any(file.endswith("/vmw_pvscsi.ko") for file in files)
        assert [file for file in files if "virtio" in file] == []


def test_it_names_its_disks_as_vmware_has_them_and_its_network_card_by_no_rule_of_its_own(inside):
    loaded = [line for line in inside["root_arguments"] if line.strip().startswith("linux")]
    assert loaded
    assert all("root=/dev/sda1 " in line for line in loaded)
    assert [line.split()[:2] for line in inside["fstab"] if line.startswith("/dev/sd")] == [
        ["/dev/sda1", "/"],
        ["/dev/sdb1", "/srv/data"],
    ]
    assert inside["link_files"] == []


def test_it_is_a_machine_of_its_own_that_knows_nothing_of_where_it_was_built(inside):
    assert len(inside["machine_id"]) == 32
    assert inside["sources"] == ""


def test_what_is_built_already_is_not_built_again(folder):
    def no_work(line):
        raise AssertionError(line)

    assert guest.ensure_guest(no_work) == folder


def test_another_recipe_is_another_guest(tmp_path, monkeypatch):
    before = build.recipe_digest()
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    (recipe / "packages.txt").write_text("nothing\n")
    monkeypatch.setattr(build, "RECIPE", recipe)
    assert build.recipe_digest() != before
