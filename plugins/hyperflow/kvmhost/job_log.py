"""The log of a task's jobs on the host: every line once, with its time, however often readers come and go.

One log serves all generations of a task, ``TASK/log``, so that what an ended generation said last is read before what
the next one says first. Each line begins with its time and a space. No two lines have the same time, so time and text
together name a line: a reader that died without a word is replaced by one that starts over, and whoever shows the log
drops the lines that it has twice.

``TASK/delivered`` remembers who read from where to where: the same reader starts over, another one goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from hyperflow.kvmhost.stage import RESERVE, write_atomically

LOG = "log"
FULL = (errno.ENOSPC, errno.EDQUOT)
DELIVERED = "delivered"
CHUNK = 256 * 1024  # bytes of log in one poll
LINE_LIMIT = 16 * 1024  # bytes; what is longer is cut into several lines, so that a chunk holds whole lines
HELD_LIMIT = 1024 * 1024  # bytes kept in memory while the file system is full
APART = timedelta(milliseconds=2)  # Airflow sorts records by whole milliseconds, made of a float
RESERVE_BYTES = 1024 * 1024  # of disk: the log's last lines, a result and an exit status fit


class LogWriter:
    """Writes what a stage says, line by line.

    :param directory: the task's
    :param job: the generation's directory
    :param skew: seconds to add to this host's clock for the reader's
    """

    def __init__(self, directory: Path, job: Path, skew: float) -> None:
        self._file = os.open(directory / LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._job = job
        # Counted on from here by a clock that nobody sets: a host whose time is corrected meanwhile tells no lies.
        self._began = datetime.now(timezone.utc) + timedelta(seconds=skew)
        self._clock = time.monotonic()
        self._last = _last_time(self._file)
        self._partial = b""
        self._held = b""
        self._dropped = 0
        self._end_torn_line()

    def take(self, data: bytes) -> None:
        """Take the next bytes that the stage said."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        while len(self._partial) > LINE_LIMIT:
            lines.append(self._partial[:LINE_LIMIT])
            self._partial = self._partial[LINE_LIMIT:]
        for line in lines:
            for start in range(0, max(len(line), 1), LINE_LIMIT):
                self._hold(line[start : start + LINE_LIMIT])
        self._write()

    def finish(self) -> None:
        """Write what is left; the stage says no more."""
        if self._partial:
            self.take(b"\n")
        if self._dropped:
            self._hold(b"(the disk was full: %d lines of the log are lost)" % self._dropped)
        self._write()
        os.close(self._file)

    def _hold(self, line: bytes) -> None:
        if len(self._held) > HELD_LIMIT:
            self._dropped += 1
            return
        now = self._began + timedelta(seconds=time.monotonic() - self._clock)
        self._last = now if self._last is None else max(now, self._last + APART)
        self._held += self._last.strftime("%Y-%m-%dT%H:%M:%S.%fZ ").encode() + line.rstrip(b"\r") + b"\n"

    def _write(self) -> None:
        """Append what is held; on a full file system, what fits, and the rest with the next line."""
        while self._held:
            try:
                written = os.write(self._file, self._held)
            except OSError as fault:
                if fault.errno not in FULL:
                    raise
                if not free_reserve(self._job):
                    return
            else:
                self._held = self._held[written:]

    def _end_torn_line(self) -> None:
        """End the line that a killed supervisor did not."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._held = b"\n"


@dataclass(frozen=True)
class Delivered:
    """How much of the log was read.

    :param reader: who read last
    :param start: offset at which that reader began
    :param end: offset up to which it has said to have the log
    """

    reader: str
    start: int
    end: int


def read_piece(directory: Path, reader: str, offset: int, *, is_over: bool) -> tuple[bytes, int, bool]:
    """Read the next piece of a task's log for a reader, and remember how far it is.

    :param reader: who asks; a try of a task
    :param offset: bytes that the reader has; -1 for one that has just come: it starts where it started before, or
        where the last one stopped
    :param is_over: nobody writes any more
    :return: whole lines, the offset at which they start, and whether there is more
    """
    offset = _note(directory, reader, offset)
    piece = b""
    with contextlib.suppress(FileNotFoundError), (directory / LOG).open("rb") as file:
        file.seek(offset)
        piece = file.read(CHUNK + 1)
    more = len(piece) > CHUNK
    piece = piece[:CHUNK]
    if more or not is_over:
        piece = piece[: piece.rfind(b"\n") + 1]
    return piece, offset, more


def reserve(job: Path) -> None:
    """Take some disk for what a job must be able to write when nothing else can be written any more.

    :raises OSError: when not even that fits
    """
    descriptor = os.open(job / RESERVE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
    finally:
        os.close(descriptor)


def free_reserve(job: Path) -> bool:
    """Give the reserved disk free; False when that has been done before."""
    try:
        (job / RESERVE).unlink()
    except FileNotFoundError:
        return False
    return True


def _note(directory: Path, reader: str, offset: int) -> int:
    """Remember where a reader is; the offset it reads from."""
    before = _read_note(directory)
    if offset < 0:
        offset = before.start if before.reader == reader else before.end
        after = Delivered(reader, offset, max(offset, before.end))
    else:
        after = Delivered(reader, before.start if before.reader == reader else offset, max(offset, before.end))
    if after != before:
        with full_disk_suppressed():
            write_atomically(directory / DELIVERED, json.dumps(asdict(after)))
    return offset


@contextlib.contextmanager
def full_disk_suppressed() -> Iterator[None]:
    """Do without a mark that does not fit on the disk: it says that something was taken over, which is then redone."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in FULL:
            raise


def _read_note(directory: Path) -> Delivered:
    try:
        return Delivered(**json.loads((directory / DELIVERED).read_text()))
    except FileNotFoundError:
        return Delivered("", 0, 0)


def _last_time(file: int) -> datetime | None:
    """Time of the last line that a log has."""
    size = os.fstat(file).st_size
    tail = os.pread(file, 2 * LINE_LIMIT, max(size - 2 * LINE_LIMIT, 0)).rstrip(b"\n")
    stamp = tail[tail.rfind(b"\n") + 1 :].split(b" ", 1)[0].decode("ascii", "replace")
    try:
        return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return None  # a new log, or a last line that is torn in its first bytes
