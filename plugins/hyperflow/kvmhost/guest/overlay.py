"""Overlays over the staged disks: everything that is written goes there, the staged files are only read."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hyperflow.kvmhost import overlay
from hyperflow.kvmhost.images import qemu, sources
from hyperflow.kvmhost.images.files import open_regular
from hyperflow.kvmhost.manifest_file import Disk
from hyperflow.kvmhost.stage import Job

DISK_UUID = re.compile(rb"^ddb\.uuid[ \t]*=[ \t]*\"([0-9a-fA-F -]+)\"", re.M)  # "60 00 C2 9a ..."


def create(disks: Sequence[Disk], folder: Path, job: Job) -> dict[str, Path]:
    """Create an empty overlay over each disk; the overlays by disk id, in the order of the disks.

    :param folder: an empty folder for ``ID.qcow2``
    :raises BadRequest: when a disk refers to other files
    :raises StageError: when qemu-img cannot read a disk
    """
    qemu.note_version(job)
    overlays = {}
    for disk in disks:
        sources.require_self_contained(disk.path, disk.source_format)
        overlays[disk.id] = folder / f"{disk.id}.qcow2"
        overlay.create(disk.path, qemu.driver(disk.source_format), overlays[disk.id])
    return overlays


def state(disks: Sequence[Disk]) -> list[tuple[int, int, int, int]]:
    """Device, inode, bytes and time of change of the staged files and their extents: equal when nobody wrote to them.

    :raises BadRequest: when a disk names extents that are not taken
    """
    paths = [path for disk in disks for path in (disk.path, *sources.extents(disk.path, disk.source_format))]
    found = [path.stat() for path in paths]
    return [(one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in found]


def sync(path: Path) -> int:
    """Put a finished overlay on the disk; its bytes there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_blocks * 512
    finally:
        os.close(descriptor)


def serials(disks: Sequence[Disk]) -> dict[str, int]:
    """The UUIDs that VMware gave the disks, as by-id names hold them: 32 hex digits -> index of the disk."""
    found = {}
    for index, disk in enumerate(disks):
        if disk.source_format != "vmdk":
            continue
        with os.fdopen(open_regular(disk.path), "rb") as file:
            match = DISK_UUID.search(file.read(64 * 1024))  # the descriptor is in front, in VMware's files and QEMU's
        digits = re.sub(rb"[^0-9a-fA-F]", b"", match[1]).decode().lower() if match else ""
        if len(digits) == 32:
            found[digits] = index
    return found
