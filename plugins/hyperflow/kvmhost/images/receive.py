"""Receives a streamOptimized VMDK: hashed, checked and written while it arrives; decoded into its image, too, if asked.

The network is read by the caller's thread and the rest is done by others, so that all keep going. Buffers go round:
memory does not depend on the size of the disk.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from hyperflow.kvmhost.images import vmdk
from hyperflow.kvmhost.images.data_file import sync, write_back
from hyperflow.kvmhost.images.decode import Decoder, UnfitGrains, read_front, require_whole_chunks
from hyperflow.kvmhost.images.decoded import Decoding
from hyperflow.kvmhost.images.qcow2 import ImageWriter
from hyperflow.kvmhost.images.vmdk_scanner import Scanner

BUFFER = 1 << 20  # bytes read at once
BUFFERS = 6

Read = Callable[[memoryview], int]  # fills a buffer, like readinto(); 0 at the end
CheckHeader = Callable[[vmdk.Header], None]  # called once, as soon as the header has arrived
Advance = Callable[[int], None]  # told the number of bytes received


@dataclass(frozen=True)
class Received:
    """A whole stream.

    :param sha256: of its bytes, in hex
    """

    sha256: str
    header: vmdk.Header


class StagedFile:
    """The file that the stream is written to, hashed on the way: a digest as :class:`Decoder` takes one.

    :param descriptor: an empty file, open for writing
    :param path: its name, for errors
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._file = descriptor
        self._path = path
        self._digest = hashlib.sha256()
        self._written = 0
        self.fault: OSError | None = None  # of the file; nothing is written any more then

    def update(self, data: memoryview) -> None:
        """Hash and write the next piece."""
        self._digest.update(data)
        if self.fault is None:
            try:
                write_back(self._file, data, self._written)
                self._written += len(data)
            except OSError as fault:
                self.fault = OSError(fault.errno, fault.strerror, str(self._path))

    def sync(self) -> None:
        """Bring the file to the disk. A write that failed on its way there is told to this descriptor for certain.

        :raises OSError: with the file's name
        """
        sync(self._file)

    def hexdigest(self) -> str:
        """SHA-256 of all pieces."""
        return self._digest.hexdigest()


def receive(read: Read, staged: StagedFile, check_header: CheckHeader, advance: Advance) -> Received:
    """Receive a stream to its end, held to the VMDK format, so that a broken export is noticed before it has ended.

    :raises VmdkError: at the first thing that is wrong
    :raises OSError: of the file or of ``read``
    """
    receiver = _Receiver(staged, _Structure(check_header))
    header = receiver.run(read, advance)
    return Received(staged.hexdigest(), header)


def receive_decoded(
    read: Read, staged: StagedFile, check_header: CheckHeader, advance: Advance, decoding: Decoding
) -> Received:
    """Receive a stream to its end, and decode it while it arrives; one whose grains are not for us is only received.

    :param decoding: where to, and in which form
    :raises VmdkError, CodecError: at the first thing that is wrong; the image is no use then
    :raises OSError: of a file or of ``read``
    """
    front = read_front(read)
    read = _whole(front, read)
    try:
        require_whole_chunks(vmdk.read_header(front))
    except UnfitGrains as reason:
        decoding.leave(str(reason))
        return receive(read, staged, check_header, advance)

    def watch(buffer: memoryview) -> int:
        if staged.fault is not None:
            raise staged.fault
        return read(buffer)

    def make_writer(header: vmdk.Header) -> ImageWriter:
        check_header(header)
        return decoding.make_writer(header)

    decoder = Decoder(watch, make_writer, decoding.make_content, advance, digest=staged, read_on=False)
    try:
        decoded = decoder.run()
        if staged.fault is not None:
            raise staged.fault
    except BaseException:
        decoder.close()
        raise
    decoding.finish(decoder.content, decoded)
    return Received(decoded.sha256, decoded.header)


def _whole(front: bytes, read: Read) -> Read:
    """Make a stream whole again of which the front was read already."""
    left = memoryview(front)

    def again(buffer: memoryview) -> int:
        nonlocal left
        if not left:
            return read(buffer)
        count = min(len(left), len(buffer))
        buffer[:count] = left[:count]
        left = left[count:]
        return count

    return again


class _Structure:
    """Holds the stream to the VMDK format, piece by piece."""

    def __init__(self, check_header: CheckHeader) -> None:
        self._scanner = Scanner()
        self._carried = b""
        self._check_header = check_header

    def take(self, data: memoryview) -> None:
        known = self._scanner.header is not None
        joined = memoryview(self._carried + bytes(data)) if self._carried else data
        _, taken = self._scanner.feed(joined)
        self._carried = bytes(joined[taken:])
        if not known and self._scanner.header is not None:
            self._check_header(self._scanner.header)

    def finish(self) -> vmdk.Header:
        return self._scanner.finish(len(self._carried))


class _Receiver:
    """Reads in the caller's thread; hashes, checks and writes in another."""

    def __init__(self, staged: StagedFile, structure: _Structure) -> None:
        self._staged = staged
        self._structure = structure
        self._fault: Exception | None = None
        self._filled: queue.SimpleQueue[tuple[memoryview, int] | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()

    def run(self, read: Read, advance: Advance) -> vmdk.Header:
        for _ in range(BUFFERS):
            self._free.put(memoryview(bytearray(BUFFER)))
        worker = threading.Thread(target=self._work, daemon=True)
        worker.start()
        try:
            while self._fault is None:
                buffer = self._free.get()
                count = read(buffer)
                if not count:
                    break
                self._filled.put((buffer, count))
                advance(count)
        finally:
            self._filled.put(None)
            worker.join()
        if self._fault is not None:
            raise self._fault
        return self._structure.finish()

    def _work(self) -> None:
        while True:
            item = self._filled.get()
            if item is None:
                return
            buffer, count = item
            try:
                if self._fault is None:
                    self._staged.update(buffer[:count])
                    self._fault = self._staged.fault
                    self._structure.take(buffer[:count])
            except Exception as fault:  # noqa: BLE001 - raised by run(), in the thread that called it
                self._fault = fault
            self._free.put(buffer)
