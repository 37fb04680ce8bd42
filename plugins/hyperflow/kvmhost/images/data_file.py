"""An image's data on its way to the disk: past the page cache, where the file system can do that.

Data of an image is written once and in large pieces. Through the page cache it would be copied, push out what other
guests of the host need, and be waited for at the end all the same; measured, that costs four to eight times the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

ALIGNMENT = 4096  # bytes: of offset, length and address of a piece, for disks with sectors of any usual size

_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE: wait for nothing


def _find(name: str, *arguments: type) -> Callable[..., int] | None:
    """Find a function of the C library; without it data is written all the same."""
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function.argtypes = arguments  # type: ignore[attr-defined] # of a foreign function
    return function


_sync_file_range = _find("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_fallocate = _find("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


@contextlib.contextmanager
def naming(descriptor: int) -> Iterator[None]:
    """Give a fault of a file that is written by its descriptor the file's name, without which a person is helpless.

    A file that has no name is told by its folder.
    """
    try:
        yield
    except OSError as fault:
        if fault.filename is None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            fault.filename = str(path if os.fstat(descriptor).st_nlink else path.parent)
        raise


class DataFile:
    """Writes pieces of data to their places; any thread may, at any time.

    :param descriptor: of the image, open for writing; it stays the caller's
    """

    def __init__(self, descriptor: int) -> None:
        self._file = descriptor
        self._direct: int | None = None
        with contextlib.suppress(OSError):  # tmpfs cannot
            self._direct = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._past_the_cache = self._direct is not None
        self._takes_room = _fallocate is not None

    def write(self, data: memoryview, offset: int) -> None:
        """Write a piece. Pieces that are not aligned to :data:`ALIGNMENT` go through the page cache."""
        if self._past_the_cache and offset % ALIGNMENT == 0 and len(data) % ALIGNMENT == 0:
            self._take_room(offset, len(data))
            try:
                write_all(self._direct or 0, data, offset)
            except OSError as fault:
                if fault.errno != errno.EINVAL:
                    raise
                self._past_the_cache = False  # a file system that lets open pass, or wants a larger alignment
            else:
                return
        write_back(self._file, data, offset)

    def _take_room(self, offset: int, size: int) -> None:
        """Give a piece its blocks before it is written.

        Where blocks are still to be found, or the file grows, Linux lets one thread write at a time: measured, four
        threads write a sparse image 5 to 10 % faster with this. The write itself tells when there is no room.
        """
        if self._takes_room and _fallocate is not None and _fallocate(self._file, 0, offset, size) != 0:
            self._takes_room = False

    def close(self) -> None:
        """Let go of the second descriptor, after the last write."""
        direct, self._direct = self._direct, None
        self._past_the_cache = False
        if direct is not None:
            os.close(direct)


def write_back(descriptor: int, data: memoryview, offset: int) -> None:
    """Write through the page cache, and let the kernel begin to bring the piece to the disk.

    Otherwise Linux keeps up to a tenth of the memory back, and the fsync at the end waits for all of it.
    """
    write_all(descriptor, data, offset)
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset, len(data), _START_WRITING)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; a short write goes on where it stopped.

    :raises OSError: with the file's name, as of all functions here
    """
    with naming(descriptor):
        while data:
            count = os.pwrite(descriptor, data, offset)
            data = data[count:]
            offset += count


def resize(descriptor: int, size: int) -> None:
    """Set the size of a file in bytes."""
    with naming(descriptor):
        os.ftruncate(descriptor, size)


def sync(descriptor: int) -> None:
    """Bring a file to the disk, and learn of its writes that failed on their way there.

    It is certain to be told only to the descriptor that was written by, so this comes before that is closed.
    """
    with naming(descriptor):
        os.fsync(descriptor)
