"""QEMU's monitor: a QEMU that is slow is waited for, and one that says nothing is not waited for without end."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hyperflow.kvmhost import qmp
from hyperflow.kvmhost.qmp import Qmp, QmpError

SLOW = 60.0  # seconds that a QEMU of a busy host may take


class Clock:
    """A clock that another thread puts on."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def monitor() -> Iterator[tuple[Qmp, socket.socket]]:
    """A monitor that has greeted, and QEMU's end of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b'{"QMP": {}}\n{"return": {}}\n')
        yield Qmp(ours), theirs


def test_a_slow_qemu_is_waited_for(monitor: tuple[Qmp, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = monitor
    clock = Clock()
    monkeypatch.setattr(qmp, "time", clock)
    theirs.recv(65536)  # what it was asked for at the beginning

    def answer() -> None:
        assert json.loads(theirs.recv(65536))["execute"] == "query-status"
        clock.now += SLOW
        theirs.sendall(b'{"return": ')
        time.sleep(0.5)  # until that was read, and a look at the clock taken
        theirs.sendall(b'{"status": "running"}}\n')

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    assert ours.execute("query-status") == {"status": "running"}
    thread.join()


def test_one_that_says_nothing_is_not_waited_for(monitor: tuple[Qmp, socket.socket]) -> None:
    with pytest.raises(QmpError, match="QEMU does not answer on its monitor"):
        monitor[0].execute("query-status", limit=0.2)
