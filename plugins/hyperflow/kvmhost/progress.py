"""Progress of long work, as lines that a person reads and a program can parse."""

from __future__ import annotations

import threading
import time
from typing import Callable

INTERVAL = 5.0  # seconds between two lines in the log


class Progress:
    """Counts bytes done and says, every few seconds, how far the work is.

    A line reads ``progress: convert disk-0: 1.2 GiB of 4.0 GiB (30 %), 182.0 MiB/s, 15 s left``. Safe to
    advance from several threads.

    :param what: what is being done, in a few words
    :param total: bytes in all; 0 when nobody knows
    :param log: takes one line
    """

    def __init__(self, what: str, total: int, log: Callable[[str], None]) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self.note = ""  # what else every line says, such as a limit in force
        self._log = log
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._last = self._started

    def advance(self, count: int) -> None:
        """Add ``count`` bytes to what is done."""
        with self._lock:
            self.done += count
            now = time.monotonic()
            if now - self._last < INTERVAL:
                return
            self._last = now
            line = self._line(now)
        self._log(line)

    def finish(self) -> None:
        """Say the last line: all that was done, and at which rate."""
        with self._lock:
            line = self._line(time.monotonic())
        self._log(line)

    def _line(self, now: float) -> str:
        elapsed = max(now - self._started, 0.001)
        rate = self.done / elapsed
        text = f"progress: {self.what}: {size(self.done)}"
        if self.total:
            text += f" of {size(self.total)} ({100 * self.done // self.total} %)"
        text += f", {size(rate)}/s"
        if self.total > self.done and rate > 0:
            text += f", {duration((self.total - self.done) / rate)} left"
        return f"{text}, {self.note}" if self.note else text


def size(count: float) -> str:
    """Write a number of bytes for a person: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Write seconds for a person: ``2 h 05 min``, ``3 min 20 s``, ``15 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"
