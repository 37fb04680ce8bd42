"""Reads the structure of a streamOptimized VMDK as it comes, once, front to back.

The stream is held to what it says of itself: whoever follows the grain tables (QEMU) must see exactly the grains that a
reader of the stream sees.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import NamedTuple

from hyperflow.kvmhost.images.vmdk import (
    AT_END,
    FLAG_ZERO_GRAINS,
    SECTOR,
    TABLE_ENTRIES,
    Header,
    TruncatedVmdk,
    VmdkError,
    check_descriptor,
    read_header,
)

MARKER_SIZE = 12  # bytes of a grain marker in front of the compressed data
TABLE_BYTES = TABLE_ENTRIES * 4
TABLE_SECTORS = TABLE_BYTES // SECTOR
PENDING_LIMIT = 1 << 15  # tables not yet confirmed, 64 MiB in memory: a disk of 1 TiB with all tables at its end
DIRECTORY_SLACK = 2048  # sectors of zeros that a writer may leave behind the directory's last entry
PADDING_LIMIT = 1 << 16  # bytes: qemu-img fills its files up to a whole grain

END_OF_STREAM, GRAIN_TABLE, GRAIN_DIRECTORY, FOOTER = range(4)

_MARKER = struct.Struct("<QII")  # value, size, and type where size is 0


class Grain(NamedTuple):
    """A grain in a window of the file.

    :param number: which grain of the disk: its first byte is at ``number * grain_bytes``
    :param start: where its zlib stream starts in the window
    :param length: bytes of the zlib stream
    """

    number: int
    start: int
    length: int


class Scanner:
    """Reads the structure of a streamOptimized VMDK, window by window.

    Feed it consecutive windows; what it does not take must come again at the start of the next one. It holds no
    compressed data, and of the tables only those whose grains it has not yet seen confirmed.
    """

    def __init__(self) -> None:
        self.header: Header | None = None
        self._layout: Header  # the same, once it is known
        self.position = 0  # bytes of the file taken so far
        self.grains = 0
        self.grain_data = 0  # bytes of all zlib streams
        self.ended = False  # the end-of-stream marker was there
        self._padding = 0  # bytes behind the end-of-stream marker
        self._front = bytearray()
        self._tables: dict[int, array[int]] | None = None  # of the front: table -> sectors; none without grains
        self._listed = 0  # grains that the tables of the front list
        self._block: tuple[int, int, int] | None = None  # kind, offset, end of the metadata being taken
        self._block_data = bytearray()
        self._pending: dict[int, array[int]] = {}  # table -> sectors of its grains, until its grain table comes
        self._first: dict[int, int] = {}  # sector of a pending table's first grain -> table
        self._confirmed: dict[int, int] = {}  # table -> sector of its grain table
        self._empty_tables: set[int] = set()
        self._directory: int | None = None  # sector
        self._footer = False

    def feed(self, window: memoryview) -> tuple[list[Grain], int]:
        """Take what is whole in the window.

        :param window: the file's bytes from :attr:`position` on
        :return: the grains in it, and how many bytes were taken
        :raises VmdkError: at the first thing that is wrong
        """
        grains: list[Grain] = []
        taken = 0
        while taken < len(window):
            if self.ended:
                step = self._take_padding(window[taken:], self.position + taken)
            elif self.header is None or self.position + taken < self.header.first_byte:
                step = self._take_front(window[taken:])
            elif self._block is not None:
                step = self._take_block(window[taken:])
            else:
                step = self._take_marker(window, taken, grains)
            if step == 0:
                break
            taken += step
        self.position += taken
        return grains, taken

    def finish(self, leftover: int = 0) -> Header:
        """Hold the end of the file to what was promised.

        :param leftover: bytes at the end of the file that :meth:`feed` did not take
        :return: the header
        :raises VmdkError: when the stream has no end or its tables list other grains
        """
        header = self.header
        where = f"offset {self.position + leftover}"
        if header is None or self.position < header.first_byte:
            raise TruncatedVmdk(f"{where}: the file ends before its first grain")
        if leftover or self._block is not None:
            raise TruncatedVmdk(f"{where}: the file ends inside the block that starts at offset {self.position}")
        if self._tables is None and not self.ended:
            raise TruncatedVmdk(f"{where}: the file ends without the end-of-stream marker")
        if self._tables is not None and self.grains != self._listed:
            missing = self._listed - self.grains
            raise TruncatedVmdk(f"{where}: the file ends after {self.grains} grains, its tables list {missing} more")
        return header

    def _take_padding(self, data: memoryview, offset: int) -> int:
        """Pass over the zeros with which qemu-img fills its files up; vSphere's end with the stream.

        Where there is a footer, QEMU looks for it at a fixed distance from the end of the file.
        """
        end = offset - self._padding
        self._padding += len(data)
        if self._tables is None or self._padding >= PADDING_LIMIT or any(data):
            raise VmdkError(f"offset {end}: found more bytes after the end of the stream")
        return len(data)

    def _take_front(self, data: memoryview) -> int:
        """Collect header, descriptor and what else is in front of the first grain."""
        if self.header is None:
            count = min(len(data), SECTOR - len(self._front))
            self._front += data[:count]
            if len(self._front) == SECTOR:
                self.header = self._layout = read_header(bytes(self._front))
            return count
        count = min(len(data), self.header.first_byte - len(self._front))
        self._front += data[:count]
        if len(self._front) == self.header.first_byte:
            start, length = self.header.descriptor
            check_descriptor(bytes(self._front[start : start + length]), self.header)
            if self.header.directory_sector != AT_END:
                self._read_front_tables(self.header)
            self._front.clear()
        return count

    def _read_front_tables(self, header: Header) -> None:
        """Take the tables that qemu-img writes in front of the grains."""
        start = header.directory_sector * SECTOR
        end = start + header.tables * 4
        if end > header.first_byte:
            raise VmdkError(f"offset {start}: the grain directory reaches into the grains")
        tables: dict[int, array[int]] = {}
        taken = bytearray(header.first_byte // SECTOR)
        empty: set[int] = set()
        for index, sector in enumerate(_entries(self._front[start:end])):
            if sector == 0 or sector in empty:
                continue
            place, where = sector * SECTOR, f"offset {start + 4 * index}: grain table at sector {sector}"
            if place + TABLE_BYTES > header.first_byte:
                raise VmdkError(f"{where}, expected it before the first grain")
            entries = self._grain_sectors(self._front[place : place + TABLE_BYTES])
            if not any(entries):
                empty.add(sector)
                continue
            if any(taken[sector : sector + TABLE_SECTORS]):
                raise VmdkError(f"{where}, where another one lies: each grain is listed once")
            taken[sector : sector + TABLE_SECTORS] = b"\1" * TABLE_SECTORS
            tables[index] = entries
        last = header.tables - 1
        if any(tables.get(last, array("I"))[header.grains - last * TABLE_ENTRIES :]):
            raise VmdkError(f"offset {start}: the grain tables list grains behind the end of the disk")
        self._tables = tables
        self._listed = sum(TABLE_ENTRIES - entries.count(0) for entries in tables.values())

    def _take_marker(self, window: memoryview, taken: int, grains: list[Grain]) -> int:
        header = self._layout
        if len(window) - taken < 16:
            return 0
        offset = self.position + taken
        value, size, kind = _MARKER.unpack_from(window, taken)
        step: int
        if size == 0:
            if len(window) - taken < SECTOR:
                return 0
            self._take_metadata_marker(kind, value, offset)
            return SECTOR
        if size > header.largest_grain:
            raise VmdkError(
                f"offset {offset}: found a compressed grain of {size} bytes, expected at most {header.largest_grain}"
            )
        if self._directory is not None or self._footer:
            raise VmdkError(f"offset {offset}: found a grain behind the grain directory")
        step = -(-(MARKER_SIZE + size) // SECTOR) * SECTOR
        if len(window) - taken < step:
            return 0
        self._note_grain(value, offset, header)
        grains.append(Grain(value * SECTOR // header.grain_bytes, taken + MARKER_SIZE, size))
        self.grains += 1
        self.grain_data += size
        return step

    def _note_grain(self, lba: int, offset: int, header: Header) -> None:
        """Check a grain's place on the disk and remember where it lies until a table confirms it."""
        index, odd = divmod(lba * SECTOR, header.grain_bytes)
        if odd or lba * SECTOR >= header.capacity_bytes:
            what = (
                "not the start of a grain" if odd else f"behind the end of the disk ({header.capacity_bytes // SECTOR})"
            )
            raise VmdkError(f"offset {offset}: found a grain for sector {lba}, which is {what}")
        sector = offset // SECTOR
        if sector > 0xFFFFFFFF:
            raise VmdkError(f"offset {offset}: found a grain where no grain table can point (2 TiB)")
        table, slot = divmod(index, TABLE_ENTRIES)
        if self._tables is not None:
            listed = self._tables[table][slot] if table in self._tables else 0
            if listed != sector:
                raise VmdkError(
                    f"offset {offset}: found a grain for sector {lba}, but the grain table points to sector {listed}"
                )
            return
        if table in self._confirmed:
            raise VmdkError(
                f"offset {offset}: found a grain for sector {lba} behind the grain table that should list it"
            )
        sectors = self._pending.get(table)
        if sectors is None:
            if len(self._pending) == PENDING_LIMIT:
                raise VmdkError(f"offset {offset}: found grains of more than {PENDING_LIMIT} tables without a table")
            sectors = self._pending[table] = array("I", bytes(TABLE_BYTES))
            self._first[sector] = table
        if sectors[slot]:
            raise VmdkError(
                f"offset {offset}: found a second grain for sector {lba}; the first is at sector {sectors[slot]}"
            )
        sectors[slot] = sector

    def _take_metadata_marker(self, kind: int, sectors: int, offset: int) -> None:
        header = self._layout
        if kind == END_OF_STREAM:
            if sectors:
                raise VmdkError(f"offset {offset}: found an end-of-stream marker with {sectors} sectors, expected none")
            if self._tables is None and not self._footer:
                raise VmdkError(f"offset {offset}: found the end of the stream without a footer in front of it")
            self.ended = True
            return
        lengths = {
            GRAIN_TABLE: TABLE_BYTES,
            GRAIN_DIRECTORY: header.tables * 4,
            FOOTER: SECTOR,
        }
        if kind not in lengths:
            raise VmdkError(f"offset {offset}: found a marker of type {kind}, expected 0 to 3")
        if self._tables is not None:
            raise VmdkError(
                f"offset {offset}: found a marker of type {kind} though the tables are in front of the grains"
            )
        least = -(-lengths[kind] // SECTOR)
        if not least <= sectors <= least + (DIRECTORY_SLACK if kind == GRAIN_DIRECTORY else 0):
            raise VmdkError(f"offset {offset}: found {sectors} sectors after a marker of type {kind}, expected {least}")
        if self._footer or (self._directory is not None) != (kind == FOOTER):
            raise VmdkError(
                f"offset {offset}: found a marker of type {kind}, expected grain tables, one directory, one footer"
            )
        self._block = (kind, offset + SECTOR, offset + SECTOR + sectors * SECTOR)

    def _take_block(self, data: memoryview) -> int:
        """Collect a grain table, the directory or the footer, and check it when it is whole."""
        kind, offset, end = self._block or (0, 0, 0)  # feed() comes here only inside a block
        count = min(len(data), end - offset - len(self._block_data))
        self._block_data += data[:count]
        if len(self._block_data) == end - offset:
            check = {
                GRAIN_TABLE: self._check_table,
                GRAIN_DIRECTORY: self._check_directory,
                FOOTER: self._check_footer,
            }
            check[kind](bytes(self._block_data), offset)
            self._block = None
            self._block_data.clear()
        return count

    def _check_table(self, data: bytes, offset: int) -> None:
        entries = self._grain_sectors(data)
        first = min(filter(None, entries), default=None)
        if first is None:
            self._empty_tables.add(offset // SECTOR)
            if len(self._empty_tables) > self._layout.tables:
                raise VmdkError(f"offset {offset}: found more empty grain tables than the disk has tables")
            return
        table = self._first.pop(first, None)
        if table is None or entries != self._pending[table]:
            raise VmdkError(f"offset {offset}: the grain table lists other grains than the stream has")
        del self._pending[table]
        self._confirmed[table] = offset // SECTOR

    def _check_directory(self, data: bytes, offset: int) -> None:
        if self._pending:
            raise VmdkError(f"offset {offset}: {len(self._pending)} grain tables are missing in front of the directory")
        entries = _entries(data)
        for table, entry in enumerate(entries):
            confirmed = self._confirmed.get(table, 0)
            if entry != confirmed and not (confirmed == 0 and entry in self._empty_tables):
                raise VmdkError(
                    f"offset {offset + 4 * table}: the directory points to sector {entry}, "
                    f"the grain table is at {confirmed}"
                )
        self._directory = offset // SECTOR

    def _check_footer(self, data: bytes, offset: int) -> None:
        footer = read_header(data, offset)
        header = self._layout
        if (footer.capacity_bytes, footer.grain_bytes) != (header.capacity_bytes, header.grain_bytes):
            raise VmdkError(f"offset {offset}: the footer's capacity or grain size is not the header's")
        if (footer.flags ^ header.flags) & FLAG_ZERO_GRAINS:
            raise VmdkError(f"offset {offset}: the footer's flags are not the header's: {footer.flags:#x}")
        if footer.directory_sector != self._directory:
            raise VmdkError(
                f"offset {offset}: the footer points to a directory at sector {footer.directory_sector}, "
                f"the stream has it at {self._directory}"
            )
        self._footer = True

    def _grain_sectors(self, data: bytes | bytearray) -> array[int]:
        """Read a grain table; 0 for a grain that is not in the file."""
        entries = _entries(data)
        if self._layout.flags & FLAG_ZERO_GRAINS and 1 in entries:
            return array("I", [0 if entry == 1 else entry for entry in entries])
        return entries


def _entries(data: bytes | bytearray) -> array[int]:
    """Read the 32-bit little-endian numbers of a table."""
    entries = array("I", bytes(data))
    if sys.byteorder == "big":
        entries.byteswap()
    return entries
