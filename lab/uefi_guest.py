"""The lab's guest as its UEFI sister: GPT, an EFI system partition, Debian's GRUB in its own folder and nowhere else;
an address by DHCP, from systemd-networkd, where the lab's guest has a static one from ifupdown.

It is made of the guest's root file system with the tools that write into file systems, so nothing is mounted. Kept in
``~/.cache/hyperflow/uefi-<digest of this file>-<recipe of the guest>/``: ``web01-disk1.vmdk`` and ``web01-disk2.vmdk``.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from lab.guest import ensure_guest
from lab.kept import kept

MIB = 1 << 20
ESP_MIB, ROOT_AT_MIB = 64, 66
PACKAGES = ("grub-common", "grub-efi-amd64-bin")  # are fetched and unpacked, not installed
MODULES = "part_gpt part_msdos ext2 fat normal linux search search_fs_uuid configfile echo gzio all_video test loadenv"
TABLE = (
    f"label: gpt\nstart={MIB // 512}, size={ESP_MIB * MIB // 512}, type=U\nstart={ROOT_AT_MIB * MIB // 512}, type=L\n"
)
FSTAB, GRUB_CFG = "/etc/fstab", "/boot/grub/grub.cfg"
INTERFACES, NETWORKD = "/etc/network/interfaces", "/etc/systemd/network/10-lan.network"
UNIT = "/lib/systemd/system/systemd-networkd.service"
WANTED = "/etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
DHCP = "[Match]\nName=ens192\n\n[Network]\nDHCP=ipv4\n"


def ensure_uefi_guest() -> list[Path]:
    """Find the guest, or make it (half a minute, once the lab's guest is there); its disks, the boot disk first.

    :raises RuntimeError: a tool failed
    """
    guest = ensure_guest()
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = kept("uefi", f"{recipe}-{guest.name.rpartition('-')[2]}", functools.partial(_build, guest))
    return [folder / "web01-disk1.vmdk", folder / "web01-disk2.vmdk"]


def _build(guest: Path, folder: Path) -> None:
    shutil.copy(guest / "web01-disk2.vmdk", folder)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        _run("qemu-img", "convert", "-O", "raw", str(guest / "web01-disk1.vmdk"), "bios.raw", folder=scratch)
        _run("dd", "if=bios.raw", "of=root.img", "bs=1M", "skip=1", "conv=sparse", folder=scratch)
        (scratch / "bios.raw").unlink()
        _change_files(scratch)
        _make_esp(scratch)
        disk = scratch / "uefi.raw"
        with disk.open("wb") as file:
            file.truncate(ROOT_AT_MIB * MIB + (scratch / "root.img").stat().st_size + 2 * MIB)  # and GPT's copy
        _run("sfdisk", "--quiet", str(disk), folder=scratch, stdin=TABLE)
        for part, at in (("esp.img", 1), ("root.img", ROOT_AT_MIB)):
            _run("dd", f"if={part}", f"of={disk}", "bs=1M", f"seek={at}", "conv=notrunc,sparse", folder=scratch)
        options = ("-O", "vmdk", "-o", "subformat=streamOptimized")
        _run("qemu-img", "convert", *options, str(disk), str(folder / "web01-disk1.vmdk"), folder=scratch)


def _change_files(scratch: Path) -> None:
    """Have the guest's files name its partitions as they are now, by hardware as before, and its network by DHCP."""
    for path, added in ((FSTAB, "/dev/sda1 /boot/efi vfat umask=0077 0 1\n"), (GRUB_CFG, "")):
        _write(scratch, path, _read(scratch, path, "/dev/sda1").replace("/dev/sda1", "/dev/sda2") + added)
    _write(scratch, INTERFACES, _read(scratch, INTERFACES, "allow-hotplug").partition("allow-hotplug")[0])
    _write(scratch, NETWORKD, DHCP)
    for command in ("mkdir /boot/efi", f"symlink {WANTED} {UNIT}"):
        _run("debugfs", "-w", "-R", command, "root.img", folder=scratch)
    # 1: it has mended what debugfs leaves to it, such as counts of free blocks.
    _run("e2fsck", "-f", "-y", "root.img", folder=scratch, good=(0, 1))


def _read(scratch: Path, path: str, expected: str) -> str:
    text = _run("debugfs", "-R", f"cat {path}", "root.img", folder=scratch)
    if expected not in text:
        raise RuntimeError(f"{path} of the lab's guest: found no {expected}")
    return text


def _write(scratch: Path, path: str, text: str) -> None:
    (scratch / "text").write_text(text)
    commands = (f"rm {path}", f"write text {path}", f"set_inode_field {path} mode 0100644")
    _run("debugfs", "-w", "-f", "-", "root.img", folder=scratch, stdin="".join(f"{each}\n" for each in commands))


def _make_esp(scratch: Path) -> None:
    """Make the EFI system partition as Debian's installer leaves it: without ``EFI/BOOT``."""
    _run("apt-get", "download", "--quiet", *PACKAGES, folder=scratch)
    for package in scratch.glob("*.deb"):
        _run("dpkg-deb", "--extract", str(package), "grub", folder=scratch)
    modules = ("-d", "grub/usr/lib/grub/x86_64-efi", "-O", "x86_64-efi", "-p", "/EFI/debian", "-o", "grubx64.efi")
    _run("grub/usr/bin/grub-mkimage", *modules, *MODULES.split(), folder=scratch)
    uuid = _run("blkid", "-o", "value", "-s", "UUID", "root.img", folder=scratch).strip()
    leads = f"search.fs_uuid {uuid} root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"
    (scratch / "grub.cfg").write_text(leads)
    with (scratch / "esp.img").open("wb") as file:
        file.truncate(ESP_MIB * MIB)
    _run("mkfs.vfat", "-n", "ESP", "esp.img", folder=scratch)
    _run("mmd", "-i", "esp.img", "::/EFI", "::/EFI/debian", folder=scratch)
    _run("mcopy", "-i", "esp.img", "grubx64.efi", "grub.cfg", "::/EFI/debian/", folder=scratch)


def _run(*command: str, folder: Path, stdin: str = "", good: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(command, cwd=folder, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode not in good:
        raise RuntimeError(f"{command[0]}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout
