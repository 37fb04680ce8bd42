"""The initramfs: what is put in, and what is demanded of what was read back."""

from __future__ import annotations

from hyperflow.kvmhost.guest import initramfs
from hyperflow.kvmhost.guest.initramfs import Image, Kernel

LINK = "/etc/systemd/network/10-hyperflow-ens192.link"
KERNEL = Kernel("6.1", "/boot/vmlinuz-6.1", "/boot/initrd.img-6.1", (), initramfs.MODULES)
FILES = (
    *(f"usr/lib/modules/6.1/kernel/drivers/{name}" for name in ("block/virtio_blk.ko", "virtio/virtio_pci.ko.xz")),
    "usr/lib/modules/6.1/kernel/drivers/scsi/virtio_scsi.ko.zst",
    "usr/lib/modules/6.1/kernel/drivers/net/virtio_net.ko.gz",
    "usr/lib/systemd/network/10-hyperflow-ens192.link",
)


def image(files: tuple[str, ...]) -> dict[str, Image]:
    return {"/boot/initrd.img-6.1": Image("/boot/initrd.img-6.1", initramfs.module_names("\n".join(files)), files)}


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
