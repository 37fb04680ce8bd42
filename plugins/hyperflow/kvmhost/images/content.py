"""The content digest: SHA-256 of what a guest sees on its disk, whatever file it is stored in.

The definition is in ``docs/content-digest.md``. It skips chunks of zeros, so it can be computed from the
allocated parts of an image alone, in any order, by several threads, and be brought up to date when a few chunks change.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from hyperflow.kvmhost.images.data_file import naming, resize, sync, write_all

CHUNK = 65536  # bytes: a grain of a streamOptimized VMDK, a cluster of qcow2
DIGEST_SIZE = 32
ABSENT = bytes(DIGEST_SIZE)  # stands for a chunk of zeros in the map
ZERO_CHUNK = hashlib.sha256(bytes(CHUNK)).digest()

_WINDOW = 256 * 1024  # bytes of the map read at once
_INDEX = struct.Struct(">Q")


def chunk_digest(data: memoryview) -> bytes:
    """Compute the digest of one chunk as the map stores it.

    :param data: :data:`CHUNK` bytes
    :return: its SHA-256; :data:`ABSENT` when it is all zeros
    """
    digest = hashlib.sha256(data).digest()
    return ABSENT if digest == ZERO_CHUNK else digest


class ContentMap:
    """The chunks' digests, 32 bytes each, in a nameless file: memory stays the same for a disk of any size.

    Several threads may set different chunks at once. What goes wrong with the file is an OSError with its name, or its
    folder's when it has none.

    :param directory: where the file lies; it takes up to 1/2048 of the disk's data
    :param virtual_bytes: size of the guest's disk
    :param file: one with a name, for a map that another process goes on with; made by :meth:`keep`
    """

    def __init__(self, directory: Path, virtual_bytes: int, file: FileIO | None = None) -> None:
        self.chunks = -(-virtual_bytes // CHUNK)
        self._file = file or tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - as long as the map
        resize(self._file.fileno(), self.chunks * DIGEST_SIZE)

    @classmethod
    def keep(cls, path: Path, virtual_bytes: int) -> ContentMap:
        """Make a map in a file that stays, or go on with the one that is there.

        :raises OSError: when it cannot be opened
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        return cls(path.parent, virtual_bytes, FileIO(descriptor, "r+"))

    def set(self, first: int, digests: bytes) -> None:
        """Store the digests of consecutive chunks.

        :param first: index of the first chunk
        :param digests: of :func:`chunk_digest`, joined
        :raises IndexError: when a chunk is behind the end of the disk
        """
        if first < 0 or first + len(digests) // DIGEST_SIZE > self.chunks:
            raise IndexError(f"chunk {first} of {self.chunks}")
        write_all(self._file.fileno(), memoryview(digests), first * DIGEST_SIZE)

    def get(self, index: int) -> bytes:
        """Read one chunk's digest; :data:`ABSENT` for a chunk of zeros."""
        return self._read(DIGEST_SIZE, index * DIGEST_SIZE)

    def present(self) -> Iterator[tuple[int, bytes]]:
        """Yield index and digest of every chunk that holds a non-zero byte, in order."""
        descriptor = self._file.fileno()
        position = 0  # bytes in the map's file
        while True:
            try:
                position = os.lseek(descriptor, position, os.SEEK_DATA) // DIGEST_SIZE * DIGEST_SIZE
            except OSError as fault:
                if fault.errno == errno.ENXIO:  # only a hole is left
                    return
                with naming(descriptor):
                    raise
            data = self._read(_WINDOW, position)
            if data.count(0) != len(data):
                for start in range(0, len(data), DIGEST_SIZE):
                    digest = data[start : start + DIGEST_SIZE]
                    if digest != ABSENT:
                        yield (position + start) // DIGEST_SIZE, digest
            position += len(data)

    def _read(self, count: int, offset: int) -> bytes:
        with naming(self._file.fileno()):
            return os.pread(self._file.fileno(), count, offset)

    def digest(self) -> tuple[str, int]:
        """Compute the content digest.

        :return: hex digest, and the number of chunks that hold a non-zero byte
        """
        total = hashlib.sha256()
        count = 0
        for index, digest in self.present():
            total.update(_INDEX.pack(index) + digest)
            count += 1
        return total.hexdigest(), count

    def sync(self) -> None:
        """Bring a map that stays to the disk."""
        sync(self._file.fileno())

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def __enter__(self) -> ContentMap:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
