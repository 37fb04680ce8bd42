"""A lock of a file that is waited for, but not for ever; the host program, which is sent alone, has one of its own."""

from __future__ import annotations

import fcntl
import time

PAUSE = 0.02  # seconds between two tries


def take(lock: int, seconds: float) -> bool:
    """Lock a file for oneself, as flock(2) does. Who has it for long was stopped, has a disk that does not answer, or
    was on a machine that died without its NFS server having seen it.

    :param lock: descriptor of the file
    :param seconds: how long to wait; tried once in any case
    :return: whether it was had
    """
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
        time.sleep(PAUSE)
