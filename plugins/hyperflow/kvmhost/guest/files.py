"""Files inside a guest: read with limits, never blocking, in whatever encoding they have."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from typing import Any

from hyperflow.kvmhost.stage import StageError

TEXT_LIMIT = 4 * 1024 * 1024  # bytes of a configuration file; a large fstab has some 100 kB
MESSAGE = 1024 * 1024  # bytes that one message of guestfs carries, well below its limit of 4 MiB
OUTPUT_LIMIT = 64 * 1024 * 1024  # bytes a program of the guest may print
SHOWN = 2000  # characters of a program's output in a message

BOOT_LOADER = ("/boot/grub/", "/boot/grub2/")  # what a link between its files begins and ends with

# One fixed script; what comes from the guest or the caller are its arguments.
RUN = 'output=$1; shift; exec "$@" </dev/null >"$output" 2>&1'
ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root")


class TooLarge(StageError):
    """A file of the guest has more bytes than are read of it."""


class GuestFiles:
    """The mounted guest's files; paths are the guest's, and links are followed inside the guest only.

    guestfs resolves paths in a chroot for the calls used here. It does not for ``cp``, ``mv`` and ``mount``, so
    those are not used on the guest's paths.

    :param handle: the guestfs handle, the guest's file systems mounted
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def read(self, path: str, limit: int = TEXT_LIMIT) -> bytes | None:
        """Read a file; None where there is no regular file, such as a FIFO that would never end.

        :raises TooLarge: when it has more than ``limit`` bytes
        :raises StageError: when it is a link to a file that only its owner may read
        """
        if not self.handle.is_file(path, followsymlinks=True):
            return None
        status = self.handle.lstatns(path)
        if stat.S_ISLNK(status["st_mode"]):
            status = self._status_of_target(path)
        found: int = status["st_size"]
        if found > limit:
            raise TooLarge(f"{path} in the guest: found {found} bytes, expected at most {limit}")
        return self._content(path, found)

    def _status_of_target(self, path: str) -> dict[str, int]:
        """Look where a link leads. What is read of a configuration goes into reports, and may be written again.

        A link to a secret, /etc/fstab -> /etc/shadow, would be shown or changed for a configuration that it is not.
        A boot loader's own file is none, though it may be closed for its password: RHEL 6 has menu.lst -> grub.conf.
        """
        status: dict[str, int] = self.handle.statns(path)
        target = self.real_path(path)
        if not status["st_mode"] & stat.S_IROTH and not (
            path.startswith(BOOT_LOADER) and target.startswith(BOOT_LOADER)
        ):
            raise StageError(
                f"{path} in the guest: found a link to {target}, which not everybody may read; expected "
                "a configuration file: make it a file of its own in the source VM"
            )
        return status

    def _content(self, path: str, count: int) -> bytes:
        """Read in one message where it fits: under TCG a download takes ten times as long as a call."""
        content: bytes = self.handle.pread(path, count, 0) if 0 < count <= MESSAGE else self.handle.read_file(path)
        return content

    def read_text(self, path: str, limit: int = TEXT_LIMIT) -> str | None:
        """Read a file as text; bytes that are no UTF-8 survive in it and go back as they were."""
        content = self.read(path, limit)
        return None if content is None else decode(content)

    def exists(self, path: str) -> bool:
        """Whether there is anything under that name, links followed."""
        return bool(self.handle.exists(path))

    def is_file(self, path: str) -> bool:
        """Whether there is a regular file, links followed."""
        return bool(self.handle.is_file(path, followsymlinks=True))

    def is_directory(self, path: str) -> bool:
        """Whether there is a directory, links followed."""
        return bool(self.handle.is_dir(path, followsymlinks=True))

    def names(self, directory: str, pattern: str = ".*") -> list[str]:
        """List the names in a directory that match wholly, sorted; none where there is no directory.

        :raises StageError: when a name is no UTF-8, which guestfs' Python binding cannot give
        """
        if not self.is_directory(directory):
            return []
        try:
            found = self.handle.ls(directory)
        except UnicodeError as fault:
            raise StageError(f"{directory} in the guest: found a name that is no UTF-8, expected UTF-8") from fault
        return sorted(name for name in found if re.fullmatch(pattern, name, re.DOTALL))

    def real_path(self, path: str) -> str:
        """Follow all links of a path that exists, inside the guest."""
        return str(self.handle.realpath(path))

    def first(self, paths: Sequence[str]) -> str | None:
        """Find the first of some paths that is a regular file."""
        return next((path for path in paths if self.is_file(path)), None)

    def program(self, *names: str) -> str | None:
        """Find a program in the guest by its possible names."""
        folders = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
        return self.first([f"{folder}/{name}" for name in names for folder in folders])

    def run(self, arguments: Sequence[str], environment: Sequence[str] = ()) -> str:
        """Run a program of the guest in the guest's file system; what it printed on both outputs.

        :param environment: ``NAME=value``, besides :data:`ENVIRONMENT`
        :raises StageError: when it failed, with the end of what it said
        """
        folder = self.handle.mkdtemp("/tmp/hyperflow-XXXXXX")  # noqa: S108 - the guest's; mkdtemp is what makes it safe
        output = f"{folder}/output"
        variables = (*ENVIRONMENT, *environment)
        failure: Exception | None = None
        try:
            self.handle.command(["env", "-i", *variables, "/bin/sh", "-c", RUN, "sh", output, *arguments])
        except RuntimeError as fault:
            failure = fault
        said = decode(self.read(output, OUTPUT_LIMIT) or b"")
        self.handle.rm_rf(folder)
        if failure is not None:
            raise StageError(f"{arguments[0]} in the guest failed: {said.strip()[-SHOWN:] or failure}") from failure
        return said


def decode(content: bytes) -> str:
    """Make text of bytes of unknown encoding; :func:`encode` gives the same bytes back."""
    return content.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Make the bytes of a text that :func:`decode` made."""
    return text.encode("utf-8", "surrogateescape")


def printable(text: str) -> str:
    """Make a text fit for JSON and a person: bytes that are no UTF-8 are shown as ``\\xNN``."""
    return encode(text).decode("utf-8", "backslashreplace")
