"""Makes an image out of a staged disk: decoded in one pass where the format allows, by qemu-img otherwise."""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from hyperflow.kvmhost.images import codecs, files, nbd_reader, qemu, sources
from hyperflow.kvmhost.images.content import ContentMap
from hyperflow.kvmhost.images.decode import DecodeFault, Decoder, workers
from hyperflow.kvmhost.images.qcow2 import CLUSTER, CompressedQcow2Writer, ImageWriter, Qcow2Writer, RawWriter
from hyperflow.kvmhost.images.vmdk import Header
from hyperflow.kvmhost.manifest_file import Disk
from hyperflow.kvmhost.stage import BadRequest, Job, StageError

FORMATS = ("qcow2", "raw", "vdi")
COMPRESSIONS = (codecs.ZSTD, codecs.ZLIB)


@dataclass(frozen=True)
class Compression:
    """How clusters are compressed.

    :param kind: zstd or zlib
    :param level: 1 to 9; None for 1 of zstd, 6 of zlib
    """

    kind: str
    level: int | None


def check_form(image_format: str, compress: bool, level: int | None, kind: str) -> list[str]:
    """Check what an image is asked to be.

    :return: every fault, each with the name of its option
    """
    faults = []
    if image_format not in FORMATS:
        faults.append(f"format: found {image_format!r}, expected one of {', '.join(FORMATS)}")
    if compress and image_format != "qcow2":
        faults.append(f"compress: found true with format {image_format!r}, expected it with qcow2 only")
    if kind not in COMPRESSIONS:
        faults.append(f"compress_type: found {kind!r}, expected one of {', '.join(COMPRESSIONS)}")
    if level is not None and not 1 <= level <= 9:
        faults.append(f"compress_level: found {level}, expected 1 to 9")
    return faults


def working_image(target: Path, image_format: str) -> tuple[Path, str]:
    """Tell what is made first of a disk: a VDI is made of a qcow2, whose tables are ours and which takes an overlay.

    :return: path and format
    """
    if image_format == "vdi":
        return target.with_name(f"{target.name}.qcow2"), "qcow2"
    return target, image_format


@dataclass(frozen=True)
class Made:
    """What making an image found.

    :param content: of the image; the caller closes it
    :param staged_sha256: of the staged file, in the pass that read it
    :param inode: of the partial file
    """

    content: ContentMap
    virtual_bytes: int
    staged_sha256: str
    staged_bytes: int
    bytes_written: int
    inode: int


def is_decoded(disk: Disk) -> bool:
    """Tell whether a disk's image is made by our own decoder; qemu-img makes those of all others.

    :raises BadRequest: when the disk is absurd
    """
    return disk.source_format == "vmdk" and sources.is_stream_optimized(disk.path)


def make(disk: Disk, target: Path, image_format: str, compression: Compression | None, job: Job) -> Made:
    """Make the partial file of ``target`` out of a staged disk.

    :param disk: which :func:`hyperflow.kvmhost.images.sources.require_self_contained` has let pass
    :param image_format: qcow2 or raw
    :return: only when the staged file is what the manifest says
    :raises BadRequest: when it is not, or is damaged or hostile
    """
    if is_decoded(disk):
        return _decode(disk, target, image_format, compression, job)
    return _copy(disk, target, image_format, compression, job)


def lay_over(overlay: Path, disk: Disk, image: tuple[Path, str], *, content: ContentMap, job: Job) -> int:
    """Write what an overlay of the staged disk holds into the image made of that disk; the overlay stays as it is.

    :param image: the partial file, and qcow2 or raw
    :param content: of the image; brought up to date
    :return: how many chunks the overlay holds a part of
    """
    description = {
        **nbd_reader.describe(overlay, "qcow2"),
        "backing": nbd_reader.describe(disk.path, disk.source_format),
    }
    progress = job.progress(f"digest the changes of {disk.id}", 0)
    changed = nbd_reader.update_content(description, content, progress.advance)
    qemu.commit(overlay, *image)
    job.log(f"{disk.id}: {changed} clusters changed by fix, laid over the image")
    return changed


def check_overlay(overlay: Path, disk: Disk, virtual_bytes: int) -> None:
    """Hold an overlay to what fix makes: qcow2, over this very disk, of its size.

    :raises BadRequest: when it is something else
    """
    os.close(files.open_regular(overlay))
    found = qemu.info(overlay, "qcow2")
    backing = found.get("full-backing-filename") or found.get("backing-filename")
    if not backing or Path(backing).resolve() != disk.path.resolve():
        raise BadRequest(f"{overlay}: lies over {backing!r}, expected {disk.path}")
    if found.get("format-specific", {}).get("data", {}).get("data-file"):
        raise BadRequest(f"{overlay}: keeps its data in another file, expected an overlay made by fix")
    if found["virtual-size"] != virtual_bytes:
        raise BadRequest(f"{overlay}: has a disk of {found['virtual-size']} bytes, expected {virtual_bytes}")


def most_bytes(disk: Disk) -> int:
    """Tell the space that no image of a disk which is decoded can exceed, in bytes.

    :raises BadRequest: when the disk is absurd
    """
    return sources.read_header(disk.path).capacity_bytes * 1025 // 1024  # its tables and its content map


def needed_bytes(disk: Disk, overlay: Path | None) -> int:
    """Estimate the space of the uncompressed image and of its content map, in bytes."""
    description = nbd_reader.describe(disk.path, disk.source_format)
    if overlay is not None:
        description = {**nbd_reader.describe(overlay, "qcow2"), "backing": description}
    size = int(qemu.info(disk.path, disk.source_format)["virtual-size"])
    needed = qemu.measure(description, "qcow2", size)
    return needed + needed // 1024


def require_unchanged(disk: Disk, sha256: str, count: int) -> None:
    """Compare what was read of the staged file with the manifest.

    :raises BadRequest: when bytes changed between export and conversion
    """
    if count != disk.bytes or (disk.checksum is not None and sha256 != disk.checksum):
        raise BadRequest(
            f"{disk.path}: found {count} bytes with SHA-256 {sha256}, expected {disk.bytes} with "
            f"{disk.checksum or 'any'}; the staged file was changed after its export: export the disk again"
        )


def _decode(disk: Disk, target: Path, image_format: str, compression: Compression | None, job: Job) -> Made:
    job.tools.update(codecs.tools(compression.kind if compression else None))
    progress = job.progress(f"convert {disk.id}", disk.bytes)
    image = files.create_partial(target)
    inode = os.fstat(image).st_ino
    try:
        with os.fdopen(files.open_regular(disk.path), "rb", buffering=0) as source:
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            decoder = Decoder(
                source.readinto,
                functools.partial(make_writer, image, image_format, compression),
                lambda header: ContentMap(target.parent, header.capacity_bytes),
                progress.advance,
            )
            try:
                decoded = decoder.run()
                require_unchanged(disk, decoded.sha256, decoded.bytes)
            except BaseException:
                decoder.close()
                raise
    except DecodeFault as fault:
        require_unchanged(disk, fault.sha256, fault.bytes)
        raise BadRequest(f"{disk.path}: {fault}") from fault
    finally:
        os.close(image)
    progress.finish()
    written = decoded.bytes_written
    return Made(decoder.content, decoded.header.capacity_bytes, decoded.sha256, decoded.bytes, written, inode)


def make_writer(image: int, image_format: str, compression: Compression | None, header: Header) -> ImageWriter:
    """Make the writer of an image.

    :param image: an empty file, open for writing
    :param image_format: qcow2 or raw
    """
    if image_format == "raw":
        return RawWriter(image, header.capacity_bytes)
    if compression is None:
        return Qcow2Writer(image, header.capacity_bytes)
    make_compressor = functools.partial(codecs.make_compressor, compression.kind, compression.level, CLUSTER)
    make_compressor()  # a host without the library is told before the work starts
    return CompressedQcow2Writer(image, header.capacity_bytes, compression.kind, make_compressor)


class _Hashing(threading.Thread):
    """Hashes the staged file while qemu-img reads it."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._found: tuple[str, int] | None = None
        self._fault: Exception | None = None
        self.start()

    def run(self) -> None:
        """Thread's work."""
        try:
            self._found = files.hash_file(self._path)
        except (OSError, StageError) as fault:
            self._fault = fault

    def result(self) -> tuple[str, int]:
        """Wait for the digest and the number of bytes."""
        self.join()
        if self._found is None:
            raise self._fault or StageError(f"{self._path}: could not be hashed")
        return self._found


def _copy(disk: Disk, target: Path, image_format: str, compression: Compression | None, job: Job) -> Made:
    """Make the image by qemu-img, and its content map by reading the source through QEMU."""
    partial, inode = files.partial_path(target), make_partial(target)
    options = ["-m", str(workers())]
    if compression is not None:
        options += ["-c", "-o", f"compression_type={compression.kind}"]
        if compression.level is not None:
            job.warn(f"{disk.id}: compress_level is not used: qemu-img, which converts {disk.source_format}, has none")
    size = int(qemu.info(disk.path, disk.source_format)["virtual-size"])
    hashing = _Hashing(disk.path)
    progress = job.progress(f"convert {disk.id}", size)
    source = (disk.path, disk.source_format)
    qemu.convert(source, (partial, image_format), options, lambda percent: progress.advance(size * percent // 100))
    sha256, count = hashing.result()
    require_unchanged(disk, sha256, count)
    progress = job.progress(f"digest {disk.id}", 0)
    content, size = nbd_reader.read_content(nbd_reader.describe(*source), target.parent, progress.advance)
    return Made(content, size, sha256, count, partial.stat().st_blocks * 512, inode)


def make_partial(target: Path) -> int:
    """Make the partial file of ``target``, empty, for qemu-img to write into.

    :return: its inode, which qemu-img keeps
    """
    descriptor = files.create_partial(target)
    try:
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)
