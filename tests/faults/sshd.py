"""A KVM host's sshd that a test stops, kills and changes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from lab import kvmhost, processes

LIMIT = 30.0  # seconds to come up


class Sshd:
    """The sshd of a host that :func:`lab.kvmhost.start` has started, in a test's hands.

    :param state: the host's state folder
    """

    def __init__(self, state: Path, host: kvmhost.KvmHost) -> None:
        self._state = state
        self._port = host.ssh_port
        (record,) = [one for one in host.started_by_us["servers"] if one["name"] == "sshd"]
        self._server = processes.Server(**record)

    def kill(self) -> None:
        """Kill -9 the listener and every connection, as a power cut does."""
        os.kill(self._server.pid, signal.SIGSTOP)  # so that none comes after they are listed
        victims = [self._server.pid, *self.sessions()]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)
        self.wait_until(answers=False)

    def start(self, settings: str = "") -> None:
        """Start it again at the same port.

        :param settings: lines added to its configuration
        """
        config = self._state / "changed_sshd_config"
        config.write_text((self._state / "sshd_config").read_text() + settings)
        program = shutil.which("sshd", path="/usr/sbin:/sbin")
        assert program is not None
        command = [program, "-D", "-e", "-f", str(config)]
        self._server = processes.start("sshd", command, self._state / "sshd.log", dict(os.environ))
        self.wait_until(answers=True)

    def end(self) -> None:
        """End it, whatever a test did with it."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)
        processes.end([self._server])

    def sessions(self) -> list[int]:
        """Processes of the connections: the listener's children."""
        return [pid for pid, parent in _parents() if parent == self._server.pid]

    def wait_until(self, *, answers: bool) -> None:
        """Wait until the port is open, or closed."""
        limit = time.monotonic() + LIMIT
        while True:
            with socket.socket() as client:
                if (client.connect_ex(("127.0.0.1", self._port)) == 0) is answers:
                    return
            assert time.monotonic() < limit
            time.sleep(0.05)


def _parents() -> Iterator[tuple[int, int]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield int(path.parent.name), int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
