"""Files of a stage's own: opened without following links, hashed, put in place, and remembered.

Work goes to ``.NAME.partial`` beside the target. Before the finished file gets its name, a note ``.NAME.json`` with its
digest is written, so a later run can tell its own work from somebody else's file.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from hyperflow.kvmhost.images.data_file import sync
from hyperflow.kvmhost.ledger import unfinished_notes
from hyperflow.kvmhost.progress import size
from hyperflow.kvmhost.stage import BadRequest, StageError, write_atomically

WINDOW = 1024 * 1024  # bytes read at once
MODE = 0o600  # of staged disks and images: a guest's files are for nobody else; libvirt hands an image to its QEMU
NOTE_LIMIT = 1024 * 1024  # bytes of a note; ours have some hundred


def partial_path(target: Path) -> Path:
    """Name the file that becomes ``target`` when it is complete."""
    return target.with_name(f".{target.name}.partial")


def note_path(target: Path) -> Path:
    """Name the note that belongs to ``target``."""
    return target.with_name(f".{target.name}.json")


def open_regular(path: Path) -> int:
    """Open a regular file for reading.

    :return: the descriptor
    :raises BadRequest: when there is none, or it is a device, a FIFO or a directory
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as fault:
        raise BadRequest(f"{path}: {fault.strerror}") from fault
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadRequest(f"{path}: no regular file")
    return descriptor


def create_partial(target: Path) -> int:
    """Create the partial file of ``target`` anew; what an earlier try left is removed, never written into.

    :return: the descriptor, open for reading and writing
    """
    remove_partial(target)
    return os.open(partial_path(target), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)


def require_held(path: Path, inode: int) -> None:
    """Hold a file to be the very one that this work has made.

    :raises BadRequest: when another run has put its own there: both write the same file
    """
    found = state(path)
    if found is None or found["inode"] != inode:
        raise BadRequest(
            f"{path}: was replaced while the work ran: another run writes the same file; see that two VMs have no "
            "folder and name in common, and start again"
        )


def remove_leftover(path: Path) -> None:
    """Remove what an earlier try left under a name of ours."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def remove_partial(target: Path) -> None:
    """Remove what a try has left of ``target``: the partial file, and the note that it was killed in."""
    partial = partial_path(target)
    for leftover in (partial, *unfinished_notes(partial)):
        remove_leftover(leftover)


def remove_temporaries(path: Path) -> None:
    """Remove what killed runs of :func:`~hyperflow.kvmhost.stage.write_atomically` left beside ``path``."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        remove_leftover(leftover)


def hash_file(path: Path, advance: Callable[[int], None] | None = None) -> tuple[str, int]:
    """Compute a regular file's SHA-256 in one sequential read.

    :param advance: told the number of bytes after each window
    :return: hex digest and number of bytes
    :raises BadRequest: when there is no such regular file
    """
    digest = hashlib.sha256()
    total = 0
    buffer = memoryview(bytearray(WINDOW))
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while True:
            count = file.readinto(buffer)
            if not count:
                return digest.hexdigest(), total
            digest.update(buffer[:count])
            total += count
            if advance is not None:
                advance(count)


def put_in_place(target: Path, note: Mapping[str, Any], inode: int) -> None:
    """Give the finished partial file its name, after its note was written; never over another file.

    :param inode: of the partial file that was made; another run may have made its own of that name
    :raises BadRequest: when something has that name meanwhile; it is left without a note, which would call it ours
    """
    partial = partial_path(target)
    require_held(partial, inode)
    descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
    require_held(partial, inode)
    if os.path.lexists(target) or not _take_name(target, note):
        raise BadRequest(f"{target}: appeared while the work ran; move it away and start again")
    remove_partial(target)
    sync_directory(target.parent)


def _take_name(target: Path, note: Mapping[str, Any]) -> bool:
    """Write the note, then give the partial file its name; where that is not possible, take the note back.

    :return: False when something has that name
    """
    text = json.dumps({**note, "file": state(partial_path(target))}, indent=2) + "\n"
    write_atomically(note_path(target), text)
    is_named = False
    try:
        is_named = _link(partial_path(target), target)
    finally:
        if not is_named and read_note(target) == json.loads(text):  # else it is of somebody who came first
            remove_leftover(note_path(target))
    return is_named


def _link(partial: Path, target: Path) -> bool:
    """Name the file ``target``, whether or not it keeps its other name; False when something has that name."""
    try:
        os.link(partial, target)  # fails where a rename would overwrite
    except FileExistsError:
        return False
    except OSError as fault:
        if fault.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if os.path.lexists(target):  # a file system without hard links: the best that is left
            return False
        partial.replace(target)
    return True


def sync_directory(directory: Path) -> None:
    """Make new names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def state(path: Path) -> dict[str, int] | None:
    """Describe a file so that a change of it is seen without reading it; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return {"inode": found.st_ino, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def is_untouched(path: Path, note: Mapping[str, Any]) -> bool:
    """Tell, without reading it, whether a file is the very one that :func:`put_in_place` has put there with this note.

    One that was brought back from a backup, or was noted by an older version, may be ours all the same.
    """
    found = state(path)
    return found is not None and found == note.get("file")


def remove_earlier(target: Path, held: Mapping[str, int] | None) -> None:
    """Remove an earlier product of ours and its note, so that the new one, which is complete, can take its name.

    :param held: its :func:`state` when it was held to its note
    :raises BadRequest: when it is another file by now
    """
    found = state(target)
    if found is not None and found != held:
        raise BadRequest(f"{target}: was changed while the work ran; move it away and start again")
    target.unlink(missing_ok=True)
    note_path(target).unlink(missing_ok=True)


def read_note(target: Path) -> dict[str, Any] | None:
    """Read the note beside ``target``; None where there is none that can be read."""
    path = note_path(target)
    if path.is_symlink():
        return None
    try:
        descriptor = open_regular(path)
    except BadRequest:
        return None
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(NOTE_LIMIT)
    try:
        note = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) else None


def has_space(directory: Path, needed: int) -> bool:
    """Tell whether ``needed`` bytes fit on the directory's file system."""
    return _free(directory) >= needed


def is_of_another_vm(note: Mapping[str, Any], vm_id: str | None) -> bool:
    """Tell whether a file of ours is of another VM than ``vm_id``; not where one of the two is not known."""
    return vm_id is not None and note.get("vm_id") not in (None, vm_id)


def require_space(directory: Path, needed: int, what: str) -> None:
    """Refuse work that will not fit.

    :param needed: bytes
    :raises StageError: when the file system has less left
    """
    free = _free(directory)
    if free < needed:
        raise StageError(
            f"{directory}: {size(free)} free, but {what} needs {size(needed)}; make room or take another directory"
        )


def _free(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize
