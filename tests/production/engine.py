"""A Docker engine of the test's own, from Debian's packages: its files, socket and processes end with it."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from lab import processes

CLIENT = "/usr/bin/docker"  # Debian's: another one that is first on the PATH may be too new for its engine
START_LIMIT = 60.0  # seconds; 2 s where it was measured


@dataclass(frozen=True)
class Engine:
    """An engine that runs.

    :param folder: holds all of its files
    """

    folder: Path
    server: processes.Server

    @property
    def environment(self) -> dict[str, str]:
        """What ``docker`` and ``docker-compose`` need to talk to this engine and no other."""
        return {**os.environ, "DOCKER_HOST": f"unix://{self.folder}/docker.sock", "DOCKER_BUILDKIT": "0"}

    def docker(self, *arguments: str, limit: float = 600.0) -> str:
        """Run ``docker``; what it printed.

        :raises RuntimeError: it failed; with the end of what it said
        """
        return run([CLIENT, *arguments], self.environment, limit)


def run(command: list[str], environment: dict[str, str], limit: float) -> str:
    """Run a program to its end; what it printed.

    :param limit: seconds
    :raises RuntimeError: it failed; with the end of what it said
    """
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def start(folder: Path) -> Engine:
    """Start an engine that leaves the machine's own network as it is.

    No docker0, no rules in iptables, no forwarding: containers of a project reach each other over the bridge that
    docker-compose makes and removes, and nobody else. What is built gets the machine's network (``--network host``).

    :param folder: for all of its files; must allow overlay2, which a tmpfs or an overlay does not
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        "/usr/sbin/dockerd",
        *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
        *("--host", f"unix://{folder}/docker.sock", "--pidfile", str(folder / "dockerd.pid")),
        *("--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
    ]
    log = folder / "dockerd.log"
    engine = Engine(folder, processes.start("dockerd", command, log, dict(os.environ)))
    limit = time.monotonic() + START_LIMIT
    while True:
        try:
            engine.docker("version")
        except RuntimeError as fault:
            if engine.server.is_alive() and time.monotonic() < limit:
                time.sleep(0.5)
                continue
            processes.end([engine.server])
            raise RuntimeError(f"dockerd did not come up; see {log}") from fault
        return engine


def stop(engine: Engine) -> None:
    """Remove its containers, end it and remove its mounts; its files stay for their owner to remove."""
    left = engine.docker("ps", "--all", "--quiet").split()
    if left:
        engine.docker("rm", "--force", "--volumes", *left)
    processes.end([engine.server])
    for mount in mounts_below(engine.folder):
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def mounts_below(folder: Path) -> list[Path]:
    """List what is mounted below a folder, the deepest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4]) for line in lines]
    return sorted((point for point in points if folder in point.parents), reverse=True)
