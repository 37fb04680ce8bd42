"""Puts the probe into a guest, on throw-away overlays, before it boots."""

from __future__ import annotations

import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperflow.kvmhost.guest.appliance import Appliance
from hyperflow.kvmhost.stage import Job, StageError

LIMIT = 600.0  # seconds; mounting a file system with a long journal takes a while
SCRIPT = "/etc/hyperflow-probe"  # below /etc: always on the root file system, which /usr need not be
UNIT = "/etc/systemd/system/hyperflow-probe.service"
RELABEL = "/.autorelabel"  # SELinux: the guest gives all its files labels at its next boot, and restarts
WANTS = "/etc/systemd/system/multi-user.target.wants"
SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
SUBVOLUME = re.compile(r"subvol=[A-Za-z0-9_@./-]+")
SUBVOLUMES = ("", "@", "@rootfs", "root", "@/.snapshots/1/snapshot")  # plain, Ubuntu, Debian, Fedora, openSUSE


@dataclass(frozen=True)
class Root:
    """The guest's root file system: its UUID, or where that is not known, its device as the source names it.

    :param usr: UUID of the file system of /usr, where that is not the root's
    :param usr_options: which fstab mounts it with
    """

    uuid: str
    device: str
    fstype: str
    usr: str = ""
    usr_options: str = ""


@dataclass(frozen=True)
class Planted:
    """What was seen of the guest and put into it.

    :param nonce: what the probe repeats; None where the guest does not run systemd, so that it has none
    :param relabels: whether it restarts once before it is up, when it has given its files SELinux labels
    """

    nonce: str | None  # never read at run time, unlike a stage's options
    relabels: bool


def plant(overlays: list[Path], root: Root, nonce: str, job: Job) -> Planted:
    """Mount the root file system of the overlays in libguestfs' appliance and enable the probe in it.

    :param nonce: what the probe must repeat
    :raises StageError: when there are no such file systems, or no guestfs on this host
    """
    with Appliance(overlays, job, limit=LIMIT) as handle:
        _mount(handle, root)
        _mount_usr(handle, root)
        has_systemd = any(handle.is_file(path, followsymlinks=True) for path in SYSTEMD)
        if has_systemd:
            _write(handle, nonce)
        return Planted(nonce if has_systemd else None, bool(handle.is_file(RELABEL)))


def _mount(handle: Any, root: Root) -> None:
    device = root.device
    if root.uuid:
        device = _find(handle, "root file system", root.uuid)
    for subvolume in SUBVOLUMES if root.fstype == "btrfs" else ("",):
        try:
            handle.mount_options(f"subvol={subvolume}" if subvolume else "", device, "/")
        except RuntimeError:
            if not subvolume:
                raise
            continue  # there is none of that name
        if handle.is_dir("/etc", followsymlinks=True):
            return
        handle.umount("/")
    raise StageError(f"{device}: found no /etc, expected the guest's root file system")


def _mount_usr(handle: Any, root: Root) -> None:
    """Mount /usr, where it has a file system of its own: a guest's systemd is there."""
    if not root.usr or not handle.is_dir("/usr", followsymlinks=True):
        return
    place = handle.realpath("/usr")  # mount does not follow links inside the guest
    if place != "/":
        subvolume = SUBVOLUME.search(root.usr_options)
        handle.mount_options(subvolume[0] if subvolume else "", _find(handle, "file system of /usr", root.usr), place)


def _find(handle: Any, what: str, uuid: str) -> str:
    try:
        return str(handle.findfs_uuid(uuid))
    except RuntimeError as fault:
        raise StageError(f"none of the images has the {what} with UUID {uuid}") from fault


def _write(handle: Any, nonce: str) -> None:
    script = pkgutil.get_data(__package__, "hyperflow-probe.sh")
    if script is None:
        raise StageError("the program is incomplete: it has no hyperflow-probe.sh")
    unit = (
        "[Unit]\nDescription=Hyperflow boot probe\n\n"
        # simple, not oneshot: a boot waits for its oneshot units, and the probe waits for the boot
        # by its shell: a relabelling gives the script a label with which SELinux may not start it
        f"[Service]\nType=simple\nExecStart=/bin/sh {SCRIPT} {nonce}\nStandardOutput=null\nStandardError=null\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    link = f"{WANTS}/hyperflow-probe.service"
    for path in (SCRIPT, UNIT, link):
        handle.rm_f(path)
    handle.mkdir_p(WANTS)
    handle.write(SCRIPT, script)
    handle.chmod(0o755, SCRIPT)
    handle.write(UNIT, unit)
    handle.ln_s(UNIT, link)
    if handle.is_file("/etc/selinux/config"):  # where it enforces, a unit without a label is not read
        for path, kind in ((SCRIPT, "bin_t"), (UNIT, "systemd_unit_file_t")):
            label = f"system_u:object_r:{kind}:s0"
            handle.lsetxattr("security.selinux", label + "\0", len(label) + 1, path)
