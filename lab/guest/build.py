"""Builds the lab's guest from Debian's packages: a root file system, two disks, a first boot, two VMDKs."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lab.guest import machine, proof
from lab.guest.sources import Source, debian_sources

NAME = "web01"
SUITE = "bookworm"
TIMEZONE = "Europe/Berlin"
RECIPE = Path(__file__).parent / "recipe"
MIB = 1 << 20
PARTITION_START = MIB
# Files that the chroot takes from this machine while packages are installed, and from the recipe at the end.
OF_THIS_MACHINE = ("resolv.conf", "hosts")

Say = Callable[[str], None]


class BuildError(Exception):
    """The guest can not be built; says what to do."""


@dataclass(frozen=True)
class Disk:
    """A disk of the guest: one partition with one ext4.

    :param capacity: bytes
    :param bootable: whether the partition is marked active
    """

    file: str
    capacity: int
    bootable: bool


DISKS = (
    Disk(f"{NAME}-disk1.vmdk", 4096 * MIB, bootable=True),
    Disk(f"{NAME}-disk2.vmdk", 1024 * MIB, bootable=False),
)


def recipe_digest() -> str:
    """Name a recipe by its content: 16 hex digits over what decides how the guest looks."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(file for file in RECIPE.rglob("*") if file.is_file()):
        digest.update(f"{path.relative_to(RECIPE)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build(folder: Path, say: Say) -> None:
    """Build the guest and prove it on VMware's hardware.

    :param folder: an empty folder; at the end it holds the VMDKs, guest.json, the proof and build.log
    :param say: takes a line that tells what is being done
    :raises BuildError: packages can not be had, or a tool failed
    """
    if os.geteuid() != 0:
        raise BuildError("the guest's files belong to root: build it as root, or with sudo")
    log = Log(folder / "build.log", say)
    root = folder / "root"
    log.step("Debian's base system (debootstrap)")
    sources = debian_sources(SUITE)
    bootstrap(root, sources, log)
    log.step("packages and two kernels (apt)")
    kernels = install_packages(root, sources, log)
    log.step("configuration, initramfs checked for virtio")
    configure(root, kernels[-1], log)
    refuse_virtio(root, kernels)
    log.step("disks")
    data = folder / "data"
    write_data(data)
    raw = [make_disk(disk, content, folder, log) for disk, content in zip(DISKS, (root, data), strict=True)]
    log.step("first boot on VMware's hardware: boot loader")
    first_boot(raw, root, kernels[-1], folder)
    for image in raw:
        # -n: only look; a file system that was not unmounted cleanly, or has any fault, ends the build.
        log.run(["e2fsck", "-f", "-n", f"{image}?offset={PARTITION_START}"])
    log.step("streamOptimized VMDKs")
    for disk, image in zip(DISKS, raw, strict=True):
        to_vmdk(image, folder / disk.file, log)
    write_facts(folder, kernels)
    for leftover in (root, data):
        shutil.rmtree(leftover)
    for image in raw:
        image.unlink()
    log.step("proof: boot of the VMDKs on VMware's hardware")
    facts = proof.prove_on_vmware(folder)
    log.step(f"done: login after {facts['seconds_to_login']} s, {facts['root']}, ens192 {facts['address']}")


class Log:
    """Tells a person the steps, and keeps what the tools said.

    :param path: takes the tools' output
    """

    def __init__(self, path: Path, say: Say) -> None:
        self._path, self._say = path, say
        self._begun = time.monotonic()

    def step(self, what: str) -> None:
        """Tell what is done next."""
        line = f"guest {time.monotonic() - self._begun:4.0f} s: {what}"
        with self._path.open("a") as file:
            file.write(f"== {line}\n")
        self._say(line)

    def run(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        """Run a tool.

        :raises BuildError: it failed; with the end of what it said
        """
        with self._path.open("a") as file:
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, check=False
            )
        if result.returncode != 0:
            said = "\n".join(self._path.read_text(errors="replace").splitlines()[-15:])
            raise BuildError(f"{command[0]} failed with status {result.returncode}:\n{said}")


def bootstrap(root: Path, sources: Sequence[Source], log: Log) -> None:
    """Make Debian's base system; without a source from debootstrap's own mirror."""
    log.run(
        [
            # A mount namespace of its own: whatever debootstrap mounts goes when it ends, killed or not.
            *("unshare", "--mount", "--propagation", "private"),
            *("debootstrap", "--variant=minbase", "--arch=amd64", SUITE, str(root)),
            *(source.uri for source in sources[:1]),
        ]
    )


def in_chroot(root: Path, *command: str) -> list[str]:
    """Wrap a command so that it runs in the guest's tree, with namespaces that end with it and leave no mount."""
    return [
        *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
        *(f"--mount-proc={root / 'proc'}", "chroot", str(root), *command),
    ]


def chroot_environment() -> dict[str, str]:
    """The environment of package installation: nobody to ask, this machine's proxies."""
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return proxies | {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
    }


def install_packages(root: Path, sources: Sequence[Source], log: Log) -> list[str]:
    """Install the recipe's packages and two kernels in the tree.

    :return: the kernels' releases, oldest first
    """
    environment = chroot_environment()
    copy_recipe(root, without=OF_THIS_MACHINE)
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # no service starts in the chroot
    policy.chmod(0o755)
    lines = [f"deb {source.uri} {source.suite} main\n" for source in sources]
    apt_list = root / "etc/apt/sources.list"
    if lines:
        apt_list.write_text("".join(lines))  # else it names debootstrap's own mirror
    log.run(in_chroot(root, "apt-get", "update"), environment)
    kernels = newest_kernels(root, environment)
    names = [line for line in (RECIPE / "packages.txt").read_text().split("\n") if line and line[0] != "#"]
    log.run(
        in_chroot(
            root,
            *("apt-get", "install", "--yes", "--no-install-recommends"),
            *("-o", "Dpkg::Options::=--force-unsafe-io", "-o", "Dpkg::Options::=--force-confold"),
            *(*names, "linux-image-amd64", *(f"linux-image-{kernel}" for kernel in kernels)),
        ),
        environment,
    )
    policy.unlink()
    log.run(in_chroot(root, "apt-get", "clean"), environment)
    # The mirror is this machine's affair, not the guest's.
    apt_list.write_text("")
    shutil.rmtree(root / "var/lib/apt/lists")
    (root / "var/lib/apt/lists/partial").mkdir(parents=True)
    return kernels


def newest_kernels(root: Path, environment: dict[str, str]) -> list[str]:
    """Pick the two newest kernels of Debian 12's own series that the mirror has, oldest first.

    :raises BuildError: it has none
    """
    names = subprocess.run(
        in_chroot(root, "apt-cache", "pkgnames", "linux-image-"),
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    # No -cloud (it has neither vmw_pvscsi nor vmxnet3), no -rt, no backport (+deb12).
    releases = [match[1] for name in names if (match := re.fullmatch(r"linux-image-(6\.1\.[0-9]+-[0-9]+-amd64)", name))]
    if not releases:
        raise BuildError("the mirror has no kernel of Debian 12: run apt-get update, or name another mirror")
    return sorted(releases, key=lambda release: [int(number) for number in re.findall("[0-9]+", release)])[-2:]


def copy_recipe(root: Path, without: Sequence[str] = ()) -> None:
    """Lay the recipe's files over the tree."""
    shutil.copytree(RECIPE / "root", root, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*without))


def configure(root: Path, kernel: str, log: Log) -> None:
    """Make the tree a machine of its own: names, password, time zone, identity, services."""
    copy_recipe(root)
    for folder in ("srv/data", "media/cdrom0"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    localtime = root / "etc/localtime"
    localtime.unlink(missing_ok=True)
    localtime.symlink_to(f"/usr/share/zoneinfo/{TIMEZONE}")
    subprocess.run(in_chroot(root, "chpasswd"), input=f"{machine.USER}:{machine.PASSWORD}\n", text=True, check=True)
    log.run(in_chroot(root, "systemd-machine-id-setup"))
    # /vmlinuz names the kernel that was installed last, and apt does not install in the order of age.
    log.run(in_chroot(root, "linux-update-symlinks", "install", kernel, f"/boot/vmlinuz-{kernel}"))
    log.run(in_chroot(root, "systemctl", "enable", "hyperflow-lab-app.service"))


def refuse_virtio(root: Path, kernels: Sequence[str]) -> None:
    """Make sure of what the guest is for: each initramfs knows VMware's disk controller, and no virtio.

    :raises BuildError: it is not so
    """
    for kernel in kernels:
        listing = subprocess.run(
            in_chroot(root, "lsinitramfs", f"/boot/initrd.img-{kernel}"), check=True, capture_output=True, text=True
        ).stdout
        modules = set(re.findall(r"/([^/\n]+)\.ko", listing))
        if "vmw_pvscsi" not in modules or any(module.startswith("virtio") for module in modules):
            raise BuildError(f"the initramfs of {kernel} has the wrong modules: {', '.join(sorted(modules))}")


def write_data(folder: Path) -> None:
    """Write what lies on the data disk: a marker, data that does not compress, data that does, their digests."""
    folder.mkdir()
    source = random.Random(NAME)  # noqa: S311 - the same bytes in every build, not secret ones
    contents = {
        "marker.txt": b"This file was written when the lab's guest was made, on /dev/sdb1.\n",
        "pictures.bin": source.randbytes(24 * MIB),
        "orders.csv": b"".join(b"%d;%d\n" % (number, source.randrange(10**6)) for number in range(10**6)),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items()]
    (folder / "SHA256SUMS").write_text("".join(sums))


def make_disk(disk: Disk, content: Path, folder: Path, log: Log) -> Path:
    """Make a raw disk image with a folder's content in one ext4, without mounting anything.

    :return: the image
    """
    image = folder / Path(disk.file).with_suffix(".raw")
    with image.open("wb") as file:
        file.truncate(disk.capacity)
    table = f"label: dos\nstart={PARTITION_START // 512}, type=83{', bootable' if disk.bootable else ''}\n"
    subprocess.run(["sfdisk", "--quiet", str(image)], input=table, text=True, check=True)
    size = (disk.capacity - PARTITION_START) // 1024
    log.run(
        [
            "mke2fs",
            "-q",
            "-F",
            "-t",
            "ext4",
            "-E",
            f"offset={PARTITION_START}",
            "-d",
            str(content),
            str(image),
            f"{size}k",
        ]
    )
    return image


def first_boot(raw: Sequence[Path], root: Path, kernel: str, folder: Path) -> None:
    """Let the guest itself install its boot loader, on the hardware it believes in, and shut it down in order."""
    loaded = machine.Kernel(
        vmlinuz=root / f"boot/vmlinuz-{kernel}",
        initramfs=root / f"boot/initrd.img-{kernel}",
        command_line="root=/dev/sda1 ro console=ttyS0,115200n8",
    )
    hardware = machine.vmware_hardware([machine.Disk(image, "raw") for image in raw])
    with machine.started(hardware, folder / "first-boot.log", loaded) as console:
        console.log_in()
        console.run("echo grub-pc grub-pc/install_devices multiselect /dev/sda | debconf-set-selections")
        console.run("grub-install /dev/sda", seconds=300)
        console.run("update-grub", seconds=300)
        console.run("grep -q 'root=/dev/sda1' /boot/grub/grub.cfg")
        console.power_off()


def to_vmdk(image: Path, target: Path, log: Log) -> None:
    """Write an image as what vCenter exports: a streamOptimized VMDK."""
    log.run(
        [
            *("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized,adapter_type=lsilogic"),
            *("-f", "raw", str(image), str(target)),
        ]
    )


def write_facts(folder: Path, kernels: Sequence[str]) -> None:
    """Write guest.json: what the folder holds, for those who serve and check it."""
    disks = []
    for disk in DISKS:
        path = folder / disk.file
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        disks.append({"file": disk.file, "bytes": size, "sha256": digest, "capacity_bytes": disk.capacity})
    facts = {
        "name": NAME,
        "disks": disks,
        "firmware": "bios",
        "mac": machine.MAC,
        "kernels": list(kernels),
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": recipe_digest(),
    }
    (folder / "guest.json").write_text(json.dumps(facts, indent=2) + "\n")
