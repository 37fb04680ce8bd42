"""A lock of a file that is waited for, but not for ever."""

from __future__ import annotations

import fcntl
import time

PAUSE = 0.02  # seconds between two tries


def take(lock: int, until: float) -> bool:
    """Lock a file for oneself, as flock(2) does.

    :param lock: descriptor of the file
    :param until: when to give up, by the monotonic clock; tried once in any case
    :return: whether it was had
    """
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
        time.sleep(PAUSE)
