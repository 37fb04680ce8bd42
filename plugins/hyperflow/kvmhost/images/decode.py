"""Decodes a streamOptimized VMDK in one pass: verified, inflated, digested and written while it is read.

One thread reads and scans, one hashes the file in order, the others inflate grains, digest them and write them to their
places. zlib, SHA-256 and pwrite release the interpreter lock, so they run on as many cores. Memory is bounded by the
number of windows, not by the size of the disk.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import queue
import threading
from dataclasses import dataclass
from typing import Callable, NamedTuple, Protocol

from hyperflow.kvmhost.images import vmdk
from hyperflow.kvmhost.images.codecs import CodecError, Inflater, make_inflater
from hyperflow.kvmhost.images.content import ABSENT, CHUNK, ContentMap, chunk_digest
from hyperflow.kvmhost.images.qcow2 import ImageWriter
from hyperflow.kvmhost.images.vmdk_scanner import Grain, Scanner

WINDOW = 4 << 20  # bytes read at once
BENCHES = 128 << 20  # bytes that all threads together inflate before they write
WORKERS_LIMIT = 16  # SHA-256 of the file, in one thread, keeps about six busy
SMALL = 512  # bytes: a grain of zeros compresses to 80 to 300
KNOWN_LIMIT = 64  # compressed forms of a grain of zeros to remember; one writer makes one or two

Read = Callable[[memoryview], int]


@dataclass(frozen=True)
class Decoded:
    """What one pass over the file found.

    :param sha256: of the file, hex
    :param bytes: of the file
    :param bytes_written: data bytes stored in the image
    """

    sha256: str
    bytes: int
    bytes_written: int
    grains: int
    header: vmdk.Header


class DecodeFault(Exception):
    """The stream is no VMDK that can be decoded; what was read of it is told along.

    :param sha256: of the whole file, which was read to its end all the same
    """

    def __init__(self, message: str, sha256: str, count: int) -> None:
        super().__init__(message)
        self.sha256 = sha256
        self.bytes = count


class UnfitGrains(vmdk.UnsupportedVmdk):
    """The grains are no whole chunks, so this reader would have to put them together: qemu-img does that."""


class Digest(Protocol):
    """Takes the stream in order, in one thread; a SHA-256, or something that does more with what it is given."""

    def update(self, data: memoryview) -> None:
        """Take a piece, which must not be kept; must not raise."""

    def hexdigest(self) -> str:
        """SHA-256 of all pieces."""


class _Batch(NamedTuple):
    """Grains that follow each other on the disk."""

    place: int
    first_chunk: int
    chunks: int
    grains: list[Grain]


class _Window:
    """A buffer that goes round: filled by the reader, used by the hasher and the workers, and filled again."""

    def __init__(self, size: int, free: queue.SimpleQueue[_Window]) -> None:
        self._data = bytearray(size)
        self._free = free
        self._lock = threading.Lock()
        self._users = 0
        self.view = memoryview(self._data)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._data))
        self.start = 0  # bytes at the front that the window before has already hashed
        self.end = 0

    def share(self, users: int) -> None:
        """Give the window to ``users`` threads."""
        self._users = users

    def release(self) -> None:
        """One of them needs it no longer."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._free.put(self)


class _Bench:
    """What one worker works with."""

    def __init__(self, size: int, writer: ImageWriter) -> None:
        self._data = mmap.mmap(-1, size)  # page-aligned, for writes past the page cache; it takes what is used of it
        self.view = memoryview(self._data)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._data))
        self.inflater = make_inflater()
        self.codec = writer.make_codec()


def read_front(read: Read) -> bytes:
    """Read the sector that holds the header; less where the stream ends before."""
    front = bytearray(vmdk.SECTOR)
    view = memoryview(front)
    total = 0
    while total < len(front):
        count = read(view[total:])
        if not count:
            break
        total += count
    return bytes(front[:total])


def require_whole_chunks(header: vmdk.Header) -> None:
    """Hold a disk to what :class:`Decoder` takes: its grains are digested and stored as whole chunks.

    :raises UnfitGrains: when they are smaller than a chunk, or no multiple of one
    """
    if header.grain_bytes % CHUNK:
        raise UnfitGrains(f"grains of {header.grain_bytes} bytes, expected multiples of {CHUNK}")


def workers() -> int:
    """Tell how many threads inflate: the CPUs this process may use, and three for those that wait for the disk."""
    return min(WORKERS_LIMIT, len(os.sched_getaffinity(0)) + 3)


def batch_bytes(grain_bytes: int, piece: int) -> int:
    """Tell how much of the disk a thread inflates before it writes, in bytes: whole grains, one at least.

    :param piece: what the image's writer is best given at once
    """
    return max(1, min(piece, BENCHES // workers()) // grain_bytes) * grain_bytes


class Decoder:
    """One pass over one stream.

    :param read: fills a buffer from the stream, like ``readinto``; 0 at its end
    :param make_writer: makes the image's writer, when the header is known
    :param make_content: makes the content map likewise
    :param advance: told the number of bytes read
    :param digest: instead of a SHA-256 of this pass's own
    :param read_on: read to the end in spite of a fault, so that the digest tells a file that was changed from one that
        was bad from the start; otherwise the fault is raised as it is
    """

    def __init__(
        self,
        read: Read,
        make_writer: Callable[[vmdk.Header], ImageWriter],
        make_content: Callable[[vmdk.Header], ContentMap],
        advance: Callable[[int], None],
        *,
        digest: Digest | None = None,
        read_on: bool = True,
    ) -> None:
        self._read = read
        self._make_writer = make_writer
        self._make_content = make_content
        self._advance = advance
        self._scanner = Scanner()
        self._digest: Digest = digest or hashlib.sha256()
        self._read_on = read_on
        self._count = 0
        self._written = 0
        self._made_content: ContentMap | None = None
        self._lock = threading.Lock()
        self._fault: Exception | None = None  # the first of any thread
        self._work: queue.SimpleQueue[tuple[_Window, _Batch] | None] = queue.SimpleQueue()
        self._hash: queue.SimpleQueue[_Window | None] = queue.SimpleQueue()
        self._zero_forms: dict[bytes, bool] = {}

    def run(self) -> Decoded:
        """Decode the stream to its end.

        :raises DecodeFault: when it is damaged, hostile or not for this reader; VmdkError or CodecError when it was not
            to be read on
        :raises OSError: when it cannot be read, or the image not be written
        """
        front = read_front(self._read)
        self._count = len(front)
        try:
            self._header = vmdk.read_header(front)
            require_whole_chunks(self._header)
            self.writer = self._make_writer(self._header)
            self.content = self._made_content = self._make_content(self._header)
            self._batch = batch_bytes(self._header.grain_bytes, self.writer.piece)
        except vmdk.VmdkError as fault:
            if not self._read_on:
                raise
            self._digest.update(memoryview(front))
            raise self._drained(str(fault)) from fault
        free: queue.SimpleQueue[_Window] = queue.SimpleQueue()
        size = WINDOW + self._header.largest_grain + 2 * vmdk.SECTOR
        for _ in range(workers() + 3):
            free.put(_Window(size, free))
        hasher = threading.Thread(target=self._run_hasher, daemon=True)
        crew = [threading.Thread(target=self._run_worker, daemon=True) for _ in range(workers())]
        for thread in (hasher, *crew):
            thread.start()
        try:
            self._run_reader(front, free)
        finally:
            self._hash.put(None)
            for _ in crew:
                self._work.put(None)
            for thread in (hasher, *crew):
                thread.join()
            self.writer.close()
        return self._finish()

    def close(self) -> None:
        """Give back what a pass that failed had made."""
        if self._made_content is not None:
            self._made_content.close()

    def _finish(self) -> Decoded:
        if self._read_on and isinstance(self._fault, (vmdk.VmdkError, CodecError)):
            raise DecodeFault(str(self._fault), self._digest.hexdigest(), self._count) from self._fault
        if self._fault is not None:
            raise self._fault
        self.writer.finish()
        return Decoded(self._digest.hexdigest(), self._count, self._written, self._scanner.grains, self._header)

    def _drained(self, message: str) -> DecodeFault:
        """Read on to the end, so that a file which was changed is told from one that was bad from the start."""
        buffer = memoryview(bytearray(WINDOW))
        while True:
            count = self._read(buffer)
            if not count:
                return DecodeFault(message, self._digest.hexdigest(), self._count)
            self._digest.update(buffer[:count])
            self._count += count

    def _run_reader(self, front: bytes, free: queue.SimpleQueue[_Window]) -> None:
        """Read windows, find the grains in them, and hand both on."""
        inflater = make_inflater()
        carried = b""
        fresh = front
        while True:
            window = free.get()
            window.view[: len(carried)] = carried
            window.start = len(carried)
            window.view[window.start : window.start + len(fresh)] = fresh
            end = window.start + len(fresh)
            count = self._read(window.view[end : end + WINDOW - len(fresh)])
            fresh = b""
            window.end = end + count
            self._count += count
            self._advance(window.end - window.start)
            if self._fault is not None and (isinstance(self._fault, OSError) or not self._read_on):
                return
            if window.end == window.start:
                break
            batches: list[_Batch] = []
            if self._fault is None:
                batches, carried = self._scan(window, inflater)
            else:
                carried = b""
            window.share(1 + len(batches))
            self._hash.put(window)
            for batch in batches:  # one by one: packed clusters have an order, and nobody waits long for his turn then
                self._work.put((window, batch))
        if self._fault is None:
            try:
                self._scanner.finish(len(carried))
            except vmdk.VmdkError as fault:
                self._fail(fault)

    def _scan(self, window: _Window, inflater: Inflater) -> tuple[list[_Batch], bytes]:
        """Find the grains of a window and give each run of them its place in the image.

        :return: the batches, and the bytes that belong to the next window
        """
        found: list[list[Grain]] = []
        try:
            grains, taken = self._scanner.feed(window.view[: window.end])
        except vmdk.VmdkError as fault:
            self._fail(fault)
            return [], b""
        header = self._header
        most = self._batch // header.grain_bytes
        for grain in grains:
            if grain.length <= SMALL and self._is_zero(window, grain, inflater):
                continue
            if found and grain.number == found[-1][-1].number + 1 and len(found[-1]) < most:
                found[-1].append(grain)
            else:
                found.append([grain])
        batches = []
        each = header.grain_bytes // CHUNK
        for run in found:
            first = run[0].number * each
            chunks = min(len(run) * each, -(-header.capacity_bytes // CHUNK) - first)
            batches.append(_Batch(self.writer.place(chunks), first, chunks, run))
        return batches, bytes(window.view[taken : window.end])

    def _is_zero(self, window: _Window, grain: Grain, inflater: Inflater) -> bool:
        """Tell a grain of zeros before it gets a place. One that is missed costs a hole in the image, no more."""
        data = bytes(window.view[grain.start : grain.start + grain.length])
        known = self._zero_forms.get(data)
        if known is None:
            room = bytearray(self._header.grain_bytes)
            target = ctypes.addressof(ctypes.c_char.from_buffer(room))
            try:
                count = inflater.inflate(window.address + grain.start, grain.length, target, len(room))
            except CodecError:
                return False  # the worker says so, with its place
            known = count == len(room) and room.count(0) == count
            if len(self._zero_forms) < KNOWN_LIMIT:
                self._zero_forms[data] = known
        return known

    def _run_hasher(self) -> None:
        while True:
            window = self._hash.get()
            if window is None:
                return
            try:
                self._digest.update(window.view[window.start : window.end])
            except Exception as fault:  # noqa: BLE001 - raised by run(); windows must go round all the same
                self._fail(fault)
            window.release()

    def _run_worker(self) -> None:
        bench: _Bench | None = None
        while True:
            item = self._work.get()
            if item is None:
                return
            window, batch = item
            try:
                bench = bench or _Bench(self._batch, self.writer)
                if self._fault is None:
                    self._store(window, batch, bench)
            except Exception as fault:  # noqa: BLE001 - raised by run(); windows must go round all the same
                self._fail(fault)
            window.release()

    def _store(self, window: _Window, batch: _Batch, bench: _Bench) -> None:
        """Inflate, digest and write one batch; a chunk is digested while it is in the processor's cache."""
        size = self._header.grain_bytes
        end = batch.chunks * CHUNK
        digests = []
        for number, grain in enumerate(batch.grains):
            start = number * size
            self._inflate(window, grain, bench, start)
            chunks = range(start, min(start + size, end), CHUNK)
            digests += [chunk_digest(bench.view[at : at + CHUNK]) for at in chunks]
        data = bench.view[:end]
        self.content.set(batch.first_chunk, b"".join(digests))
        zeros = [digest == ABSENT for digest in digests]
        written = self.writer.store(batch.place, batch.first_chunk, data, zeros, bench.codec)
        with self._lock:
            self._written += written

    def _inflate(self, window: _Window, grain: Grain, bench: _Bench, position: int) -> None:
        """Inflate one grain to ``position`` of the bench; what is behind the end of the disk is no content."""
        size = self._header.grain_bytes
        offset = grain.number * size
        try:
            count = bench.inflater.inflate(window.address + grain.start, grain.length, bench.address + position, size)
        except CodecError as fault:
            raise CodecError(f"grain {grain.number} (disk offset {offset}): {fault}") from fault
        left = self._header.capacity_bytes - offset
        if count < min(size, left):
            raise CodecError(f"grain {grain.number} (disk offset {offset}): inflates to {count} bytes, expected {size}")
        if left < size:
            bench.view[position + left : position + size] = bytes(size - left)

    def _fail(self, fault: Exception) -> None:
        with self._lock:
            if self._fault is None:
                self._fault = fault
        self.writer.abandon()
