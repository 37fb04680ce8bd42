"""How fast the downloads of this host may be, all together: a token bucket that the jobs share through a small file.

Every job that has a limit debits what it has received, and sleeps until the bucket has paid for it before it reads on.
TCP does the rest: what is not read is not sent. The bucket is one number, the moment up to which everything received is
paid for; a job moves it on by ``bytes / rate`` and waits for it. So jobs are served in the order in which they ask, in
small pieces, which gives each an equal part, and what one does not need the others have.

Each job also writes down the rate it asks for; the lowest of those that asked in the last seconds holds for all of
them. A job without a limit never comes here. The file is no database: whatever is wrong with it, it is made anew,
and all that is lost is a fraction of a second of bookkeeping.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import platform
import re
import stat
import struct
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from hyperflow.kvmhost.progress import duration, size
from hyperflow.kvmhost.stage import BadRequest, StageError

Read = Callable[[memoryview], int]  # fills a buffer, like readinto(); 0 at the end

SECOND = 1_000_000_000  # of the bucket's clock, which counts nanoseconds
BURST = SECOND // 10  # what an idle bucket saves up, as time at the rate: it pays for sleeping too long
PIECES = 100  # a second, for all jobs together: small enough to be fair, few enough to cost nothing
SMALLEST = 16 << 10  # bytes of a piece; a TLS record has as many
FRESH = 5 * SECOND  # a job that has not asked for longer is dead, or waits for its server
RENEW = 1.0  # seconds that a job sleeps before it says again that it is there
LONGEST = 60 * SECOND  # no job waits longer for its piece; a bucket that says so is damaged
FASTEST = 10**12  # bytes a second, more than any host has
LOCK_LIMIT = 30.0  # seconds to wait for a lock that is held for microseconds

WITHOUT = "the bandwidth limit cannot be kept without this file: let it be made, or take the limit out of the plan"

MAGIC = b"HFBUCKT1"
_HEAD = struct.Struct("<8s36sqI")  # magic, boot id, moment that is paid for, number of jobs
_ASK = struct.Struct("<QQq")  # job, bytes a second, when it asked
_SUM = struct.Struct("<I")  # CRC-32 of all before it
ASKS = 512  # jobs, at most; the oldest go
FILE_LIMIT = _HEAD.size + ASKS * _ASK.size + _SUM.size


@dataclass(frozen=True)
class RateFrom:
    """A rate that holds from a moment on.

    :param start: seconds since 1970, by the clock of who asks
    :param rate: bytes a second; None for no limit
    """

    start: float
    rate: Optional[int] = None  # noqa: UP045 - read at run time, by Python 3.9 too


@dataclass(frozen=True)
class Limit:
    """What a job is asked to keep to.

    :param folder: where the bucket of this host lies, the folder that also holds the jobs
    :param rates: one or more, see :func:`check_limit`; the first holds before its start as well
    """

    folder: Path
    rates: list[RateFrom]


@dataclass(frozen=True)
class Taken:
    """What the bucket says to a job that takes from it.

    :param paid: when what was taken will be paid for, on the clock of :func:`time.monotonic_ns`
    :param rate: bytes a second that hold for all jobs at present
    :param remade: what the file held was damaged, or of an earlier start of this host
    """

    paid: int
    rate: int
    remade: bool


@dataclass
class _State:
    paid: int
    asks: dict[int, tuple[int, int]]  # job -> bytes a second, when it asked


class Bucket:
    """The bucket of this host, as one job uses it.

    :param folder: the folder that holds the jobs. Several hosts may share it: each has a file of its own
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"bandwidth.{re.sub('[^A-Za-z0-9._-]', '_', platform.node()) or 'host'}"
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:36].ljust(36)
        self._me = int.from_bytes(os.urandom(8), "little")
        self._file = -1

    def take(self, count: int, rate: int) -> Taken:
        """Debit bytes that were received, and say which rate this job asks for.

        :param count: bytes; 0 to ask only
        :param rate: bytes a second
        :raises StageError: the file cannot be written, something is in its place, or holds its lock
        """
        with self._locked():
            now = time.monotonic_ns()
            state, damaged = self._read(now)
            alive = {job: ask for job, ask in state.asks.items() if now - ask[1] < FRESH and job != self._me}
            state.asks = dict(list(alive.items())[1 - ASKS :])
            state.asks[self._me] = (rate, now)
            lowest = min(asked for asked, _ in state.asks.values())
            state.paid = min(max(state.paid, now - BURST) + count * SECOND // lowest, now + LONGEST)
            self._write(state)
        return Taken(state.paid, lowest, damaged)

    def leave(self) -> None:
        """Ask for nothing any more, so that the others need not wait until this job is forgotten.

        :raises StageError: as :meth:`take`
        """
        with self._locked():
            state, _ = self._read(time.monotonic_ns())
            if state.asks.pop(self._me, None) is not None:
                self._write(state)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file's lock; a job that is killed with it gives it back by dying."""
        try:
            self._lock()
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError as fault:  # told from a fault of the connection
            raise StageError(f"{self.path}: {fault.strerror}; {WITHOUT}") from fault

    def _lock(self) -> None:
        until = time.monotonic() + LOCK_LIMIT
        while True:
            if self._file < 0:
                self._file = _open(self.path)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise StageError(
                        f"{self.path}: another process holds its lock for more than {LOCK_LIMIT:.0f} s; "
                        "see which (fuser), end it, then clear the task"
                    ) from None
                time.sleep(0.0005)
                continue
            if _is_same(self._file, self.path):
                return
            self.close()  # it was removed or replaced: the other jobs have another one now

    def _read(self, now: int) -> tuple[_State, bool]:
        """Read the bucket: an empty one, and True, where what is there makes no sense."""
        data = os.pread(self._file, FILE_LIMIT, 0)
        state = self._parse(data, now)
        if state is not None:
            return state, False
        os.ftruncate(self._file, 0)
        return _State(now, {}), bool(data)

    def _parse(self, data: bytes, now: int) -> _State | None:
        if len(data) < _HEAD.size:
            return None
        magic, boot, paid, count = _HEAD.unpack_from(data)
        end = _HEAD.size + count * _ASK.size
        if magic != MAGIC or boot != self._boot or count > ASKS or len(data) < end + _SUM.size:
            return None
        if _SUM.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
            return None
        asks = {job: (rate, asked) for job, rate, asked in _ASK.iter_unpack(data[_HEAD.size : end])}
        sound = all(0 < rate <= FASTEST and 0 <= at <= now for rate, at in asks.values())
        return _State(paid, asks) if sound and 0 <= paid <= now + LONGEST else None

    def _write(self, state: _State) -> None:
        asks = b"".join(_ASK.pack(job, *ask) for job, ask in state.asks.items())
        data = _HEAD.pack(MAGIC, self._boot, state.paid, len(state.asks)) + asks
        os.pwrite(self._file, data + _SUM.pack(zlib.crc32(data)), 0)


class Throttle:
    """Holds one job's reading to its limit.

    :param limit: the job's
    :param now: seconds since 1970 when the job was asked for, by the clock of who asks; this host's when None. It is
        looked at once: from then on the time since is counted, so this host's clock may be wrong, and may be set
    :param log: takes a line for the person when the limit in force changes
    :param note: takes what the line of progress says of the limit; "" when there is none at present
    """

    def __init__(
        self, limit: Limit, now: float | None, log: Callable[[str], None], note: Callable[[str], None]
    ) -> None:
        self.seconds = 0.0  # waited for the limit, measured
        self._rates = limit.rates
        self._since = (time.time() if now is None else now) - time.monotonic()
        self._log = log
        self._note = note
        self._bucket = Bucket(limit.folder)
        self._until = 0  # what was received is paid for then
        self._until_change = 0.0  # on the monotonic clock
        self._own: int | None = None
        self._said: tuple[int | None, int | None] | None = None  # own rate and rate in force
        self._in_force: int | None = None

    def reader(self, read: Read) -> Read:
        """Make a function that reads as ``read`` does, as fast as the limit allows.

        It waits before it reads, never between asking the server and its answer: no timeout of the connection sees it.
        """

        def limited(buffer: memoryview) -> int:
            self._follow_plan()
            if self._in_force is None:
                return read(buffer)
            self._wait()
            count = read(buffer[: max(SMALLEST, self._in_force // PIECES)])
            self._take(count)
            return count

        return limited

    def close(self) -> None:
        """Leave the bucket to the others."""
        if self._own is not None:
            with contextlib.suppress(StageError):  # what cannot be written is forgotten after a while
                self._bucket.leave()
        self._bucket.close()

    def _follow_plan(self) -> None:
        """See which rate the plan gives at this moment."""
        now = time.monotonic()
        if now < self._until_change:
            return
        moment = now + self._since
        place = max(bisect_right([each.start for each in self._rates], moment), 1)
        self._until_change = self._rates[place].start - self._since if place < len(self._rates) else float("inf")
        before, self._own = self._own, self._rates[place - 1].rate
        if self._own is not None:
            self._take(0)
            return
        self._in_force = None
        if before is not None:
            self._bucket.leave()
        self._say()

    def _take(self, count: int) -> None:
        assert self._own is not None  # noqa: S101 - there is a limit, or nobody comes here
        taken = self._bucket.take(count, self._own)
        if count:
            self._until = taken.paid
        if taken.remade:
            self._log(f"{self._bucket.path}: was damaged, or of an earlier start of this host; made anew")
        self._in_force = taken.rate
        self._say()

    def _wait(self) -> None:
        """Sleep until all that was received is paid for."""
        while True:
            started = time.monotonic_ns()
            left = self._until - started
            if left <= 0:
                return
            time.sleep(min(left / SECOND, RENEW))
            self.seconds += (time.monotonic_ns() - started) / SECOND
            if left > RENEW * SECOND:
                self._take(0)

    def _say(self) -> None:
        """Tell the person when the limit has changed."""
        if self._said == (self._own, self._in_force):
            return
        self._said = (self._own, self._in_force)
        left = self._until_change - time.monotonic()
        how_long = "" if left == float("inf") else f", for the next {duration(max(left, 0))} by the plan"
        if self._in_force is None or self._own is None:
            self._log(f"bandwidth: no limit{how_long}")
            self._note("")
            return
        line = f"bandwidth: at most {rate_text(self._in_force)} for all downloads on this host together"
        if self._in_force < self._own:
            line += f": another job asks for less than the {rate_text(self._own)} of this one"
        else:
            line += how_long
        self._log(line)
        self._note(f"limited to {size(self._in_force)}/s for the host")


def rate_text(rate: int) -> str:
    """Write a rate for a person, as plans do and as lines of progress do: ``50 MB/s (47.7 MiB/s)``."""
    return f"{rate / 1_000_000:.4g} MB/s ({size(rate)}/s)"


def check_limit(limit: Limit) -> None:
    """Hold a limit to its rules.

    :raises BadRequest: naming the field
    """
    if not limit.rates:
        raise BadRequest("options.bandwidth.rates: found no rate, expected one or more")
    starts = [each.start for each in limit.rates]
    if starts != sorted(starts) or not all(math.isfinite(start) for start in starts):
        raise BadRequest("options.bandwidth.rates: found starts in disorder, expected them ascending")
    for index, each in enumerate(limit.rates):
        if each.rate is not None and not 0 < each.rate <= FASTEST:
            raise BadRequest(
                f"options.bandwidth.rates[{index}].rate: found {each.rate}, expected bytes a second, 1 to {FASTEST}"
            )


def _open(path: Path) -> int:
    """Open the bucket, or make one. What else lies there is removed, and never followed or written to.

    :raises OSError: a folder is in its place, or it cannot be made
    """
    for _ in range(10):  # others may be doing the same
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(path, flags, 0o600)
            found = os.fstat(file)
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink <= 1:
                return file
            os.close(file)
            path.unlink(missing_ok=True)
        except OSError as fault:
            if fault.errno not in (errno.ELOOP, errno.ENXIO):  # a link; a socket
                raise
            path.unlink(missing_ok=True)
    raise OSError(errno.EEXIST, "something puts another file in its place again and again")


def _is_same(file: int, path: Path) -> bool:
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(file))
