"""An image that was decoded while its disk was downloaded, kept until convert takes it over.

It lies in a folder ``.IMAGE.decoded.partial`` beside the image that it is to become, with the digests of its content
and a note, written last. Convert takes it only when the note says that it was made of the very bytes that the manifest
names, in the form that is wanted; otherwise it decodes the staged disk as if there was none.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hyperflow.kvmhost.images import codecs, files
from hyperflow.kvmhost.images.content import ContentMap
from hyperflow.kvmhost.images.conversion import Compression, Made, is_decoded, make_writer
from hyperflow.kvmhost.images.data_file import sync
from hyperflow.kvmhost.images.decode import Decoded
from hyperflow.kvmhost.images.qcow2 import ImageWriter
from hyperflow.kvmhost.images.vmdk import Header
from hyperflow.kvmhost.manifest_file import Disk
from hyperflow.kvmhost.stage import Job, write_atomically

IMAGE, CONTENT, NOTE = "image", "content", "note"


def folder_of(working: Path) -> Path:
    """Name the folder of the decoded image that is to become ``working``."""
    return working.with_name(f".{working.name}.decoded.partial")


class Decoding:
    """A decoding that is under way.

    :param working: the image that it is to become
    :param image_format: qcow2 or raw
    """

    def __init__(self, working: Path, image_format: str, compression: Compression | None, job: Job) -> None:
        job.tools.update(codecs.tools(compression.kind if compression else None))
        self._job = job
        self._form = _form(image_format, compression)
        self._working = working
        self._finished = False
        self._folder = folder_of(working)
        discard(working)
        self._folder.mkdir(parents=True, mode=0o700)
        self._image = os.open(self._folder / IMAGE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, files.MODE)
        self._make_writer = functools.partial(make_writer, self._image, image_format, compression)

    def make_writer(self, header: Header) -> ImageWriter:
        """Make the image's writer."""
        return self._make_writer(header)

    def make_content(self, header: Header) -> ContentMap:
        """Make the map of the content's digests."""
        return ContentMap.keep(self._folder / CONTENT, header.capacity_bytes)

    def finish(self, content: ContentMap, decoded: Decoded) -> None:
        """Write the note, which makes the image one that can be taken over."""
        with content:
            content_sha256, clusters = content.digest()
            content.sync()
        sync(self._image)
        note = {
            "kind": "hyperflow-decoded",
            "staged_sha256": decoded.sha256,
            "staged_bytes": decoded.bytes,
            "form": self._form,
            "virtual_bytes": decoded.header.capacity_bytes,
            "bytes_written": decoded.bytes_written,
            "content_sha256": content_sha256,
            "clusters": clusters,
            "image": files.state(self._folder / IMAGE),
        }
        write_atomically(self._folder / NOTE, json.dumps(note, indent=2) + "\n")
        self._finished = True

    def leave(self, why: str) -> None:
        """Give it up before it has begun: convert makes the image of the staged disk."""
        self._job.log(f"{self._working}: not decoded while its disk arrives, but made by convert: {why}")

    def __enter__(self) -> Decoding:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the image's file; a part of an image, or that of a download that failed, is no use to anybody."""
        os.close(self._image)
        if kind is not None or not self._finished:
            discard(self._working)


def take_over(disk: Disk, working: Path, image_format: str, compression: Compression | None, job: Job) -> Made | None:
    """Make the decoded image of a disk the partial file of ``working``.

    :return: what decoding found; None where there is no such image of these very bytes in this form
    """
    folder = folder_of(working)
    if not folder.is_dir() or folder.is_symlink():
        return None
    content: ContentMap | None = None
    try:
        note = _read_note(folder)
        if not is_decoded(disk):  # what claims to be decoded of it is not what it holds
            job.log(f"{disk.id}: is of a kind that qemu-img reads; what was decoded during the download is not taken")
            return None
        if _wanted(disk, image_format, compression) != {key: note.get(key) for key in _KEYS}:
            job.log(f"{disk.id}: what was decoded during the download is of other bytes or another form; decoded anew")
            return None
        content = ContentMap.keep(folder / CONTENT, note["virtual_bytes"])
        digest = note["content_sha256"], note["clusters"]
        if note["image"] != files.state(folder / IMAGE) or content.digest() != digest:
            job.warn(f"{disk.id}: what was decoded during the download was changed since; decoded anew")
            return None
        inode = (folder / IMAGE).stat().st_ino
        (folder / IMAGE).replace(files.partial_path(working))
        made = Made(
            content,
            note["virtual_bytes"],
            note["staged_sha256"],
            note["staged_bytes"],
            note["bytes_written"],
            inode,
        )
        content = None  # the caller's
    finally:
        if content is not None:
            content.close()
        discard(working)
    job.log(f"{disk.id}: decoded while it was downloaded")
    return made


_KEYS = ("kind", "staged_sha256", "staged_bytes", "form")


def _wanted(disk: Disk, image_format: str, compression: Compression | None) -> dict[str, Any]:
    """Say what the note must say; a manifest without a checksum vouches for no bytes, so nothing fits it."""
    form = _form(image_format, compression)
    return dict(zip(_KEYS, ("hyperflow-decoded", disk.checksum or "unknown", disk.bytes, form)))


def _form(image_format: str, compression: Compression | None) -> dict[str, Any]:
    return {"format": image_format, "compression": None if compression is None else asdict(compression)}


def _read_note(folder: Path) -> dict[str, Any]:
    """Read the note; empty where the download ended before it was written."""
    try:
        descriptor = os.open(folder / NOTE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        try:
            note = json.loads(file.read(files.NOTE_LIMIT))
        except (ValueError, RecursionError):
            return {}
    return note if isinstance(note, dict) else {}


def held_bytes(working: Path) -> int:
    """Tell how much room the decoded image takes already; 0 where there is none."""
    try:
        return (folder_of(working) / IMAGE).lstat().st_blocks * 512
    except OSError:
        return 0


def discard(working: Path) -> None:
    """Remove the decoded image, which nobody will take over."""
    folder = folder_of(working)
    with contextlib.suppress(FileNotFoundError):
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
