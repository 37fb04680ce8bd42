"""Servers of the lab: started in a session of their own, found again by a record, ended as a whole."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

END_GRACE = 20.0  # seconds from SIGTERM to SIGKILL, and at most from there until all is gone
# Below those that the kernel gives to connections, and to listeners that ask for any (ip_local_port_range): a server
# takes its port seconds after it was found free, and until then nobody comes to have it by chance.
PORTS = range(20000, 32768)


@dataclass(frozen=True)
class Server:
    """A running server: its process group is all that it started.

    :param name: what it is
    :param pid: of its leader, and so of its group
    :param start_time: of the leader, in ticks since boot: a pid alone may be somebody else's by now
    """

    name: str
    pid: int
    start_time: int

    def is_alive(self) -> bool:
        """Tell whether the leader still runs."""
        return _start_time(self.pid) == self.start_time


def start(name: str, command: list[str], log: Path, environment: dict[str, str]) -> Server:
    """Start a server in a session of its own, its output in ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    started = _start_time(process.pid)
    if started is None:
        raise RuntimeError(f"{name}: ended at once; see {log}")
    return Server(name, process.pid, started)


def end(servers: list[Server]) -> None:
    """End the servers' whole process groups: SIGTERM, and SIGKILL for what is left after a while.

    They are gone then, also what was killed, which takes a moment: their files are removed next, or their port taken.
    """
    for server in servers:
        if server.is_alive():
            _signal_group(server.pid, signal.SIGTERM)
    _wait_until_gone(servers)
    for server in servers:
        kill(server)
    _wait_until_gone(servers)


def kill(server: Server) -> None:
    """Kill -9 what is left of a server's process group, whether its leader lives or not."""
    if _left_of(server):
        _signal_group(server.pid, signal.SIGKILL)


def _wait_until_gone(servers: list[Server]) -> None:
    limit = time.monotonic() + END_GRACE
    while any(_left_of(server) for server in servers) and time.monotonic() < limit:
        time.sleep(0.1)
        for server in servers:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(server.pid, os.WNOHANG)


def _left_of(server: Server) -> list[int]:
    """List what lives of a server's session; nothing when the leader's number is another process's by now.

    The kernel gives it to nobody while anything of the session is left, and soon after where it has few numbers.
    """
    return _members(server.pid) if _start_time(server.pid) in (None, server.start_time) else []


def save(path: Path, servers: list[Server]) -> None:
    """Record servers, so that another process can end them."""
    path.write_text(json.dumps([asdict(server) for server in servers], indent=2))


def load(path: Path) -> list[Server]:
    """Read the record of :func:`save`; empty where there is none."""
    if not path.exists():
        return []
    return [Server(**record) for record in json.loads(path.read_text())]


def free_port() -> int:
    """Find a TCP port on loopback that nobody has, one of :data:`PORTS`."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _members(session: int) -> list[int]:
    """List the processes of a session that are not zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def _start_time(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def marked(mark: bytes) -> list[int]:
    """List the processes with a variable in their environment that begins so, such as ``HYPERFLOW_RUN=DAG/``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if any(one.startswith(mark) for one in (folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
    return found


def end_marked(mark: bytes) -> None:
    """Kill them: jobs on a host outlive whoever asked for them. They are gone then, as after :func:`end`."""
    limit = time.monotonic() + END_GRACE
    while (left := marked(mark)) and time.monotonic() < limit:
        for pid in left:  # each time: one may have started another before its end
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
