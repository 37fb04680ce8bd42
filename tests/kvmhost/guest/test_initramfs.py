"""The initramfs: what is put in, and what is demanded of what was read back."""

from __future__ import annotations

import tracemalloc

from hyperflow.kvmhost.guest import initramfs, network
from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.guest.initramfs import Image, Kernel
from hyperflow.kvmhost.stage import Job

from tests.kvmhost.guest.memory import Memory

LINK = "/etc/systemd/network/10-hyperflow-ens192.link"
KERNEL = Kernel("6.1", "/boot/vmlinuz-6.1", "/boot/initrd.img-6.1", (), initramfs.MODULES)
FILES = (
    *(f"usr/lib/modules/6.1/kernel/drivers/{name}" for name in ("block/virtio_blk.ko", "virtio/virtio_pci.ko.xz")),
    "usr/lib/modules/6.1/kernel/drivers/scsi/virtio_scsi.ko.zst",
    "usr/lib/modules/6.1/kernel/drivers/net/virtio_net.ko.gz",
    "usr/lib/systemd/network/10-hyperflow-ens192.link",
)


NEWLINE = "\n"


def image(files: tuple[str, ...]) -> dict[str, Image]:
    path = "/boot/initrd.img-6.1"
    there = GuestFiles(Memory({}, lambda _: f"\n//image {path}\n{NEWLINE.join(files)}\n".encode()))
    return initramfs.read_images(there, "update-initramfs", [path])


def test_modules_are_found_whatever_compresses_them() -> None:
    found = initramfs.module_names(
        "\n".join([*FILES, "-rw-r--r-- 1 root root 7 Jan 1 1970 kernel/fs/nls-base.ko", "x.kore"])
    )
    assert found == {"virtio_blk", "virtio_pci", "virtio_scsi", "virtio_net", "nls_base"}


def test_an_image_with_all_drivers_and_links_has_no_faults() -> None:
    assert initramfs.faults([KERNEL], image(FILES), [LINK], required=True) == []


def test_each_missing_driver_is_a_fault() -> None:
    (fault,) = initramfs.faults([KERNEL], image(FILES[1:]), [LINK], required=True)
    assert fault == "/boot/initrd.img-6.1: found no virtio_blk in it"


def test_the_network_driver_without_the_name_of_its_interface_is_a_fault() -> None:
    (fault,) = initramfs.faults([KERNEL], image(FILES[:-1]), [LINK], required=True)
    assert "found virtio_net, but not" in fault


def test_a_rule_of_a_guest_without_systemd_is_not_demanded_in_its_initramfs() -> None:
    assert initramfs.faults([KERNEL], image(FILES[:-1]), [network.RULES], required=True) == []


def test_drivers_in_the_kernel_itself_need_no_initramfs() -> None:
    kernel = Kernel("6.1", "/boot/vmlinuz-6.1", None, initramfs.MODULES, ())
    assert initramfs.faults([kernel], {}, [], required=True) == []


def test_a_kernel_without_image_and_without_drivers_is_a_fault() -> None:
    kernel = Kernel("6.1", "/boot/vmlinuz-6.1", None, (), initramfs.MODULES)
    assert len(initramfs.faults([kernel], {}, [], required=True)) == 1


def test_modules_are_added_once_and_what_is_there_stays() -> None:
    before = "# list\nvmw_pvscsi\nvirtio-blk # already\n"
    after = initramfs.add_modules(before, initramfs.MODULES)
    assert after.startswith(before)
    assert after.split("\n")[-4:] == ["virtio_pci", "virtio_scsi", "virtio_net", ""]
    assert initramfs.add_modules(after, initramfs.MODULES) == after


def test_the_last_setting_of_modules_counts() -> None:
    assert initramfs.modules_setting(["MODULES=most\n", "# MODULES=list\nMODULES=dep\n"]) == "dep"
    assert initramfs.modules_setting([]) == "most"


def test_dracut_is_given_drivers_and_links() -> None:
    text = initramfs.dracut_config([LINK])
    assert 'add_drivers+=" virtio_pci virtio_blk virtio_scsi virtio_net "' in text
    assert f'install_items+=" {LINK} "' in text


def test_lists_of_images_are_read_as_both_programs_print_them() -> None:
    said = (
        "\n//image /boot/initrd.img-6.1\n.\nlib/modules/6.1/virtio-blk.ko.xz\nlib/modules/6.1/ext4.ko\n"
        "\n//image /boot/initramfs-5.14.img\nImage: 30M\n"
        "-rw-r--r-- 1 root root 7 Jan 1 1970 usr/lib/systemd/network/10-a.link\n"
        "lrwxrwxrwx 1 root root 7 Jan 1 1970 lib/virtio_net.ko -> ../other.ko\n"
        "\n//image /etc/shadow\nvirtio_pci.ko\n"
    )
    there = GuestFiles(Memory({}, lambda _: said.encode()))
    asked = ["/boot/initrd.img-6.1", "/boot/initramfs-5.14.img"]
    assert initramfs.read_images(there, "dracut", asked) == {
        asked[0]: Image(asked[0], frozenset({"virtio_blk"}), frozenset(), 3),
        asked[1]: Image(asked[1], frozenset({"virtio_net"}), frozenset({"10-a.link"}), 3),
    }


def test_a_list_of_short_names_takes_little_more_memory_than_its_bytes() -> None:
    """64 MiB of them, as many as a guest's program may print, were gigabytes of texts."""
    said = b"\n//image /i\n" + b"".join(b"%x\n" % number for number in range(300_000))
    there = GuestFiles(Memory({}, lambda _: said))
    tracemalloc.start()
    try:
        found = initramfs.read_images(there, "dracut", ["/i"])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found["/i"].count == 300_000
    assert most < 4 * len(said)


def test_files_of_configuration_are_read_one_by_one_and_changed_where_they_resume_from_a_device() -> None:
    folder = initramfs.DEBIAN_CONFIG_FOLDER
    memory = Memory(
        {
            initramfs.DEBIAN_CONFIG: "MODULES=dep\n",
            f"{folder}/a": "RESUME=/dev/sda2\n",
            f"{folder}/b": "x" * 100,
        }
    )
    there = GuestFiles(memory)
    initramfs.prepare(there, Changes(there, False, "/b"), "update-initramfs", [], {"/dev/sda2": "UUID=5a5a"}.get)
    assert memory.files[f"{folder}/a"] == b"RESUME=UUID=5a5a\n"
    assert b"\nMODULES=most\n" in memory.files[initramfs.DEBIAN_OVERRIDE]
    assert b"virtio_blk" in memory.files[initramfs.DEBIAN_MODULES]


def test_a_guest_whose_kernels_have_no_initramfs_is_left_alone() -> None:
    """xargs without arguments runs its program once, which then fails for want of a kernel."""
    ran: list[list[str]] = []
    there = GuestFiles(Memory({}, lambda arguments: ran.append(arguments) or b""))
    kernel = Kernel("6.1", "/boot/vmlinuz-6.1", None, initramfs.MODULES, ())
    for program in ("update-initramfs", "dracut"):
        initramfs.rebuild(there, Changes(there, False, "/b"), program, [kernel], Job("fix"))
    assert ran == []
