"""A watchdog: kills a process for which there is no hope, where a library waits for it as long as it lives."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable

from hyperflow.kvmhost.stage import StageError

LOOK = 1.0  # seconds between two looks


class Watchdog:
    """A thread that asks whether there is hope, until it is ended or has killed.

    :param hopeless: asked every :data:`LOOK` seconds: the process to kill, and why; None while there is hope
    """

    def __init__(self, hopeless: Callable[[], tuple[int, StageError] | None]) -> None:
        self.killed_for: StageError | None = None
        self._hopeless = hopeless
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Watch no longer."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK):
            if found := self._hopeless():
                pid, self.killed_for = found
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                return
