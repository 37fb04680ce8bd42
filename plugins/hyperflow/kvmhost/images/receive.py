"""Receives a streamOptimized VMDK: hashed, checked and written in one pass, while it arrives.

The network is read by the caller's thread, the rest is done by another one, so that both keep going. Buffers go round:
memory does not depend on the size of the disk.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable

from hyperflow.kvmhost.images import vmdk
from hyperflow.kvmhost.images.vmdk_scanner import Scanner

BUFFER = 1 << 20  # bytes read at once
BUFFERS = 6

Consumer = Callable[[memoryview], None]  # takes each piece of the stream in order, and must not keep it


class Structure:
    """A consumer that holds the stream to the VMDK format, so a broken export is noticed before it has ended.

    :param check_header: called once, with the header, as soon as it has arrived
    """

    def __init__(self, check_header: Callable[[vmdk.Header], None]) -> None:
        self._scanner = Scanner()
        self._carried = b""
        self._check_header = check_header

    def __call__(self, data: memoryview) -> None:
        """Take a piece.

        :raises VmdkError: at the first thing that is wrong
        """
        known = self._scanner.header is not None
        joined = memoryview(self._carried + bytes(data)) if self._carried else data
        _, taken = self._scanner.feed(joined)
        self._carried = bytes(joined[taken:])
        if not known and self._scanner.header is not None:
            self._check_header(self._scanner.header)

    def finish(self) -> vmdk.Header:
        """Check that the stream was whole.

        :raises VmdkError: when it was not
        """
        return self._scanner.finish(len(self._carried))


class Receiver:
    """Writes a stream to a file and passes it through consumers.

    :param descriptor: the file
    :param consumers: see :data:`Consumer`; a decoder can be one of them
    """

    def __init__(self, descriptor: int, consumers: list[Consumer]) -> None:
        self._file = descriptor
        self._consumers = consumers
        self._digest = hashlib.sha256()
        self._fault: Exception | None = None
        self._filled: queue.SimpleQueue[tuple[memoryview, int] | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self.count = 0  # bytes received

    def run(self, read: Callable[[memoryview], int], advance: Callable[[int], None]) -> str:
        """Receive to the end of the stream.

        :param read: fills a buffer, like ``readinto``; 0 at the end
        :return: SHA-256 in hex
        :raises VmdkError: of a consumer
        :raises OSError: of the file or of ``read``
        """
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
                self.count += count
                self._filled.put((buffer, count))
                advance(count)
        finally:
            self._filled.put(None)
            worker.join()
        if self._fault is not None:
            raise self._fault
        return self._digest.hexdigest()

    def _work(self) -> None:
        while True:
            item = self._filled.get()
            if item is None:
                return
            buffer, count = item
            try:
                if self._fault is None:
                    self._take(buffer[:count])
            except Exception as fault:  # noqa: BLE001 - raised by run(), in the thread that called it
                self._fault = fault
            self._free.put(buffer)

    def _take(self, data: memoryview) -> None:
        self._digest.update(data)
        for consumer in self._consumers:
            consumer(data)
        left = data
        while left:
            left = left[os.write(self._file, left) :]
