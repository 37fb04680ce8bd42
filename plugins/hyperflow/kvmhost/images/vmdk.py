"""Header and descriptor of streamOptimized VMDK files, as hostile as any file from another machine.

Such a file is a header, a descriptor, and then a sequence of 512-byte-aligned *markers*: a grain (its first sector on
the disk, the number of compressed bytes, a zlib stream), a grain table, the grain directory, the footer (a second
header), the end of the stream. vSphere and ovftool write the tables behind the grains they list; qemu-img writes them
in front, and neither footer nor end marker. Source: VMware, "Virtual Disk Format 5.0"; QEMU's block/vmdk.c. The
sequence is read by :mod:`hyperflow.kvmhost.images.vmdk_scanner`.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

SECTOR = 512  # bytes
MAGIC = b"KDMV"
AT_END = 0xFFFFFFFFFFFFFFFF  # gdOffset of a header whose grain directory is found by the footer
TABLE_ENTRIES = 512  # grains of a grain table: the format's only value

FLAG_ZERO_GRAINS = 1 << 2  # table entry 1 means a grain of zeros
FLAG_COMPRESSED = 1 << 16
FLAG_MARKERS = 1 << 17
DEFLATE = 1

CAPACITY_LIMIT = 64 << 40  # bytes; vSphere's largest disk has 62 TiB
GRAIN_LIMIT = 1 << 20  # bytes; vSphere and qemu-img write 64 KiB
GRAINS_LIMIT = CAPACITY_LIMIT >> 16  # of a disk: the largest in grains of 64 KiB; their tables are held to it
DESCRIPTOR_LIMIT = 1 << 20  # bytes; vSphere writes 10 KiB
FRONT_LIMIT = 64 << 20  # bytes in front of the first grain: both copies of the tables of a 256 GiB disk


_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")  # SparseExtentHeader without its padding
_NEWLINES = b"\n \r\n"  # single, non-end, and both double end-of-line characters


class VmdkError(Exception):
    """The file is no streamOptimized VMDK that can be trusted; the message has the offset in bytes."""


class TruncatedVmdk(VmdkError):
    """The file ends before the stream does."""


class UnsupportedVmdk(VmdkError):
    """A valid file of a kind that this reader leaves to others."""


@dataclass(frozen=True)
class Header:
    """The sparse extent header.

    :param capacity_bytes: size of the guest's disk
    :param grain_bytes: bytes of the disk in one grain
    :param descriptor: offset and size of the embedded descriptor in bytes
    :param directory_sector: where the grain directory is; :data:`AT_END` for the footer's
    :param first_byte: where the markers start
    """

    version: int
    flags: int
    capacity_bytes: int
    grain_bytes: int
    descriptor: tuple[int, int]
    directory_sector: int
    first_byte: int

    @property
    def grains(self) -> int:
        """Grains of the disk, allocated or not."""
        return -(-self.capacity_bytes // self.grain_bytes)

    @property
    def tables(self) -> int:
        """Grain tables that the directory has entries for."""
        return -(-self.grains // TABLE_ENTRIES)

    @property
    def largest_grain(self) -> int:
        """Bytes that a compressed grain may have: deflate's stored blocks add 5 bytes to at most 16 KiB each."""
        return self.grain_bytes + self.grain_bytes // 512 + 1024


def read_header(data: bytes, offset: int = 0) -> Header:
    """Read a sparse extent header.

    :param data: at least one sector
    :param offset: where it lies in the file, for messages
    :raises VmdkError: when it is none, absurd or not a streamOptimized one
    """
    if len(data) < SECTOR:
        raise TruncatedVmdk(f"offset {offset}: found {len(data)} bytes, expected a header of {SECTOR}")
    if data[:4] != MAGIC:
        raise VmdkError(f"offset {offset}: found {bytes(data[:4])!r}, expected the magic {MAGIC!r} of a sparse VMDK")
    (
        _,
        version,
        flags,
        capacity,
        grain,
        descriptor,
        descriptor_size,
        entries,
        _,
        directory,
        overhead,
        _,
        newlines,
        method,
    ) = _HEADER.unpack_from(data)

    def check(what: str, holds: bool, found: object, expected: str) -> None:
        if not holds:
            raise VmdkError(f"offset {offset}: {what}: found {found}, expected {expected}")

    check("version", version in (1, 2, 3), version, "1, 2 or 3")
    if not flags & FLAG_COMPRESSED or not flags & FLAG_MARKERS:
        raise UnsupportedVmdk(
            f"offset {offset}: flags {flags:#x}: not a streamOptimized VMDK (compressed, with markers)"
        )
    check(
        "newline characters",
        newlines == _NEWLINES,
        newlines,
        "them unchanged (was the file sent in text mode?)",
    )
    check("compression", method == DEFLATE, method, "1 (deflate)")
    check("capacity", 0 < capacity <= CAPACITY_LIMIT // SECTOR, f"{capacity} sectors", "1 sector to 64 TiB")
    check(
        "grain size",
        grain >= 8 and grain & (grain - 1) == 0,
        f"{grain} sectors",
        "a power of two of at least 8",
    )
    check("grain size", grain <= GRAIN_LIMIT // SECTOR, f"{grain} sectors", f"at most {GRAIN_LIMIT // SECTOR}")
    grains = -(-capacity // grain)
    check("grains of the disk", grains <= GRAINS_LIMIT, grains, f"at most {GRAINS_LIMIT}")
    check("grain table entries", entries == TABLE_ENTRIES, entries, str(TABLE_ENTRIES))
    check(
        "descriptor size",
        0 < descriptor_size <= DESCRIPTOR_LIMIT // SECTOR,
        f"{descriptor_size} sectors",
        "1 to 2048",
    )
    inside = descriptor >= 1 and descriptor + descriptor_size <= overhead
    check(
        "descriptor",
        inside,
        f"sector {descriptor}",
        f"it between the header and the first grain (sector {overhead})",
    )
    if overhead > FRONT_LIMIT // SECTOR:
        raise UnsupportedVmdk(
            f"offset {offset}: {overhead} sectors before the first grain, expected at most {FRONT_LIMIT // SECTOR}"
        )
    if directory != AT_END and offset == 0:
        check(
            "grain directory",
            1 <= directory < overhead,
            f"sector {directory}",
            "it before the first grain or at the end",
        )
    place = (descriptor * SECTOR, descriptor_size * SECTOR)
    return Header(version, flags, capacity * SECTOR, grain * SECTOR, place, directory, overhead * SECTOR)


_EXTENT = re.compile(r'(RW|RDONLY|NOACCESS)\s+(\d{1,20})\s+(\w+)(?:\s+"([^"]*)")?(?:\s+\d+)?')


def check_descriptor(data: bytes, header: Header) -> None:
    """Hold the embedded descriptor to one extent in this file and to no parent.

    :raises VmdkError: when it says otherwise: such a file would make QEMU open others
    """
    place = f"descriptor at offset {header.descriptor[0]}"
    text = data.split(b"\0", 1)[0].decode("utf-8", "replace")
    values: dict[str, str] = {}
    extents = []
    for line in (line.strip() for line in text.splitlines()):
        if line.split(maxsplit=1)[:1] in (["RW"], ["RDONLY"], ["NOACCESS"]):
            extents.append(line)
        elif "=" in line and not line.startswith("#"):
            key, value = (part.strip() for part in line.split("=", 1))
            values.setdefault(key.lower(), value.strip('"'))
    expected = {
        "createtype": ("streamoptimized",),
        "parentcid": ("ffffffff", None),
        "parentfilenamehint": (None,),
    }
    for key, allowed in expected.items():
        found = values.get(key)
        if (found if found is None else found.lower()) not in allowed:
            raise VmdkError(
                f"{place}: {key}: found {found!r}, expected {allowed[0] or 'none: the disk must not have a parent'}"
            )
    if len(extents) != 1:
        raise VmdkError(f"{place}: found {len(extents)} extents, expected one")
    match = _EXTENT.fullmatch(extents[0])
    if match is None or match[3] != "SPARSE":
        raise VmdkError(f"{place}: extent: found {extents[0]!r}, expected RW, the sectors, SPARSE and this file's name")
    if "/" in (match[4] or "") or (match[4] or "") in ("..", "."):
        raise VmdkError(f"{place}: extent: found the file {match[4]!r}, expected a bare name")
    if int(match[2]) * SECTOR != header.capacity_bytes:
        raise VmdkError(
            f"{place}: extent: found {match[2]} sectors, but the header says {header.capacity_bytes // SECTOR}"
        )
