"""Writes streamOptimized VMDK files as vSphere lays them out (tables behind the grains, footer), sound or crafted."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
AT_END = 0xFFFFFFFFFFFFFFFF
END_OF_STREAM, GRAIN_TABLE, GRAIN_DIRECTORY, FOOTER = range(4)


def descriptor(
    capacity: int, *, create_type: str = "streamOptimized", parent: str = "ffffffff", extra: str = ""
) -> bytes:
    """The embedded descriptor; ``capacity`` in sectors."""
    return (
        "# Disk DescriptorFile\nversion=1\nCID=12345678\n"
        f"parentCID={parent}\n"
        f'createType="{create_type}"\n\n# Extent description\n'
        f'RW {capacity} SPARSE "generated-stream.vmdk"\n{extra}\n'
        '# The Disk Data Base\n#DDB\nddb.adapterType = "lsilogic"\n'
    ).encode()


@dataclass
class Header:
    """The fields of a header, as a crafted one may have them."""

    capacity: int
    grain: int = 128
    magic: bytes = b"KDMV"
    version: int = 3
    flags: int = 0x30001
    descriptor_offset: int = 1
    descriptor_size: int = 20
    entries: int = 512
    directory: int = AT_END
    overhead: int = 128
    newlines: bytes = b"\n \r\n"
    method: int = 1

    def pack(self) -> bytes:
        return struct.pack(
            "<4sIIQQQQIQQQB4sH433x",
            self.magic,
            self.version,
            self.flags,
            self.capacity,
            self.grain,
            self.descriptor_offset,
            self.descriptor_size,
            self.entries,
            0,
            self.directory,
            self.overhead,
            0,
            self.newlines,
            self.method,
        )


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % SECTOR)


def marker(kind: int, sectors: int) -> bytes:
    return struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0")


def grain(lba: int, compressed: bytes) -> bytes:
    return pad(struct.pack("<QI", lba, len(compressed)) + compressed)


@dataclass
class Stream:
    """A VMDK in the making; what a test overrides is what makes it hostile.

    :param capacity: sectors of the disk
    :param grain: sectors of a grain
    """

    capacity: int
    grain: int = 128
    header: Header | None = None
    text: bytes | None = None
    data: bytearray = field(default_factory=bytearray)
    tables: dict[int, int] = field(default_factory=dict)
    current: dict[int, int] = field(default_factory=dict)
    edit_table: Callable[[list[int]], list[int]] = lambda entries: entries
    edit_directory: Callable[[list[int]], list[int]] = lambda entries: entries
    edit_footer: Callable[[Header], Header] = lambda header: header

    def __post_init__(self) -> None:
        self.header = self.header or Header(self.capacity, self.grain)
        text = descriptor(self.capacity) if self.text is None else self.text
        front = bytearray(128 * SECTOR)
        front[:SECTOR] = self.header.pack()
        front[SECTOR : SECTOR + len(text)] = text
        self.data += front

    def add(self, number: int, content: bytes, *, compressed: bytes | None = None, lba: int | None = None) -> None:
        """Add grain ``number``; its table is flushed when another one begins."""
        if self.current and number // 512 != next(iter(self.current)) // 512:
            self.flush()
        self.current[number] = len(self.data) // SECTOR
        self.data += grain(number * self.grain if lba is None else lba, compressed or zlib.compress(content, 1))

    def flush(self) -> None:
        """Write the grain table of the grains since the last one."""
        if not self.current:
            return
        table = next(iter(self.current)) // 512
        entries = [self.current.get(table * 512 + slot, 0) for slot in range(512)]
        self.data += marker(GRAIN_TABLE, 4)
        self.tables[table] = len(self.data) // SECTOR
        self.data += struct.pack("<512I", *self.edit_table(entries))
        self.current.clear()

    def finish(self, *, end: bool = True, footer: bool = True) -> bytes:
        """Write directory, footer and end; the whole file."""
        self.flush()
        count = -(-self.capacity // (512 * self.grain))
        entries = self.edit_directory([self.tables.get(table, 0) for table in range(count)])
        directory = pad(struct.pack(f"<{len(entries)}I", *entries))
        self.data += marker(GRAIN_DIRECTORY, len(directory) // SECTOR)
        place = len(self.data) // SECTOR
        self.data += directory
        if footer:
            assert self.header is not None
            last = Header(**{**vars(self.header), "directory": place})
            self.data += marker(FOOTER, 1) + self.edit_footer(last).pack()
        if end:
            self.data += marker(END_OF_STREAM, 0)
        return bytes(self.data)


def write(path: Path, capacity_bytes: int, grains: Iterable[tuple[int, bytes]], grain_sectors: int = 128) -> Path:
    """Write a sound file of the grains."""
    stream = Stream(capacity_bytes // SECTOR, grain_sectors)
    for number, content in grains:
        stream.add(number, content)
    path.write_bytes(stream.finish())
    return path
