"""A network of a host's own: a namespace with an sshd in it, to and from which packets can be dropped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OURS, THEIRS = "198.51.100.1", "198.51.100.2"  # of a block that is given to nobody (RFC 5737)
PORT = 22
LIMIT = 30.0  # seconds to come up


class Namespace:
    """A network namespace at the other end of a pair of interfaces.

    :ivar name: its name, and that of this end's interface
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def drop(self) -> None:
        """Drop every packet that comes in or goes out: nobody is told, connections just hang."""
        for chain in ("INPUT", "OUTPUT"):
            self._inside("iptables", "--wait", "--insert", chain, "--jump", "DROP")

    def let_pass(self) -> None:
        """Drop nothing any more."""
        self._inside("iptables", "--wait", "--flush")

    def sshd(self, config: Path) -> subprocess.Popen[bytes]:
        """Start an sshd in it, and wait until it listens.

        :param config: of an sshd that listens elsewhere
        """
        there = config.with_name("namespace_sshd_config")
        lines = [line for line in config.read_text().splitlines() if line.split()[0] not in ("ListenAddress", "Port")]
        there.write_text("\n".join([*lines, f"ListenAddress {THEIRS}", f"Port {PORT}", ""]))
        command = ["ip", "netns", "exec", self.name, "/usr/sbin/sshd", "-D", "-e", "-f", str(there)]
        with config.with_name("namespace_sshd.log").open("wb") as log:
            server = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        limit = time.monotonic() + LIMIT
        while f"{THEIRS}:{PORT}" not in self._inside("ss", "--listening", "--tcp", "--numeric"):
            assert server.poll() is None, config.with_name("namespace_sshd.log").read_text()
            assert time.monotonic() < limit, "sshd did not come up"
            time.sleep(0.1)
        return server

    def connections(self) -> list[str]:
        """What this machine takes for connections to it that live."""
        command = ["ss", "--no-header", "--tcp", "--numeric", "state", "established", "dst", THEIRS]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    def processes(self) -> list[int]:
        """What runs in it."""
        told = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in told.stdout.split()]

    def _inside(self, *command: str) -> str:
        whole = ["ip", "netns", "exec", self.name, *command]
        return subprocess.run(whole, capture_output=True, text=True, check=True).stdout


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Make a namespace that this machine reaches, and remove it with all that runs in it."""
    made = Namespace(f"hf{os.getpid()}")
    _ip("netns", "add", made.name)
    try:
        _ip("link", "add", made.name, "type", "veth", "peer", "name", "eth0", "netns", made.name)
        _ip("address", "add", f"{OURS}/30", "dev", made.name)
        _ip("link", "set", made.name, "up")
        for device in ("lo", "eth0"):
            _ip("-n", made.name, "link", "set", device, "up")
        _ip("-n", made.name, "address", "add", f"{THEIRS}/30", "dev", "eth0")
        yield made
    finally:
        for pid in made.processes():
            with contextlib.suppress(ProcessLookupError):  # a session whose client has gone ends by itself
                os.kill(pid, signal.SIGKILL)
        # The interfaces first, if it came so far: with the namespace they would go only some time later.
        subprocess.run(["ip", "link", "delete", made.name], check=False, capture_output=True)
        _ip("netns", "delete", made.name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
