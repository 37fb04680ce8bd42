"""Which operating system lies on the disks: found without believing more than the disks show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable

from hyperflow.kvmhost.guest import devices as device_names
from hyperflow.kvmhost.guest import fstab
from hyperflow.kvmhost.guest.devices import Devices, FileSystem
from hyperflow.kvmhost.guest.files import GuestFiles, printable
from hyperflow.kvmhost.stage import Job, StageError

# File systems that the guest's own programs and configuration may be spread over; data stays unmounted.
SYSTEM_PATHS = ("/boot", "/efi", "/etc", "/home", "/opt", "/root", "/tmp", "/usr", "/var")  # noqa: S108 - the guest's
ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"  # GPT type of an EFI system partition
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"  # of GRUB's partition on a GPT disk that BIOS boots
OS_RELEASE = "/etc/os-release"
HOSTNAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})")  # hostname(7)
_SNAPSHOT = re.compile(r"^btrfsvol:.+/\.snapshots/\d+/snapshot$")
_SUBVOLUME = re.compile(r"subvol=([A-Za-z0-9_@./-]+)")


@dataclass(frozen=True)
class Mount:
    """An entry of fstab that mounts a file system of the disks.

    :param spec: how the guest names it: /dev/sda1, UUID=...
    """

    path: str
    spec: str
    options: str
    filesystem: FileSystem

    def as_json(self) -> dict[str, Any]:
        """The mount for a result."""
        return {
            "path": printable(self.path),
            "spec": printable(self.spec),
            "options": printable(self.options),
            "fstype": self.filesystem.type,
            "device": self.filesystem.device,
            "uuid": self.filesystem.uuid,
            "disk_id": self.filesystem.disk_id,
        }


@dataclass(frozen=True)
class Guest:
    """What was found; its root file system is mounted when it is Linux.

    :param states: ext file systems as they were before anything mounted them: clean, needs-recovery, errors, unclean
    """

    root: FileSystem
    os: dict[str, str | None]
    devices: Devices
    states: dict[str, str]
    fstab: str
    mounts: tuple[Mount, ...]

    @property
    def is_linux(self) -> bool:
        """Whether it is Linux."""
        return self.os["type"] == "linux"


def identify(handle: Any, disk_ids: Sequence[str], serials: dict[str, int], job: Job) -> Guest:
    """Find the one operating system on the appliance's disks, and mount its root where it is Linux.

    :param disk_ids: in the appliance's order
    :raises StageError: when there is none or more than one, or it is hibernated
    """
    devices = device_names.read(handle, disk_ids, serials)
    states = {one.device: _state(handle, one.device) for one in devices.filesystems if one.type.startswith("ext")}
    hibernated = [one.device for one in devices.filesystems if one.type == "swsuspend"]
    if hibernated:
        raise StageError(
            f"the guest is hibernated ({', '.join(hibernated)} holds its memory): its file systems are not at rest; "
            "start the source VM, shut it down, and export it again"
        )
    mountable = _one_root(handle, devices)
    root_device = device_names.device_of(mountable, [one.device for one in devices.filesystems])
    root = next((one for one in devices.filesystems if one.device == root_device), None)
    if root is None:
        raise StageError(f"{root_device}: found an operating system, but no file system of a known type")
    facts = _operating_system(handle, mountable)
    if facts["type"] != "linux":
        return Guest(root, facts, devices, states, "", ())
    if states.get(root.device) == "errors":
        raise StageError(f"{root.device}: its file system has errors; run fsck in the source VM, and export it again")
    handle.mount(mountable, "/")
    files = GuestFiles(handle)
    release = re.search(r"^PRETTY_NAME=[\"']?([^\"'\n]+)", files.read_text(OS_RELEASE) or "", re.M)
    if release:  # guestfs takes Debian's from a file that has the number only
        facts["product_name"] = printable(release[1])
    text = files.read_text(fstab.FSTAB) or ""
    mounts = tuple(_mounts(text, devices))
    for mount in mounts:
        if mount.path == "/" and mount.filesystem.device != root.device:
            raise StageError(
                f"fstab mounts {mount.spec} as /, which is {mount.filesystem.device} by the order of the disks, "
                f"but the system is on {root.device}: the manifest's order of disks is not the guest's"
            )
    for device, found in states.items():
        if found != "clean":
            job.log(f"{device}: was not unmounted cleanly ({found}); its journal is replayed on the overlay")
    return Guest(root, facts, devices, states, text, mounts)


def mount_system(handle: Any, guest: Guest, job: Job) -> None:
    """Mount the file systems that belong to the operating system below its root.

    :raises StageError: when one cannot be mounted: changes would land in the folder below it
    """
    for mount in sorted(guest.mounts, key=lambda one: one.path.count("/")):
        if mount.filesystem.type == "swap" or not _is_system(mount.path):
            continue
        if not handle.is_dir(mount.path, followsymlinks=True):
            job.warn(
                f"{printable(mount.path)}: fstab mounts {printable(mount.spec)} there, and there is no such folder"
            )
            continue
        subvolume = _SUBVOLUME.search(mount.options) if mount.filesystem.type == "btrfs" else None
        options = f"subvol={subvolume[1]}" if subvolume else ""
        # mount does not run in a chroot: a link must be resolved before, inside the guest
        place = handle.realpath(mount.path)
        if place == "/":
            raise StageError(
                f"fstab mounts {printable(mount.spec)} on {printable(mount.path)}, which leads to /: it would hide the "
                "system; correct fstab or the link in the source VM"
            )
        handle.mount_options(options, mount.filesystem.device, place)


def firmware(handle: Any) -> str:
    """Tell ``uefi`` or ``bios`` as virt-v2v does: an EFI system partition on GPT, unless there is one for BIOS boot."""
    types = set()
    for disk in handle.list_devices():
        try:
            if handle.part_get_parttype(disk) != "gpt":
                continue
        except RuntimeError:
            continue  # no partition table: a disk that is one file system, or empty
        types |= {handle.part_get_gpt_type(disk, part["part_num"]).upper() for part in handle.part_list(disk)}
    return "uefi" if ESP in types and BIOS_BOOT not in types else "bios"


def selinux(files: GuestFiles) -> str | None:
    """Tell SELinux' mode as configured: enforcing, permissive or disabled; None where there is none."""
    match = re.search(r"^SELINUX=(\w+)", files.read_text("/etc/selinux/config") or "", re.M)
    return match[1].lower() if match else None


def encrypted(devices: Devices) -> list[dict[str, Any]]:
    """List the LUKS volumes."""
    return [
        {"device": one.device, "uuid": one.uuid, "disk_id": one.disk_id}
        for one in devices.filesystems
        if one.type == "crypto_LUKS"
    ]


def root_json(guest: Guest) -> dict[str, Any]:
    """The root file system for a result."""
    root = guest.root
    return {"device": root.device, "uuid": root.uuid, "fstype": root.type, "disk_id": root.disk_id}


def _one_root(handle: Any, devices: Devices) -> str:
    roots = without_snapshots(handle.inspect_os(), [one.device for one in devices.filesystems])
    if not roots:
        luks = encrypted(devices)
        if luks:
            where = ", ".join(one["device"] for one in luks)
            raise StageError(f"no operating system found; {where} is encrypted with LUKS, which is not supported yet")
        seen = ", ".join(f"{one.device} ({one.type})" for one in devices.filesystems) or "no file system at all"
        raise StageError(f"no operating system found on the disks; found {seen}")
    if len(roots) > 1:
        found = "; ".join(f"{root}: {handle.inspect_get_product_name(root)}" for root in roots)
        raise StageError(f"found {len(roots)} operating systems, expected one: {found}")
    return str(roots[0])


def without_snapshots(roots: Sequence[str], blocks: Sequence[str]) -> list[str]:
    """Leave out snapper's snapshots of a btrfs that has its root besides: they are states of one system.

    openSUSE boots from such a snapshot; guestfs names it by its device, for it is the default subvolume.

    :param roots: mountables; ``btrfsvol:/dev/sda2/@/.snapshots/2/snapshot`` is a snapshot
    :param blocks: the devices of file systems
    """
    own = {device_names.device_of(root, blocks) for root in roots if not _SNAPSHOT.search(root)}
    return [root for root in roots if not _SNAPSHOT.search(root) or device_names.device_of(root, blocks) not in own]


def _operating_system(handle: Any, root: str) -> dict[str, str | None]:
    major, minor = handle.inspect_get_major_version(root), handle.inspect_get_minor_version(root)
    facts = {
        "type": handle.inspect_get_type(root),
        "distro": handle.inspect_get_distro(root),
        "product_name": _told(handle.inspect_get_product_name, root),
        "version": f"{major}.{minor}" if minor else str(major),
        "arch": handle.inspect_get_arch(root),
        "hostname": _told(handle.inspect_get_hostname, root),
    }
    if facts["hostname"] is not None and not HOSTNAME.fullmatch(facts["hostname"]):
        facts["hostname"] = None  # a first line of something else: /etc/hostname may be a link to any file
    return {key: None if value in (None, "unknown") else str(value) for key, value in facts.items()}


def _told(question: Callable[[str], str], root: str) -> str | None:
    """Ask guestfs; None where the guest's answer is no UTF-8, which its Python binding cannot give."""
    try:
        return question(root)
    except UnicodeError:
        return None


def _mounts(text: str, devices: Devices) -> list[Mount]:
    found = []
    for entry in fstab.entries(text):
        filesystem = fstab.filesystem_of(entry, devices)
        if filesystem is not None:
            found.append(Mount(entry.field(1), entry.field(0), entry.field(3), filesystem))
    return found


def _is_system(path: str) -> bool:
    return any(path == one or path.startswith(f"{one}/") for one in SYSTEM_PATHS)


def _state(handle: Any, device: str) -> str:
    superblock = handle.tune2fs_l(device)
    if "errors" in superblock.get("Filesystem state", ""):
        return "errors"
    if "needs_recovery" in superblock.get("Filesystem features", "").split():
        return "needs-recovery"
    return "clean" if superblock.get("Filesystem state") == "clean" else "unclean"
