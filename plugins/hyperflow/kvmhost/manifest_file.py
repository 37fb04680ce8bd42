"""The Artifact Manifest as the host's stages read it: strictly, and only what they need.

The control plane writes and validates manifests with :mod:`hyperflow.manifest`; this reader trusts nothing of that. A
manifest and the files it names lie on a disk that others may write to, and a stage runs as root.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperflow.kvmhost.stage import BadRequest

MANIFEST_LIMIT = 16 * 1024 * 1024  # bytes; a manifest of a thousand disks has some 500 kB
SOURCE_FORMATS = ("vmdk", "qcow2", "raw", "vhd", "vhdx", "vdi")
DISKS_LIMIT = 1000  # of a VM; vSphere takes 256
DISK_TYPES = ("boot", "data", "unknown")
DEFAULT_BOOT_ORDER = 999

_ID = re.compile(r"[a-zA-Z0-9_-]+")
_CHECKSUM = re.compile(r"sha256:([0-9a-f]{64})")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


@dataclass(frozen=True)
class ManifestReference:
    """Where a manifest lies and what it must be: the one thing that travels between the stages.

    :param path: the manifest file
    :param sha256: SHA-256 of the file, 64 lowercase hex digits
    """

    path: Path
    sha256: str


@dataclass(frozen=True)
class Disk:
    """One entry of ``disks[]``.

    :param bytes: size of the file at ``path``
    :param checksum: SHA-256 of that file in hex; None when the manifest names none
    :param virtual_bytes: the guest's disk size, where the manifest has it
    """

    id: str
    source_format: str
    bytes: int
    path: Path
    checksum: str | None
    boot_order_hint: int
    disk_type: str
    virtual_bytes: int | None


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read and whose disks are there, in the order of the list."""

    path: Path
    sha256: str
    document: Mapping[str, Any]
    disks: tuple[Disk, ...]

    @property
    def vm_id(self) -> str | None:
        """The VM at its source, as a MoRef; None where the manifest does not tell."""
        source = self.document.get("source")
        found = source.get("vm_id") if isinstance(source, dict) else None
        return found if isinstance(found, str) and found else None

    @property
    def boot_order(self) -> tuple[Disk, ...]:
        """The disks, boot disk first: lowest hint; on a tie a disk of type boot; then the order of the list."""
        return tuple(sorted(self.disks, key=lambda disk: (disk.boot_order_hint, disk.disk_type != "boot")))

    def disk(self, disk_id: str) -> Disk:
        """Find a disk by its id.

        :raises BadRequest: when there is none
        """
        for disk in self.disks:
            if disk.id == disk_id:
                return disk
        known = ", ".join(disk.id for disk in self.disks)
        raise BadRequest(f"disk_id: found {disk_id!r}, expected one of the manifest's disks: {known}")


def load(path: Path, sha256: str) -> Manifest:
    """Read a manifest whose digest is known.

    :param sha256: 64 hex digits that the file must have
    :raises BadRequest: with every fault found, as ``path: found X, expected Y``
    """
    expected = _DIGEST.fullmatch(sha256)
    if expected is None:
        raise BadRequest(f"manifest.sha256: found {sha256!r}, expected 64 lowercase hex digits")
    content = _read_regular(path)
    found = hashlib.sha256(content).hexdigest()
    if found != expected[1]:
        raise BadRequest(
            f"{path}: found SHA-256 {found}, expected {expected[1]}; the manifest was changed after it was made"
        )
    try:
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as fault:
        raise BadRequest(f"{path}: found no JSON document: {fault}") from fault
    return Manifest(path, found, document, read_disks(document, str(path)))


def read_disks(document: Any, where: str) -> tuple[Disk, ...]:
    """Check a manifest's document and its disks' files.

    :param document: the parsed JSON
    :param where: what messages name as the manifest
    :raises BadRequest: with every fault found
    """
    faults: list[str] = []
    if not isinstance(document, dict):
        raise BadRequest(f"{where}: found {type(document).__name__}, expected an object")
    if document.get("manifest_version") != "1.0":
        faults.append(f"manifest_version: found {document.get('manifest_version')!r}, expected '1.0'")
    entries = document.get("disks")
    if not isinstance(entries, list) or not entries:
        faults.append("disks: found none, expected a list with at least one disk")
        entries = []
    if len(entries) > DISKS_LIMIT:
        faults.append(f"disks: found {len(entries)}, expected at most {DISKS_LIMIT}")
        entries = []
    disks = [_read_disk(entry, f"disks[{index}]", faults) for index, entry in enumerate(entries)]
    for field, name in (("id", "id"), ("path", "local_path")):
        seen: set[Any] = set()
        for index, disk in enumerate(disks):
            value = getattr(disk, field)
            if value in seen:
                faults.append(f"disks[{index}].{name}: found {str(value)!r} a second time")
            seen.add(value)
    if faults:
        raise BadRequest(f"{where}: " + "; ".join(faults))
    return tuple(disks)


def _read_disk(entry: Any, where: str, faults: list[str]) -> Disk:
    if not isinstance(entry, dict):
        faults.append(f"{where}: found {type(entry).__name__}, expected an object")
        entry = {}

    def check(key: str, holds: bool, expected: str) -> None:
        if not holds:
            faults.append(f"{where}.{key}: found {entry.get(key)!r}, expected {expected}")

    disk_id = entry.get("id")
    check("id", isinstance(disk_id, str) and _ID.fullmatch(disk_id) is not None, "letters, digits, _ and -")
    source_format = entry.get("source_format")
    check("source_format", source_format in SOURCE_FORMATS, f"one of {', '.join(SOURCE_FORMATS)}")
    count = entry.get("bytes")
    check("bytes", _is_count(count), "an integer of at least 0")
    hint = entry.get("boot_order_hint", DEFAULT_BOOT_ORDER)
    check("boot_order_hint", _is_count(hint), "an integer of at least 0")
    disk_type = entry.get("disk_type", "unknown")
    check("disk_type", disk_type in DISK_TYPES, f"one of {', '.join(DISK_TYPES)}")
    virtual = entry.get("virtual_bytes")
    check("virtual_bytes", virtual is None or _is_count(virtual), "an integer of at least 0")
    checksum = None
    if "checksum" in entry:
        given = entry["checksum"]
        match = _CHECKSUM.fullmatch(given) if isinstance(given, str) else None
        check("checksum", match is not None, "sha256: and 64 lowercase hex digits")
        checksum = match[1] if match else None
    path = _disk_path(entry.get("local_path"), count, where, faults)
    return Disk(str(disk_id), str(source_format), count or 0, path, checksum, hint, str(disk_type), virtual)


def _disk_path(value: Any, count: Any, where: str, faults: list[str]) -> Path:
    """Check that the path names a regular file, in the folder it says, with the manifest's number of bytes."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        faults.append(f"{where}.local_path: found {value!r}, expected an absolute path")
        return Path("/")
    path = Path(value)
    try:
        leaves = path.resolve(strict=True).parent != path.parent.resolve(strict=True)
        found = path.stat()
    except (OSError, RuntimeError) as fault:
        faults.append(f"{where}.local_path: {value}: {getattr(fault, 'strerror', None) or fault}")
        return path
    if leaves:
        faults.append(f"{where}.local_path: {value} is a link that leaves its folder, expected a file of its own")
    elif not stat.S_ISREG(found.st_mode):
        faults.append(f"{where}.local_path: {value} is no regular file")
    elif _is_count(count) and found.st_size != count:
        faults.append(f"{where}.bytes: found {found.st_size} bytes at {value}, expected {count}")
    return path


def _read_regular(path: Path) -> bytes:
    """Read a small regular file whole, never a device, a FIFO or a symlink.

    :raises BadRequest: when it is none or too large
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as fault:
        raise BadRequest(f"{path}: {fault.strerror}; expected the manifest, a regular file") from fault
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise BadRequest(f"{path}: no regular file, expected the manifest")
    with os.fdopen(descriptor, "rb") as file:
        if found.st_size > MANIFEST_LIMIT:
            raise BadRequest(f"{path}: found {found.st_size} bytes, expected at most {MANIFEST_LIMIT}")
        return file.read(MANIFEST_LIMIT + 1)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0  # not isinstance: True is no integer here
