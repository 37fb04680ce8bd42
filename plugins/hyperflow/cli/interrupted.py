"""What a command undoes when a person ends it is undone as well when its terminal is closed or it is sent SIGTERM."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

AS_CTRL_C = (signal.SIGHUP, signal.SIGTERM)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Have SIGHUP and SIGTERM raise KeyboardInterrupt meanwhile, as Ctrl-C does; what nohup ignores stays ignored."""
    before = {number: signal.getsignal(number) for number in AS_CTRL_C}
    taken = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
