"""Reads what a guest would see on a disk, through QEMU and the NBD protocol.

An image is served read-only by ``qemu-nbd`` on a socket of its own, its format named; libnbd (Debian's
python3-libnbd) asks which parts hold data and reads those. Nothing here shares code with the writers of
:mod:`hyperflow.kvmhost.images.qcow2`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hyperflow.kvmhost import commands, watchdog
from hyperflow.kvmhost.images.content import CHUNK, ContentMap, chunk_digest
from hyperflow.kvmhost.images.qemu import driver
from hyperflow.kvmhost.stage import StageError, TryAgain
from hyperflow.kvmhost.watchdog import Watchdog

ALLOCATION = "base:allocation"
DEPTH = "qemu:allocation-depth"
STATE_ZERO = 2  # base:allocation: reads as zeros
PIECE = 1 << 20  # bytes read at once, a multiple of the chunk
ASK = 1 << 30  # bytes whose state is asked at once
START_SECONDS = 120.0  # for it to come up, which takes less than one
# Seconds without any answer, after which the server is ended: it is asked for 1 MiB, or for the state of 1 GiB.
SILENCE = 900.0
END_SECONDS = 30.0  # for it to end by itself; what it only reads is not harmed by SIGKILL

Range = tuple[int, int]  # first byte, and the one behind the last


@contextlib.contextmanager
def serve(image: dict[str, Any], connections: int) -> Iterator[tuple[str, commands.Started]]:
    """Serve an image read-only while the context lasts.

    :param image: QEMU's description of it, as made by :func:`describe`
    :return: the socket's path, where the server soon listens, and the server
    :raises StageError: when there is no qemu-nbd
    """
    if shutil.which("qemu-nbd") is None:
        raise StageError("qemu-nbd is not installed on this host (package qemu-utils or qemu-img)")
    with tempfile.TemporaryDirectory(prefix="hyperflow-nbd-") as folder:
        path = str(Path(folder) / "socket")
        shared = f"--shared={connections}"
        # not --persistent: should this program be killed, the server ends with its last connection
        arguments = ["qemu-nbd", "--read-only", "--allocation-depth", shared, f"--socket={path}"]
        process = commands.Started(
            [*arguments, "json:" + json.dumps(image)],
            stdin=commands.DEVNULL,
            stdout=commands.DEVNULL,
            stderr=commands.PIPE,
        )
        try:
            yield path, process
        finally:
            _end(process)


def _end(process: commands.Started) -> None:
    """End the server, by SIGKILL where it heeds nothing else; one that waits for a dead disk is left to the kernel."""
    for end in (process.terminate, process.kill):
        end()
        with contextlib.suppress(commands.TimeoutExpired):
            process.communicate(timeout=END_SECONDS)
            return


def describe(path: Path, image_format: str) -> dict[str, Any]:
    """Describe an image to QEMU: its format is named, and nothing is probed."""
    return {"driver": driver(image_format), "file": {"driver": "file", "filename": str(path)}}


def read_content(image: dict[str, Any], directory: Path, advance: Callable[[int], None]) -> tuple[ContentMap, int]:
    """Compute the content map of a whole image.

    :param directory: where the map's file may lie
    :param advance: told the bytes of the disk that are done
    :return: the map, which the caller closes, and the disk's size in bytes
    """
    with _connected(image) as handles:
        size = handles[0].size()
        content = ContentMap(directory, size)
        try:
            ranges = _ranges(handles[0], size, ALLOCATION, lambda state: not state & STATE_ZERO)
            _digest(handles, ranges, size, content, advance)
            advance(0)
        except BaseException:
            content.close()
            raise
    return content, size


def update_content(overlay: dict[str, Any], content: ContentMap, advance: Callable[[int], None]) -> int:
    """Bring a content map up to date with what an overlay changes.

    :param overlay: its description, with a backing image
    :param content: of the backing image
    :return: how many chunks the overlay holds a part of
    """
    with _connected(overlay) as handles:
        size = handles[0].size()
        ranges = _ranges(handles[0], size, DEPTH, lambda depth: depth == 1)
        return _digest(handles, ranges, size, content, advance)


def _ranges(handle: _Connection, size: int, context: str, wanted: Callable[[int], bool]) -> Iterator[Range]:
    """Find the parts of the disk that are in a wanted state, widened to whole chunks, in order, none twice."""
    found: list[tuple[int, int]] = []

    def take(name: str, _offset: int, extents: list[int], _error: Any) -> int:
        if name == context:
            found.extend(zip(extents[::2], extents[1::2]))
        return 0

    position = done = 0
    while position < size:
        found.clear()
        handle.ask(min(ASK, size - position), position, take)
        if not found:
            raise StageError(f"qemu-nbd tells nothing about {context} at {position}")
        for length, state in found:
            end = min(position + length, size)
            if wanted(state):
                first = max(position // CHUNK * CHUNK, done)
                done = -(-end // CHUNK) * CHUNK
                if first < done:
                    yield first, min(done, size)
            position = end


def _digest(
    handles: list[_Connection],
    ranges: Iterator[Range],
    size: int,
    content: ContentMap,
    advance: Callable[[int], None],
) -> int:
    """Read and digest ranges with a thread for each connection but the first, which looks for the ranges.

    :return: how many chunks were read
    """
    pieces: queue.Queue[Range | None] = queue.Queue(maxsize=4 * len(handles))
    faults: list[Exception] = []
    chunks = 0

    def work(handle: _Connection) -> None:
        while True:
            piece = pieces.get()
            if piece is None:
                return
            if faults:
                continue
            try:
                _digest_piece(handle, piece, content)
                advance(piece[1] - piece[0])
            except Exception as fault:  # noqa: BLE001 - raised below, in the thread that called
                faults.append(fault)

    crew = [threading.Thread(target=work, args=(handle,), daemon=True) for handle in handles[1:]]
    for thread in crew:
        thread.start()
    try:
        for first, end in ranges:
            chunks += -(-(end - first) // CHUNK)
            for start in range(first, end, PIECE):
                pieces.put((start, min(start + PIECE, end)))
            if faults:
                break
    finally:
        for _ in crew:
            pieces.put(None)
        for thread in crew:
            thread.join()
    if faults:
        raise faults[0]
    return chunks


def _digest_piece(handle: _Connection, piece: Range, content: ContentMap) -> None:
    start, end = piece
    data = handle.read(end - start, start)
    if len(data) % CHUNK:  # the end of the disk
        data = bytes(data).ljust(-(-len(data) // CHUNK) * CHUNK, b"\0")
    view = memoryview(data)
    digests = b"".join(chunk_digest(view[at : at + CHUNK]) for at in range(0, len(view), CHUNK))
    content.set(start // CHUNK, digests)


class _Silence:
    """For how long a server has answered nothing, to whichever connection.

    In looks, and not in time: a stage that was stopped for a while has not waited meanwhile.
    """

    def __init__(self, name: str, pid: int) -> None:
        self._name, self._pid = name, pid
        self._looks = 0

    def broken(self) -> None:
        """The server has answered."""
        self._looks = 0

    def is_too_long(self) -> tuple[int, StageError] | None:
        self._looks += 1
        if self._looks * watchdog.LOOK <= SILENCE:
            return None
        return self._pid, TryAgain(f"{self._name}: qemu-nbd answered nothing for {SILENCE:.0f} s, and was ended")


class _Connection:
    """A connection to a server, each of whose answers breaks its silence."""

    def __init__(self, handle: Any, silence: _Silence) -> None:
        self._handle = handle
        self._silence = silence

    def size(self) -> int:
        """Bytes of the disk."""
        return int(self._handle.get_size())

    def ask(self, count: int, offset: int, take: Callable[[str, int, list[int], Any], int]) -> None:
        """Ask for the state of a part of the disk."""
        self._handle.block_status(count, offset, take)
        self._silence.broken()

    def read(self, count: int, offset: int) -> Any:
        """Read a part of the disk."""
        data = self._handle.pread(count, offset)
        self._silence.broken()
        return data

    def shutdown(self) -> None:
        """Take leave of the server."""
        self._handle.shutdown()


@contextlib.contextmanager
def _connected(image: dict[str, Any]) -> Iterator[list[_Connection]]:
    """Serve an image and connect to it once for each CPU and once more.

    :raises TryAgain: the server answers nothing
    """
    try:
        import nbd
    except ImportError as fault:
        raise StageError("libnbd for Python is not installed on this host (package python3-libnbd)") from fault
    count = 1 + min(4, max(2, len(os.sched_getaffinity(0))))
    with serve(image, count) as (path, process):
        name = image["file"]["filename"]
        silence = _Silence(name, process.pid)
        watch = Watchdog(silence.is_too_long)
        handles: list[_Connection] = []
        try:
            while len(handles) < count:
                handles.append(_Connection(_connect(nbd, path, process), silence))
                silence.broken()
            yield handles
        except (nbd.Error, StageError) as fault:
            if watch.killed_for:
                raise watch.killed_for from fault
            if isinstance(fault, StageError):
                raise
            raise StageError(f"{name}: reading it through qemu-nbd failed: {fault.string}") from fault
        finally:
            for handle in handles:
                with contextlib.suppress(nbd.Error):
                    handle.shutdown()
            watch.end()


def _connect(nbd: Any, path: str, process: commands.Started) -> Any:
    """Connect as soon as the server listens."""
    limit = time.monotonic() + START_SECONDS
    while True:
        handle = nbd.NBD()
        handle.add_meta_context(ALLOCATION)
        handle.add_meta_context(DEPTH)
        try:
            handle.connect_unix(path)
        except nbd.Error as fault:
            if process.poll() is not None:
                _, errors = process.communicate()
                raise StageError(f"qemu-nbd: {errors.decode('utf-8', 'replace').strip()[-2000:]}") from fault
            if time.monotonic() > limit:
                raise StageError(f"qemu-nbd did not come up within {START_SECONDS:.0f} s: {fault.string}") from fault
            time.sleep(0.01)
        else:
            return handle
