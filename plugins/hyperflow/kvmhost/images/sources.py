"""What a source image may be, looked at before QEMU opens it.

An image from another machine can name further files: a backing file, an external data file, the extents of a VMDK
descriptor. QEMU opens what it finds there, so a crafted image reads ``/etc/shadow`` or a host's disk into the guest.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

from hyperflow.kvmhost.images import decode, files, qemu, vmdk
from hyperflow.kvmhost.stage import BadRequest

_QCOW2 = struct.Struct(">4sIQIIQ")
_DATA_FILE_BIT = 1 << 2  # incompatible feature: the clusters are in another file
_DESCRIPTOR_LIMIT = 1 << 20  # bytes
_EXTENT = re.compile(r'(?:RW|RDONLY|NOACCESS)[ \t]+\d+[ \t]+(\w+)(?:[ \t]+"([^"]*)"(?:[ \t]+\d+)?)?[ \t]*')
_ACCESS = ("RW", "RDONLY", "NOACCESS")
_EXTENT_KINDS = ("FLAT", "SPARSE", "ZERO", "VMFS", "VMFSSPARSE", "SESPARSE")
_SPARSE_KINDS = ("SPARSE", "VMFSSPARSE")  # QEMU reads the extent's own header, and a descriptor in it


def is_stream_optimized(path: Path) -> bool:
    """Tell whether a VMDK is one that :mod:`hyperflow.kvmhost.images.decode` reads in one pass.

    :raises BadRequest: when it claims to be one and is absurd
    """
    if _start(path, vmdk.SECTOR)[:4] != vmdk.MAGIC:
        return False
    try:
        decode.require_whole_chunks(read_header(path))
    except vmdk.UnsupportedVmdk:
        return False
    return True


def read_header(path: Path) -> vmdk.Header:
    """Read the header of a streamOptimized VMDK.

    :raises UnsupportedVmdk: when it is a VMDK of another kind
    :raises BadRequest: when it is none, or absurd
    """
    try:
        return vmdk.read_header(_start(path, vmdk.SECTOR))
    except vmdk.UnsupportedVmdk:
        raise
    except vmdk.VmdkError as fault:
        raise BadRequest(f"{path}: {fault}") from fault


def require_self_contained(path: Path, image_format: str) -> None:
    """Refuse an image that would make QEMU open other files than its own.

    :param image_format: as manifests name it
    :raises BadRequest: naming what it refers to
    """
    if image_format == "qcow2":
        _check_qcow2(path)
    elif image_format == "vmdk":
        _check_vmdk(path)
    found = qemu.info(path, image_format)
    for key in ("backing-filename", "full-backing-filename"):
        if found.get(key):
            raise BadRequest(f"{path}: refers to the backing file {found[key]!r}, expected an image of its own")
    if found.get("format-specific", {}).get("data", {}).get("data-file"):
        raise BadRequest(f"{path}: keeps its data in another file, expected an image of its own")


def extents(path: Path, image_format: str) -> list[Path]:
    """List the files that hold a disk's data beside its own: the extents that the text of a VMDK descriptor names.

    :param image_format: as manifests name it; all but vmdk are one file
    :return: each once, in the order of the descriptor; none for an image that is one file
    :raises BadRequest: when the descriptor names what :func:`require_self_contained` refuses
    """
    if image_format != "vmdk" or not _is_text(_start(path, vmdk.SECTOR)):
        return []
    return list(dict.fromkeys(_check_descriptor(path, 0, _DESCRIPTOR_LIMIT)))


def _is_text(start: bytes) -> bool:
    return start.lstrip().startswith(b"#")


def _check_qcow2(path: Path) -> None:
    header = _start(path, 104)
    if len(header) < 72 or header[:4] != b"QFI\xfb":
        raise BadRequest(f"{path}: found no qcow2 header, but the manifest says qcow2")
    _, version, backing_offset, _, _, _ = _QCOW2.unpack_from(header)
    if backing_offset:
        raise BadRequest(f"{path}: refers to a backing file, expected an image of its own")
    if version >= 3 and len(header) >= 80 and struct.unpack_from(">Q", header, 72)[0] & _DATA_FILE_BIT:
        raise BadRequest(f"{path}: keeps its data in another file, expected an image of its own")


def _check_vmdk(path: Path) -> None:
    start = _start(path, vmdk.SECTOR)
    if start[:4] == vmdk.MAGIC:
        offset, length = _check_sparse(path)
        if offset and length:
            if offset * vmdk.SECTOR >= path.stat().st_size:
                raise BadRequest(
                    f"{path}: the sparse header has its descriptor at sector {offset}, behind the file's end"
                )
            _check_descriptor(path, offset * vmdk.SECTOR, min(length * vmdk.SECTOR, _DESCRIPTOR_LIMIT))
    elif _is_text(start):
        _check_descriptor(path, 0, _DESCRIPTOR_LIMIT)
    elif start[:4] != b"COWD":
        raise BadRequest(f"{path}: found no VMDK header or descriptor, but the manifest says vmdk")


def _check_sparse(path: Path) -> tuple[int, int]:
    """Refuse a sparse file that QEMU would take for a descriptor of other files: one with a capacity of 0.

    :return: sector and length of the embedded descriptor; zeros where it has none
    """
    start = _start(path, vmdk.SECTOR)
    if start[:4] == b"COWD":
        return 0, 0
    if len(start) < vmdk.SECTOR or start[:4] != vmdk.MAGIC:
        raise BadRequest(f"{path}: found no sparse header, expected that of a sparse VMDK")
    capacity, offset, length = struct.unpack_from("<Q8xQQ", start, 12)
    if capacity == 0:
        raise BadRequest(f"{path}: the sparse header has a capacity of 0")
    return offset, length


def _check_descriptor(path: Path, offset: int, length: int) -> list[Path]:
    """Refuse a parent, extents that are no regular files beside the descriptor, and what is no line of a descriptor.

    QEMU takes its extents by ``sscanf``, to which a tab, a vertical tab and the end of a line are all the same blank:
    so a line that is not understood here is refused and not passed over.

    :param offset: 0 for a descriptor that is a file of its own; the extents of any other are that file itself
    :return: the extents
    """
    found = []
    text = _read(path, offset, length).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    for line in re.split("[\r\n]", text):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        key, equals, value = (part.strip().strip('"') for part in line.partition("="))
        if key.lower() == "parentfilenamehint" or (key.lower() == "parentcid" and value.lower() != "ffffffff"):
            raise BadRequest(f"{path}: has the parent {value!r}, expected a disk of its own")
        if equals and words[0] not in _ACCESS:
            continue
        match = _EXTENT.fullmatch(line.strip(" \t"))
        if match is None or match[1] not in _EXTENT_KINDS:
            raise BadRequest(f"{path}: found the extent {line!r}, expected a kind out of {', '.join(_EXTENT_KINDS)}")
        name = match[2]
        if not name:
            continue
        if "/" in name or ":" in name or name in (".", ".."):  # QEMU reads PROTOCOL:... as well
            raise BadRequest(f"{path}: found an extent in {name!r}, expected a bare name in the disk's own folder")
        extent = path.parent / name
        if offset == 0 and (extent.is_symlink() or not extent.is_file()):
            raise BadRequest(f"{path}: found an extent in {name!r}, which is no regular file in the disk's own folder")
        if offset == 0 and match[1] in _SPARSE_KINDS:
            _check_sparse(extent)
        found.append(extent)
    return found


def _start(path: Path, length: int) -> bytes:
    return _read(path, 0, length)


def _read(path: Path, offset: int, length: int) -> bytes:
    descriptor = files.open_regular(path)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)
