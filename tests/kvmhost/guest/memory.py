"""A guest's files in memory: guestfs as far as files are read and written, without its appliance."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Mapping

from hyperflow.kvmhost.guest.files import GuestFiles


class Memory:
    """Stands in for the guestfs handle.

    :param files: path -> content
    :param links: symbolic links, each to a file whose mode then keeps others from reading it
    :param command: takes the arguments of a program of the guest; gives what it prints
    """

    def __init__(
        self,
        files: Mapping[str, str | bytes],
        command: Callable[[list[str]], bytes] | None = None,
        links: Mapping[str, str] | None = None,
    ) -> None:
        self.links = dict(links or {})
        self.files = {path: text if isinstance(text, bytes) else text.encode() for path, text in files.items()}
        self.asked: list[str] = []  # files whose content was read
        self._command = command

    def is_file(self, path: str, followsymlinks: bool = False) -> bool:
        return self.realpath(path) in self.files

    def is_dir(self, path: str, followsymlinks: bool = False) -> bool:
        return any(one.startswith(f"{path.rstrip('/')}/") for one in self.files)

    def exists(self, path: str) -> bool:
        return self.is_file(path) or self.is_dir(path)

    def is_symlink(self, path: str) -> bool:
        return path in self.links

    def realpath(self, path: str) -> str:
        return self.links.get(path, path)

    def lstatns(self, path: str) -> dict[str, int]:
        if path in self.links:
            return {**self.statns(path), "st_mode": stat.S_IFLNK | 0o777}
        return self.statns(path)

    def statns(self, path: str) -> dict[str, int]:
        target = self.realpath(path)
        mode = 0o600 if target in self.links.values() else 0o644
        return {"st_mode": stat.S_IFREG | mode, "st_size": len(self.files[target]), "st_uid": 0, "st_gid": 0}

    def pread(self, path: str, count: int, offset: int) -> bytes:
        return self.read_file(path)[offset : offset + count]

    def read_file(self, path: str) -> bytes:
        self.asked.append(path)
        return self.files[self.realpath(path)]

    def ls(self, directory: str) -> list[str]:
        start = f"{directory}/"
        there = (path[len(start) :] for path in (*self.files, *self.links) if path.startswith(start))
        return sorted({rest.split("/")[0] for rest in there})

    def write(self, path: str, content: bytes) -> None:
        self.files[path] = content

    def chmod(self, mode: int, path: str) -> None:
        assert path in self.files

    def chown(self, owner: int, group: int, path: str) -> None:
        assert path in self.files

    def mkdir_p(self, path: str) -> None:
        """Folders are there with their files."""

    def checksum(self, kind: str, path: str) -> str:
        return hashlib.new(kind, self.files[self.realpath(path)]).hexdigest()

    def mkdtemp(self, template: str) -> str:
        return template.replace("XXXXXX", "abcdef")

    def rm_rf(self, path: str) -> None:
        self.files = {one: content for one, content in self.files.items() if not one.startswith(f"{path}/")}

    def command(self, arguments: list[str]) -> None:
        """Run what :meth:`GuestFiles.run` runs: the file for the output, and the program behind it."""
        assert self._command is not None
        output, *program = arguments[arguments.index("sh") + 1 :]
        self.write(output, self._command(program))


def guest(files: Mapping[str, str | bytes]) -> GuestFiles:
    return GuestFiles(Memory(files))
