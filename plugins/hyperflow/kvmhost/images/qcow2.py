"""Writers of qcow2 images: data first, each piece to a place known beforehand, tables at the end, the header last.

Layout of a file: header cluster, L1 table, room for every L2 table, data, refcount blocks, refcount table. With all L2
tables one behind the other, the entry of guest cluster ``n`` is at a fixed offset, so the threads that write data also
write its entries and no table is held in memory; tables that stay empty are holes that the image does not refer to.
Source: QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
import sys
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hyperflow.kvmhost.images.codecs import ZSTD, Compressor
from hyperflow.kvmhost.images.data_file import DataFile, resize, sync, write_all, write_back

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS  # bytes; QEMU's default, and a grain of a VMDK
L2_ENTRIES = CLUSTER // 8  # guest clusters in an L2 table: 512 MiB
BLOCK_ENTRIES = CLUSTER // 2  # refcounts in a refcount block, 16 bits each
COPIED = 1 << 63  # the refcount is one
COMPRESSED = 1 << 62
SECTORS_SHIFT = 62 - (CLUSTER_BITS - 8)  # where a compressed entry counts its additional sectors
SECTOR = 512
REFCOUNT_LIMIT = 0xFFFF
PIECE = 16 << 20  # bytes; each write costs more than its bytes: of 1 MiB each, a conversion took a quarter longer
COMPRESSED_PIECE = 2 << 20  # bytes; they are packed in order, so that a large one is waited for

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQIIB7x")  # version 3, with the compression type; 112 bytes
_INCOMPATIBLE_COMPRESSION = 1 << 3


class ImageWriter(Protocol):
    """What the decoder writes into.

    ``place`` is called in the order of the stream, by one thread; ``store`` then by any thread, in any order.

    :ivar piece: bytes that are best stored at once
    """

    piece: int

    def place(self, chunks: int) -> int:
        """Reserve a place for the next ``chunks`` consecutive chunks."""

    def store(self, place: int, first: int, data: memoryview, zeros: Sequence[bool], codec: object) -> int:
        """Write consecutive chunks.

        :param place: of :meth:`place`
        :param first: index of the first chunk in the disk
        :param data: whole chunks, zeros behind the end of the disk
        :param zeros: for each chunk, whether it is all zeros and need not be stored
        :param codec: what :meth:`make_codec` returned for this thread
        :return: bytes written
        """

    def make_codec(self) -> object:
        """Make what a thread needs to store; called once by each."""

    def finish(self) -> None:
        """Write what makes the image whole, after all data is stored, and bring all of it to the disk."""

    def abandon(self) -> None:
        """Let go of threads that wait in ``store``, because another one failed."""

    def close(self) -> None:
        """Let go of what was opened; no thread stores any more."""


class RawWriter:
    """A raw image: sparse, every byte at its own place."""

    piece = PIECE

    def __init__(self, descriptor: int, virtual_bytes: int) -> None:
        self._descriptor = descriptor
        self._file = DataFile(descriptor)
        self._size = virtual_bytes
        resize(descriptor, virtual_bytes)

    def place(self, chunks: int) -> int:
        """See :class:`ImageWriter`."""
        return 0

    def make_codec(self) -> None:
        """See :class:`ImageWriter`."""

    def store(self, place: int, first: int, data: memoryview, zeros: Sequence[bool], codec: object) -> int:
        """See :class:`ImageWriter`."""
        written = 0
        for start, end in runs(zeros):
            offset = (first + start) * CLUSTER
            piece = data[start * CLUSTER : min(end * CLUSTER, self._size - first * CLUSTER)]
            self._file.write(piece, offset)
            written += len(piece)
        return written

    def finish(self) -> None:
        """See :class:`ImageWriter`."""
        sync(self._descriptor)

    def abandon(self) -> None:
        """See :class:`ImageWriter`."""

    def close(self) -> None:
        """See :class:`ImageWriter`."""
        self._file.close()


@dataclass(frozen=True)
class _Layout:
    """Where a qcow2 file's parts are, in bytes; fixed by the size of the guest's disk."""

    virtual_bytes: int
    l1_entries: int
    l1_offset: int
    l2_offset: int
    data_offset: int


def _layout(virtual_bytes: int) -> _Layout:
    guest_clusters = -(-virtual_bytes // CLUSTER)
    l1_entries = max(1, -(-guest_clusters // L2_ENTRIES))
    l1_offset = CLUSTER
    l2_offset = l1_offset + _round_up(l1_entries * 8)
    return _Layout(virtual_bytes, l1_entries, l1_offset, l2_offset, l2_offset + l1_entries * CLUSTER)


class _Tables:
    """The part that both kinds of qcow2 share: L2 entries as they come, the rest at the end."""

    def __init__(self, descriptor: int, virtual_bytes: int) -> None:
        self.file = descriptor
        self.layout = _layout(virtual_bytes)
        self.lock = threading.Lock()
        self._used = bytearray(self.layout.l1_entries)  # L2 tables with an entry

    def enter(self, first: int, entries: Sequence[int]) -> None:
        """Write the L2 entries of consecutive guest clusters."""
        table = array("Q", entries)
        write_all(self.file, _big_endian(table), self.layout.l2_offset + first * 8)
        for index in range(first // L2_ENTRIES, (first + len(entries) - 1) // L2_ENTRIES + 1):
            self._used[index] = 1

    def finish(self, counts: Refcounts, end: int, incompatible: int, compression: int) -> None:
        """Write L1, the refcounts and the header, each after what it points to has reached the disk.

        :param counts: tells the refcount of each data cluster
        :param end: first byte behind the data, a multiple of the cluster
        """
        layout = self.layout
        level1 = array("Q", [0]) * layout.l1_entries
        for index, used in enumerate(self._used):
            if used:
                level1[index] = (layout.l2_offset + index * CLUSTER) | COPIED
        write_all(self.file, _big_endian(level1), layout.l1_offset)
        blocks, table_clusters = _refcount_size(end // CLUSTER)
        table_offset = end + blocks * CLUSTER
        total = table_offset // CLUSTER + table_clusters
        for block in range(blocks):
            first = block * BLOCK_ENTRIES
            values = array("H", [1]) * min(BLOCK_ENTRIES, total - first)
            self._count_metadata(values, first)
            counts.fill(values, first, layout.data_offset // CLUSTER, end // CLUSTER)
            write_all(self.file, _big_endian(values), end + block * CLUSTER)
        table = array("Q", [end + block * CLUSTER for block in range(blocks)])
        write_all(self.file, _big_endian(table), table_offset)
        resize(self.file, total * CLUSTER)
        sync(self.file)
        write_all(self.file, memoryview(self._header(table_offset, table_clusters, incompatible, compression)), 0)
        sync(self.file)

    def _count_metadata(self, values: array[int], first: int) -> None:
        """Free the L2 tables that nothing uses."""
        start = self.layout.l2_offset // CLUSTER
        for index, used in enumerate(self._used):
            if not used and first <= start + index < first + len(values):
                values[start + index - first] = 0

    def _header(self, table_offset: int, table_clusters: int, incompatible: int, compression: int) -> bytes:
        header = _HEADER.pack(
            b"QFI\xfb",
            3,
            0,  # no backing file
            0,
            CLUSTER_BITS,
            self.layout.virtual_bytes,
            0,  # no encryption
            self.layout.l1_entries,
            self.layout.l1_offset,
            table_offset,
            table_clusters,
            0,  # no snapshots
            0,
            incompatible,
            0,
            0,
            4,  # refcounts of 16 bits
            _HEADER.size,
            compression,
        )
        return header + bytes(8)  # end of the header extensions


class Refcounts(Protocol):
    """Tells the refcounts of the data clusters, where they are not 1."""

    def fill(self, values: array[int], first: int, data: int, end: int) -> None:
        """Correct ``values``, the refcounts of the clusters from ``first`` on; data is in ``data`` to ``end``."""


class Qcow2Writer:
    """An uncompressed qcow2 image: the place of a cluster is its number in the stream.

    :param descriptor: an empty file, open for writing
    :param virtual_bytes: size of the guest's disk, a multiple of 512
    """

    piece = PIECE

    def __init__(self, descriptor: int, virtual_bytes: int) -> None:
        self._tables = _Tables(descriptor, virtual_bytes)
        self._data = DataFile(descriptor)
        self._end = self._tables.layout.data_offset
        self._holes: list[int] = []  # host clusters left out, because what came out was all zeros

    def place(self, chunks: int) -> int:
        """See :class:`ImageWriter`."""
        place = self._end
        self._end += chunks * CLUSTER
        return place

    def make_codec(self) -> None:
        """See :class:`ImageWriter`."""

    def store(self, place: int, first: int, data: memoryview, zeros: Sequence[bool], codec: object) -> int:
        """See :class:`ImageWriter`."""
        written = 0
        for start, end in runs(zeros):
            offset = place + start * CLUSTER
            self._data.write(data[start * CLUSTER : end * CLUSTER], offset)
            self._tables.enter(
                first + start, range(offset | COPIED, (offset + (end - start) * CLUSTER) | COPIED, CLUSTER)
            )
            written += (end - start) * CLUSTER
        if any(zeros):
            with self._tables.lock:
                self._holes.extend(place // CLUSTER + index for index, zero in enumerate(zeros) if zero)
        return written

    def finish(self) -> None:
        """See :class:`ImageWriter`."""
        self._tables.finish(self, self._end, 0, 0)

    def abandon(self) -> None:
        """See :class:`ImageWriter`."""

    def close(self) -> None:
        """See :class:`ImageWriter`."""
        self._data.close()

    def fill(self, values: array[int], first: int, data: int, end: int) -> None:
        """See :class:`Refcounts`."""
        for hole in self._holes:
            if first <= hole < first + len(values):
                values[hole - first] = 0


class CompressedQcow2Writer:
    """A qcow2 image of compressed clusters, packed byte behind byte in the order of the stream.

    Compressing is done by all threads at once; a piece gets its place when its turn has come, so the same stream makes
    the same file every time. A cluster that does not shrink is stored as it is.

    :param compressors: makes a thread's compressor
    """

    piece = COMPRESSED_PIECE

    def __init__(self, descriptor: int, virtual_bytes: int, kind: str, compressors: CompressorFactory) -> None:
        self._tables = _Tables(descriptor, virtual_bytes)
        self._kind = kind
        self._compressors = compressors
        self._turns = 0  # places given
        self._turn = 0  # the piece that is next to be packed
        self._next = threading.Condition(self._tables.lock)
        self._end = self._tables.layout.data_offset  # first cluster not yet taken
        self._cursor = self._end  # where the next compressed cluster goes
        self._room = self._end  # end of the clusters that are being packed
        self._counts = array("H")  # refcounts of the data clusters
        self._broken = False

    def place(self, chunks: int) -> int:
        """See :class:`ImageWriter`."""
        self._turns += 1
        return self._turns - 1

    def make_codec(self) -> Compressor:
        """See :class:`ImageWriter`."""
        return self._compressors()

    def abandon(self) -> None:
        """See :class:`ImageWriter`: the turn of the others will never come."""
        with self._next:
            self._broken = True
            self._next.notify_all()

    def store(self, place: int, first: int, data: memoryview, zeros: Sequence[bool], codec: object) -> int:
        """See :class:`ImageWriter`."""
        pieces = self._compress(data, zeros, codec)
        with self._next:
            while self._turn != place and not self._broken:
                self._next.wait()
            if self._broken:
                return 0
            placed = [(index, self._take(piece), piece) for index, piece in pieces]
            self._turn += 1
            self._next.notify_all()
        entries = [0] * len(zeros)
        for offset, joined in _joined(placed):
            write_back(self._tables.file, memoryview(joined), offset)
        for index, offset, piece in placed:
            if len(piece) == CLUSTER:
                entries[index] = offset | COPIED
            else:
                sectors = (offset + len(piece) - 1) // SECTOR - offset // SECTOR
                entries[index] = offset | sectors << SECTORS_SHIFT | COMPRESSED
        if placed:
            self._tables.enter(first, entries)
        return sum(len(piece) for _, _, piece in placed)

    def finish(self) -> None:
        """See :class:`ImageWriter`."""
        incompatible, compression = (_INCOMPATIBLE_COMPRESSION, 1) if self._kind == ZSTD else (0, 0)
        self._tables.finish(self, self._end, incompatible, compression)

    def close(self) -> None:
        """See :class:`ImageWriter`."""

    def fill(self, values: array[int], first: int, data: int, end: int) -> None:
        """See :class:`Refcounts`."""
        for cluster in range(max(first, data), min(first + len(values), end)):
            values[cluster - first] = self._counts[cluster - data]

    def _compress(self, data: memoryview, zeros: Sequence[bool], codec: object) -> list[tuple[int, bytes | memoryview]]:
        pieces: list[tuple[int, bytes | memoryview]] = []
        for index, zero in enumerate(zeros):
            if not zero:
                cluster = data[index * CLUSTER : (index + 1) * CLUSTER]
                packed = codec.compress(cluster)  # type: ignore[attr-defined]
                pieces.append((index, packed if len(packed) < CLUSTER else cluster))
        return pieces

    def _take(self, piece: bytes | memoryview) -> int:
        """Find a place for a compressed cluster, or for one that is stored as it is; count who uses which cluster."""
        size = len(piece)
        if size == CLUSTER:
            offset = self._grow(1)
        elif self._cursor + size <= self._room and self._count_at(self._cursor) < REFCOUNT_LIMIT:
            offset = self._cursor
        elif self._room == self._end and self._cursor < self._room:
            offset = self._cursor  # the last cluster taken is the one being packed: go on across its end
            self._room = self._grow(1) + CLUSTER
        else:
            offset = self._grow(1)
            self._room = self._end
        if size != CLUSTER:
            self._cursor = offset + size
        base = self._tables.layout.data_offset
        for cluster in range((offset - base) // CLUSTER, (offset + size - 1 - base) // CLUSTER + 1):
            self._counts[cluster] += 1
        return offset

    def _grow(self, clusters: int) -> int:
        offset = self._end
        self._end += clusters * CLUSTER
        self._counts.extend([0] * clusters)
        return offset

    def _count_at(self, offset: int) -> int:
        return self._counts[(offset - self._tables.layout.data_offset) // CLUSTER]


class CompressorFactory(Protocol):
    """Makes a compressor for the calling thread."""

    def __call__(self) -> Compressor:
        """Make it."""


def _joined(placed: Sequence[tuple[int, int, bytes | memoryview]]) -> list[tuple[int, bytes]]:
    """Join pieces that follow each other in the file, so that they are written at once.

    :return: offset and bytes of each stretch
    """
    stretches: list[tuple[int, list[bytes | memoryview]]] = []
    end = -1
    for _, offset, piece in placed:
        if offset != end:
            stretches.append((offset, []))
        stretches[-1][1].append(piece)
        end = offset + len(piece)
    return [(offset, b"".join(pieces)) for offset, pieces in stretches]


def runs(zeros: Sequence[bool]) -> list[tuple[int, int]]:
    """Find the stretches that are to be stored.

    :return: first index, and the one behind the last
    """
    if True not in zeros:
        return [(0, len(zeros))]
    found = []
    start = None
    for index, zero in enumerate(zeros):
        if zero and start is not None:
            found.append((start, index))
            start = None
        elif not zero and start is None:
            start = index
    if start is not None:
        found.append((start, len(zeros)))
    return found


def _big_endian(numbers: array[int]) -> memoryview:
    """Lay numbers out as the format has them."""
    if sys.byteorder == "little":
        numbers.byteswap()
    return memoryview(numbers.tobytes())


def _refcount_size(clusters: int) -> tuple[int, int]:
    """Find how many refcount blocks, and clusters of their table, count ``clusters`` clusters and themselves."""
    blocks, table = 0, 1
    while True:
        total = clusters + blocks + table
        needed = -(-total // BLOCK_ENTRIES)
        needed_table = max(1, -(-needed * 8 // CLUSTER))
        if (needed, needed_table) == (blocks, table):
            return blocks, table
        blocks, table = max(blocks, needed), max(table, needed_table)


def _round_up(count: int) -> int:
    return -(-count // CLUSTER) * CLUSTER
