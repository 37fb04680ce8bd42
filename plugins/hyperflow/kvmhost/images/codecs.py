"""Compression by the host's own libraries: libdeflate and libzstd by ctypes, the standard zlib where they are missing.

ctypes releases the interpreter lock during a call, so codecs of several threads run at once. A codec object belongs to
one thread.
"""

from __future__ import annotations

import ctypes
import functools
import zlib
from typing import Protocol

from hyperflow.kvmhost.stage import BadRequest

ZLIB = "zlib"
ZSTD = "zstd"

_DEFLATE_LIBRARIES = ("libdeflate.so.0", "libdeflate.so")
_ZSTD_LIBRARIES = ("libzstd.so.1", "libzstd.so")
_SHORT = 3  # LIBDEFLATE_INSUFFICIENT_SPACE: more comes out than there is room for
_QCOW2_WINDOW = -12  # raw deflate, 4 KiB window: what QEMU's qcow2 driver inflates with
ZSTD_LEVEL = 1  # the bench's disk 3 % larger than of level 3, in 0.8 of its time, and smaller than qemu-img's zlib
_MEMORY_LEVEL = 9  # as QEMU's qcow2 driver compresses


class CodecError(Exception):
    """The compressed data is damaged or inflates to more than it may."""


class Inflater(Protocol):
    """Inflates zlib streams into a buffer of its caller's."""

    def inflate(self, source: int, size: int, target: int, room: int) -> int:
        """Inflate one zlib stream.

        :param source: address of the stream of ``size`` bytes
        :param target: address of ``room`` bytes
        :return: bytes written, at most ``room``
        :raises CodecError: when the stream is damaged, cut, or inflates to more than ``room``
        """


class Compressor(Protocol):
    """Compresses one cluster at a time."""

    def compress(self, data: memoryview) -> bytes:
        """Compress; the result may be longer than ``data``."""


class LibdeflateInflater:
    """:class:`Inflater` by libdeflate: about twice the speed of zlib, and it verifies the Adler-32."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._inflate = library.libdeflate_zlib_decompress
        self._free = library.libdeflate_free_decompressor
        self._state = library.libdeflate_alloc_decompressor()
        if not self._state:
            raise MemoryError("libdeflate_alloc_decompressor")
        self._actual = ctypes.c_size_t()
        self._actual_address = ctypes.addressof(self._actual)

    def inflate(self, source: int, size: int, target: int, room: int) -> int:
        """See :class:`Inflater`."""
        status = self._inflate(self._state, source, size, target, room, self._actual_address)
        if status:
            raise CodecError(_too_long(room) if status == _SHORT else "damaged or cut zlib stream")
        return self._actual.value

    def __del__(self) -> None:
        if self._state:
            self._free(self._state)


class ZlibInflater:
    """:class:`Inflater` by the standard library."""

    def inflate(self, source: int, size: int, target: int, room: int) -> int:
        """See :class:`Inflater`."""
        stream = zlib.decompressobj()
        try:
            data = stream.decompress((ctypes.c_char * size).from_address(source), room + 1)
        except zlib.error as fault:
            raise CodecError(f"damaged zlib stream ({fault})") from fault
        if len(data) > room:
            raise CodecError(_too_long(room))
        if not stream.eof:
            raise CodecError("damaged or cut zlib stream")
        ctypes.memmove(target, data, len(data))
        return len(data)


class ZlibCompressor:
    """Raw deflate as qcow2 wants it; libdeflate cannot keep to a window of 4 KiB."""

    def __init__(self, level: int) -> None:
        self._level = level

    def compress(self, data: memoryview) -> bytes:
        """See :class:`Compressor`."""
        stream = zlib.compressobj(self._level, zlib.DEFLATED, _QCOW2_WINDOW, _MEMORY_LEVEL)
        return stream.compress(data) + stream.flush()


class ZstdCompressor:
    """One zstd frame a cluster, by libzstd."""

    def __init__(self, library: ctypes.CDLL, level: int, cluster: int) -> None:
        self._library = library
        self._level = level
        self._context = library.ZSTD_createCCtx()
        if not self._context:
            raise MemoryError("ZSTD_createCCtx")
        self._room = library.ZSTD_compressBound(cluster)
        self._buffer = ctypes.create_string_buffer(self._room)

    def compress(self, data: memoryview) -> bytes:
        """See :class:`Compressor`."""
        source = (ctypes.c_char * len(data)).from_buffer(data)
        count = self._library.ZSTD_compressCCtx(self._context, self._buffer, self._room, source, len(data), self._level)
        if self._library.ZSTD_isError(count):
            raise CodecError(f"zstd: {self._library.ZSTD_getErrorName(count).decode()}")
        return ctypes.string_at(self._buffer, count)

    def __del__(self) -> None:
        if self._context:
            self._library.ZSTD_freeCCtx(self._context)


def make_inflater(fast: bool = True) -> Inflater:
    """Make the fastest inflater that this host has.

    :param fast: False for the standard library's
    """
    library = _libdeflate() if fast else None
    return LibdeflateInflater(library) if library is not None else ZlibInflater()


def make_compressor(kind: str, level: int | None, cluster: int) -> Compressor:
    """Make a compressor for qcow2 clusters.

    :param kind: ``zstd`` or ``zlib``
    :param level: 1 to 9; None for zlib's own default, or :data:`ZSTD_LEVEL`
    :param cluster: bytes of a cluster
    :raises BadRequest: when the host has no libzstd
    """
    if kind == ZLIB:
        return ZlibCompressor(zlib.Z_DEFAULT_COMPRESSION if level is None else level)
    library = _libzstd()
    if library is None:
        raise BadRequest("compress_type: zstd needs libzstd on the host (package libzstd1 or libzstd), or take zlib")
    return ZstdCompressor(library, ZSTD_LEVEL if level is None else level, cluster)


def tools(compress_type: str | None = None) -> dict[str, str]:
    """Tell which libraries are used, as a stage's result names its tools."""
    found = {}
    if _libdeflate() is not None:
        found["libdeflate"] = str(_libdeflate()._name)  # type: ignore[union-attr] # it cannot tell its version
    if _libdeflate() is None or compress_type == ZLIB:
        found["zlib"] = zlib.ZLIB_RUNTIME_VERSION
    if compress_type == ZSTD:
        library = _libzstd()
        if library is not None:
            found["libzstd"] = library.ZSTD_versionString().decode()
    return found


@functools.cache
def _libdeflate() -> ctypes.CDLL | None:
    library = _load(_DEFLATE_LIBRARIES)
    if library is not None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        library.libdeflate_alloc_decompressor.restype = pointer
        library.libdeflate_free_decompressor.argtypes = [pointer]
        library.libdeflate_free_decompressor.restype = None
        library.libdeflate_zlib_decompress.argtypes = [pointer, pointer, size, pointer, size, pointer]
        library.libdeflate_zlib_decompress.restype = ctypes.c_int
    return library


@functools.cache
def _libzstd() -> ctypes.CDLL | None:
    library = _load(_ZSTD_LIBRARIES)
    if library is not None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        library.ZSTD_createCCtx.restype = pointer
        library.ZSTD_freeCCtx.argtypes = [pointer]
        library.ZSTD_compressBound.argtypes = [size]
        library.ZSTD_compressBound.restype = size
        library.ZSTD_compressCCtx.argtypes = [pointer, pointer, size, pointer, size, ctypes.c_int]
        library.ZSTD_compressCCtx.restype = size
        library.ZSTD_isError.argtypes = [size]
        library.ZSTD_isError.restype = ctypes.c_uint
        library.ZSTD_getErrorName.argtypes = [size]
        library.ZSTD_getErrorName.restype = ctypes.c_char_p
        library.ZSTD_versionString.restype = ctypes.c_char_p
    return library


def _load(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _too_long(room: int) -> str:
    return f"zlib stream that inflates to more than {room} bytes"
