"""The books of what is changed in a guest: each file is kept before it is changed, and listed."""

from __future__ import annotations

import posixpath
from typing import Any

from hyperflow.kvmhost.guest.files import GuestFiles, encode, printable
from hyperflow.kvmhost.stage import StageError

FOLDER = "/var/backups/hyperflow"  # one folder a run below it; beside the file it might be read as configuration

CHANGED = "changed"
CREATED = "created"
REMOVED = "removed"
REGENERATED = "regenerated"  # by the guest's own tools; what it is made from is kept instead


class Changes:
    """Changes files of a guest, keeps the originals, and remembers both.

    :param keep: whether originals are kept
    :param folder: where, in the guest
    """

    def __init__(self, files: GuestFiles, keep: bool, folder: str) -> None:
        self._files = files
        self._keep = keep
        self._folder = folder
        self._done: dict[str, dict[str, str | None]] = {}
        self._new_folders: list[str] = []

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the guest; an existing one keeps its mode and owner, and links stay links.

        :param mode: of a file that is new
        :raises StageError: when something that is no regular file has the name, or it does not read back the same
        """
        handle, content = self._files.handle, encode(text)
        old = self._files.read(path)
        if old == content:
            return
        if old is None:
            if handle.is_symlink(path) or handle.exists(path):
                raise StageError(f"{path} in the guest: no regular file, expected one or nothing")
            self._make_folder(posixpath.dirname(path))
            handle.write(path, content)
            handle.chmod(mode, path)
            self._note(path, CREATED, None)
        else:
            path = self._files.real_path(path)
            backup = self._back_up(path, old)
            handle.write(path, content)
            self._note(path, CHANGED, backup)
        if self._files.read(path) != content:
            raise StageError(f"{path} in the guest: reads back otherwise than it was written")

    def remove(self, path: str) -> None:
        """Remove a file of the guest, the name itself where it is a link."""
        old = self._files.read(path)
        backup = None if old is None else self._back_up(path, old)
        self._files.handle.rm_f(path)
        self._note(path, REMOVED, backup)

    def before_regeneration(self, path: str) -> None:
        """Keep a file that a program of the guest is about to make anew."""
        old = self._files.read(path)
        if old is not None:
            path = self._files.real_path(path)
        self._note(path, REGENERATED, None if old is None else self._back_up(path, old))

    def regenerated(self, path: str) -> None:
        """Note a file that was made anew and is too large to keep: an initramfs."""
        self._note(path, REGENERATED, None)

    def copy(self, source: str, path: str) -> None:
        """Copy a file of the guest to where nothing is, by the guest's own cp; it may be larger than a message.

        :raises StageError: when it does not read back the same
        """
        handle = self._files.handle
        self._make_folder(posixpath.dirname(path))
        self._files.run(["cp", source, path])
        self._note(path, CREATED, None)
        if handle.checksum("sha256", path) != handle.checksum("sha256", source):
            raise StageError(f"{path} in the guest: reads back otherwise than it was written")

    def linked(self, path: str, target: str) -> None:
        """Make a symbolic link where nothing is."""
        self._make_folder(posixpath.dirname(path))
        self._files.handle.ln_s(target, path)
        self._note(path, CREATED, None)

    def folder(self, path: str, mode: int, owner: tuple[int, int]) -> None:
        """Make a folder where nothing is.

        :param owner: user and group id
        """
        self._files.handle.mkdir_p(path)
        self._files.handle.chmod(mode, path)
        self._files.handle.chown(*owner, path)
        self._note(path, CREATED, None)

    def paths(self) -> list[str]:
        """The folders that are new, the files that are there after the change, and the originals that were kept."""
        there = [path for path, entry in self._done.items() if entry["change"] != REMOVED]
        return self._new_folders + there + [entry["backup"] for entry in self._done.values() if entry["backup"]]

    def listed(self) -> list[dict[str, Any]]:
        """The books: path, what happened to it, and where the original is."""
        return [
            {
                "path": printable(path),
                "change": entry["change"],
                "backup": printable(entry["backup"]) if entry["backup"] else None,
            }
            for path, entry in self._done.items()
        ]

    def _make_folder(self, folder: str) -> None:
        """Make a folder and those above it; of the new ones the topmost is remembered, for the others are below it."""
        if self._files.is_directory(folder):  # mkdir_p refuses a link to a directory
            return
        new, above = folder, posixpath.dirname(folder)
        while above != "/" and not self._files.exists(above):
            new, above = above, posixpath.dirname(above)
        self._files.handle.mkdir_p(folder)
        self._new_folders.append(new)

    def _note(self, path: str, change: str, backup: str | None) -> None:
        known = self._done.get(path)
        if known is None:
            self._done[path] = {"change": change, "backup": backup}
        elif change == REMOVED or known["change"] == REMOVED:
            known["change"] = change

    def _back_up(self, path: str, content: bytes) -> str | None:
        """Keep the first state of a file; later changes of the same run do not replace it."""
        if not self._keep or path in self._done:
            return None
        handle = self._files.handle
        backup = self._folder + path
        if not handle.is_dir(FOLDER, followsymlinks=True):
            self._make_folder(FOLDER)
            handle.chmod(0o700, FOLDER)
        self._make_folder(posixpath.dirname(backup))
        handle.write(backup, content)
        status = handle.statns(path)
        handle.chmod(status["st_mode"] & 0o7777, backup)
        handle.chown(status["st_uid"], status["st_gid"], backup)
        if self._files.read(backup) != content:
            raise StageError(f"{backup} in the guest: reads back otherwise than it was written")
        return backup
