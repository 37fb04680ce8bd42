"""Compares the files a manifest names with what it says of them."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Event

from hyperflow.manifest.models import Disk, Manifest

BLOCK = 4 * 1024 * 1024  # bytes read at once; a disk needs no more memory than this

ProgressCallback = Callable[[str, int, int], None]  # disk id, bytes read, bytes in all; called from several threads


class Verdict(StrEnum):
    """What came of comparing one file."""

    MATCHES = "matches"
    NO_CHECKSUM = "no checksum"  # size and kind are as said; the content cannot be told
    MISSING = "missing"
    UNREADABLE = "unreadable"
    SYMLINK = "link out of the folder"
    NOT_REGULAR = "not a regular file"
    SIZE_DIFFERS = "size differs"
    DIGEST_DIFFERS = "digest differs"
    CHANGED = "changed while it was read"
    REPLACED = "replaced while it was read"


@dataclass(frozen=True)
class VerifiedDisk:
    """The verdict on one disk.

    :param disk_id: the disk
    :param path: its file
    :param verdict: what was seen
    :param found: what is there, for a person
    :param expected: what the manifest says
    :param sha256: digest of what was read, when it was read to the end
    """

    disk_id: str
    path: str
    verdict: Verdict
    found: str
    expected: str
    sha256: str | None = None

    @property
    def good(self) -> bool:
        """Whether nothing speaks against the file."""
        return self.verdict in (Verdict.MATCHES, Verdict.NO_CHECKSUM)

    def __str__(self) -> str:
        return f"{self.disk_id}: {self.path}: {self.verdict}: found {self.found}, expected {self.expected}"


def verify_manifest(
    manifest: Manifest,
    *,
    folder: Path | None = None,
    progress: ProgressCallback | None = None,
    workers: int | None = None,
    always_read: bool = False,
) -> list[VerifiedDisk]:
    """Read every file the manifest names and compare size and SHA-256.

    :param folder: the manifest's; a file that is said to lie in it must do so when all links are followed
    :param progress: told of every block read; what it raises ends the reading of every disk, and is raised
    :param workers: files read at once; the number of CPUs when None
    :param always_read: read also what has no checksum, for its digest
    :return: a verdict a disk, in the manifest's order; nothing is raised for what is wrong with a file
    """
    limit = workers or os.cpu_count() or 1
    given_up = Event()
    reasons: list[BaseException] = []

    def step(disk_id: str, read: int, total: int) -> None:
        if given_up.is_set():
            raise _GivenUp
        if progress is None:
            return
        try:
            progress(disk_id, read, total)
        except BaseException as reason:
            reasons.append(reason)
            given_up.set()  # here, and not where it is raised to: a thread takes its next file sooner than that
            raise

    with ThreadPoolExecutor(max_workers=min(limit, len(manifest.disks))) as pool:
        waiting = [pool.submit(verify_disk, disk, folder, step, always_read=always_read) for disk in manifest.disks]
        try:
            return [each.result() for each in waiting]
        except BaseException as fault:  # Ctrl-C among them: without this the threads would read their terabytes first
            given_up.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(fault, _GivenUp):
                raise reasons[0] from None
            raise


def verify_disk(
    disk: Disk, folder: Path | None = None, progress: ProgressCallback | None = None, *, always_read: bool = False
) -> VerifiedDisk:
    """Read one disk's file and compare it with the manifest; see :func:`verify_manifest`."""
    try:
        path = _real_path(disk, folder)
        if path is None:
            return _verdict(disk, Verdict.SYMLINK, "a link to elsewhere", "a file in its folder")
        # Without O_NONBLOCK a FIFO waits for a writer. The links were followed: one that is there now is new.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except RuntimeError:  # pathlib's word for links that go round in a circle
        return _verdict(disk, Verdict.SYMLINK, "a link to itself", "a file in its folder")
    except OSError as fault:
        return _not_opened(disk, fault)
    try:
        return _compare(disk, descriptor, progress, always_read)
    except OSError as fault:
        return _verdict(disk, Verdict.UNREADABLE, fault.strerror or str(fault), "a file that can be read")
    finally:
        os.close(descriptor)


class _GivenUp(Exception):
    """Nobody waits for this file any more."""


def _real_path(disk: Disk, folder: Path | None) -> Path | None:
    """Follow the links; None when they lead out of the file's folder, or of the manifest's.

    The same rule as on the host (kvmhost/manifest_file.py): links above the folder are the host's business.

    :raises OSError: there is no such file, or links go round in a circle
    """
    named = Path(disk.local_path)
    real = named.resolve(strict=True)
    if real.parent != named.parent.resolve(strict=True):
        return None
    if folder is not None and named.is_relative_to(folder.absolute()) and not real.is_relative_to(folder.resolve()):
        return None
    return real


def _verdict(disk: Disk, verdict: Verdict, found: str, expected: str, digest: str | None = None) -> VerifiedDisk:
    return VerifiedDisk(disk.id, disk.local_path, verdict, found, expected, digest)


def _not_opened(disk: Disk, fault: OSError) -> VerifiedDisk:
    if fault.errno == errno.ELOOP:
        return _verdict(disk, Verdict.SYMLINK, "a link that was no link before", "a file in its folder")
    if fault.errno in (errno.ENOENT, errno.ENOTDIR):
        return _verdict(disk, Verdict.MISSING, "no file", "a file")
    if fault.errno == errno.ENXIO:  # a socket, or a FIFO or device without another end
        return _verdict(disk, Verdict.NOT_REGULAR, "a socket or device", "a regular file")
    return _verdict(disk, Verdict.UNREADABLE, fault.strerror or str(fault), "a file that can be read")


def _compare(disk: Disk, descriptor: int, progress: ProgressCallback | None, always_read: bool) -> VerifiedDisk:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        return _verdict(disk, Verdict.NOT_REGULAR, _kind(before.st_mode), "a regular file")
    if before.st_size != disk.bytes:
        return _verdict(disk, Verdict.SIZE_DIFFERS, f"{before.st_size} bytes", f"{disk.bytes} bytes")
    if disk.sha256 is None and not always_read:
        return _verdict(disk, Verdict.NO_CHECKSUM, "no checksum in the manifest", "one")
    digest, read = _digest(disk, descriptor, progress)
    moved = _changed_meanwhile(disk, descriptor, before, read)
    if moved is not None:
        return moved
    if disk.sha256 is None:
        return _verdict(disk, Verdict.NO_CHECKSUM, "no checksum in the manifest", "one", digest)
    verdict = Verdict.MATCHES if digest == disk.sha256 else Verdict.DIGEST_DIFFERS
    return _verdict(disk, verdict, digest, disk.sha256, digest)


def _changed_meanwhile(disk: Disk, descriptor: int, before: os.stat_result, read: int) -> VerifiedDisk | None:
    after = os.fstat(descriptor)
    if read != before.st_size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        found = f"{after.st_size} bytes at the end, {read} read"
        return _verdict(disk, Verdict.CHANGED, found, f"{before.st_size} bytes all the time")
    if not _is_still(disk.local_path, before):
        return _verdict(disk, Verdict.REPLACED, "another file under the name", "the file that was read")
    return None


def _digest(disk: Disk, descriptor: int, progress: ProgressCallback | None) -> tuple[str, int]:
    digest, read = hashlib.sha256(), 0
    buffer = memoryview(bytearray(BLOCK))
    # One block past the size is enough to see a file that grows; it must not be followed for ever.
    while read <= disk.bytes and (count := os.readv(descriptor, [buffer])):
        digest.update(buffer[:count])
        read += count
        if progress is not None:
            progress(disk.id, read, disk.bytes)
    return digest.hexdigest(), read


def _is_still(path: str, opened: os.stat_result) -> bool:
    try:
        now = Path(path).stat()
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (opened.st_dev, opened.st_ino)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
