"""A KVM host behind an Airflow SSH connection."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.ssh.hooks.ssh import SSHHook
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowNotFoundException

from hyperflow.hooks.audit import audit
from hyperflow.hooks.kvmhost_program import pack
from hyperflow.manifest.shown import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    import paramiko
    from airflow.sdk import Connection

PYTHON = "/usr/bin/python3"  # the distribution's own: it is the one that has guestfs and nbd
CHUNK = 32 * 1024  # bytes per read from a channel
ANSWER_LIMIT = 16 * 1024 * 1024  # bytes that a command may say; ours say kilobytes
SAID_LIMIT = 500  # characters of a command's last line in an error
COMMAND_LIMIT = 120.0  # seconds for a command that takes some 0.2 s; a job that is ended may take 15 s to die
STAGE_LIMIT = 600.0  # seconds for a stage that is waited for: a check, a report, a cleanup
# What a connection's extra may say for a host's key not to be verified, by the task or by its trigger.
UNVERIFIED = {
    "no_host_key_check": "true",
    "ignore_hostkey_verification": "true",
    "allow_host_key_change": "true",
    "known_hosts": "none",
}
NO_KEY = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR)  # others of a key file may pass
KEY_UNKNOWN = "not found in known_hosts"  # as paramiko says it


class KvmHostError(AirflowException):
    """The host could not be reached or did not answer as a host of Hyperflow does; trying again may help."""


class KvmHostAway(KvmHostError):
    """No connection to the host, or one that was lost: it may be off, or restart."""


class KvmHostRefused(AirflowFailException):
    """The host is not the one the connection means, or does not let us in; trying again is useless."""


class KvmHostHook(SSHHook):
    """Runs Hyperflow's host program on a KVM host.

    The host's key is verified (``host_key`` in the connection's extra, or known_hosts); there is no way to turn
    that off here.

    :param ssh_conn_id: the connection of the host
    :param directory: folder on the host that holds the program and the jobs, ``STAGING/.hyperflow``
    :raises KvmHostRefused: a field of the connection cannot be used, or says that the key is not to be verified
    :raises AirflowNotFoundException: there is no such connection
    """

    def __init__(self, *, ssh_conn_id: str, directory: str) -> None:
        import paramiko

        try:
            super().__init__(ssh_conn_id=ssh_conn_id, conn_timeout=20, conn_retry_attempts=3)
        except (AirflowNotFoundException, KvmHostRefused):
            raise  # Airflow finds none also when its API server does not answer, so another try may help
        except (ValueError, TypeError, AttributeError, AirflowException, paramiko.SSHException) as fault:
            raise KvmHostRefused(
                f"connection {ssh_conn_id}: one of its fields cannot be used ({shown(str(fault))}); a host_key is a "
                "type and a key, as ssh-ed25519 AAAA..., without the host's name that ssh-keyscan writes before them"
            ) from fault
        self.directory = directory

    @classmethod
    def get_connection(cls, conn_id: str) -> Connection:
        """Look a connection up.

        :raises KvmHostRefused: it says that the host's key is not to be verified
        """
        connection = super().get_connection(conn_id)
        extra = connection.extra_dejson
        for name, value in UNVERIFIED.items():
            if str(extra.get(name, "")).lower() == value:
                raise KvmHostRefused(
                    f"connection {conn_id}: found {name}, expected host_key or known_hosts: "
                    "Hyperflow sends tickets and disks to this host only when it knows that it is this host"
                )
        return connection

    @property
    def program(self) -> str:
        """Path of the program on the host."""
        return f"{self.directory}/bin/{pack().name}"

    @contextmanager
    def connected(self) -> Iterator[paramiko.SSHClient]:
        """Open one connection for several commands.

        :raises KvmHostAway: naming the connection, what went wrong and what to look at
        :raises KvmHostRefused: another host key or an unknown one, no admission, or a key_file that cannot be read
        """
        import paramiko

        try:
            client = self.get_conn()
        except paramiko.BadHostKeyException as fault:
            raise KvmHostRefused(
                f"connection {self.ssh_conn_id}: {self.remote_host} showed another host key than the connection "
                f"expects ({fault.key.get_name()} {fault.key.get_base64()}); put the new key into its extra "
                "host_key if you know that the host was set up anew"
            ) from fault
        except paramiko.AuthenticationException as fault:
            raise KvmHostRefused(
                f"connection {self.ssh_conn_id}: {self.username}@{self.remote_host} is not let in ({fault}); see the "
                "connection's login, key_file or private_key, and authorized_keys on the host"
            ) from fault
        except (OSError, paramiko.SSHException, EOFError) as fault:
            raise self._no_session(fault) from fault
        try:
            yield client
        finally:
            client.close()

    def _no_session(self, fault: Exception) -> KvmHostAway | KvmHostRefused:
        """Tell a fault of the connection's own, which paramiko raises as one of the network's, from the network's."""
        if isinstance(fault, OSError) and fault.errno in NO_KEY and fault.filename == self.key_file:
            return KvmHostRefused(
                f"connection {self.ssh_conn_id}: key_file {self.key_file}: found {fault.strerror}, expected a private "
                f"key that this worker's user (uid {os.geteuid()}) can read"
            )
        if KEY_UNKNOWN in str(fault):
            return KvmHostRefused(
                f"connection {self.ssh_conn_id}: the key of {self.remote_host} is not known here: found no host_key in "
                "the connection's extra and none in this worker's known_hosts; put it into the extra"
            )
        return KvmHostAway(
            f"connection {self.ssh_conn_id}: no SSH session with {self.remote_host}:{self.port} ({fault})"
        )

    def run(
        self, client: paramiko.SSHClient, command: list[str], stdin: bytes = b"", limit: float = COMMAND_LIMIT
    ) -> tuple[int, bytes, bytes]:
        """Run a command on the host to its end.

        :param command: program and arguments; quoted here, so that data stays data
        :param limit: seconds after which the connection is given up: one that hangs says nothing for ever
        :return: exit status, standard output, standard error
        :raises KvmHostAway: when the connection ends, or is given up, before the command has ended
        """
        import paramiko

        expired = threading.Event()

        def give_up() -> None:
            expired.set()
            client.close()  # ends every wait below

        begun = time.monotonic()
        watchdog = threading.Timer(limit, give_up)
        watchdog.daemon = True
        watchdog.start()
        reason = ""
        try:
            status, output, errors = self._run(client, command, stdin)
        except (OSError, paramiko.SSHException, EOFError) as fault:
            status, reason = -1, f" ({fault})"
        finally:
            watchdog.cancel()
        what = spoken(command)
        audit(
            *("host", what),
            state="done" if status == 0 else "failed",
            on=self.ssh_conn_id,
            seconds=time.monotonic() - begun,
            exit_status=status if status >= 0 else None,
            said=reason or None,
        )
        if status < 0:
            if expired.is_set():
                reason = f": no answer for {limit:.0f} s"
            raise KvmHostAway(f"connection {self.ssh_conn_id}: lost while {what} ran on {self.remote_host}{reason}")
        return status, output, errors

    def fetch(self, client: paramiko.SSHClient, path: str, limit: int) -> bytes:
        """Read the first ``limit`` bytes of a file on the host.

        :raises KvmHostError: it cannot be read
        """
        status, content, errors = self.run(client, ["/usr/bin/head", "-c", str(limit), "--", path])
        if status != 0:
            said = errors.decode(errors="replace").strip()
            raise KvmHostError(f"connection {self.ssh_conn_id}: {path} cannot be read on {self.remote_host}: {said}")
        return content

    def _run(self, client: paramiko.SSHClient, command: list[str], stdin: bytes) -> tuple[int, bytes, bytes]:
        transport = client.get_transport()
        if transport is None:
            raise EOFError("the SSH session is closed")
        channel = transport.open_session()
        channel.exec_command(shlex.join(command))
        channel.sendall(stdin)
        channel.shutdown_write()
        output, errors = bytearray(), bytearray()
        while piece := channel.recv(CHUNK):
            output += piece
            while channel.recv_stderr_ready():
                errors += channel.recv_stderr(CHUNK)
            _require_short(output, errors)
        while piece := channel.recv_stderr(CHUNK):
            errors += piece
            _require_short(output, errors)
        return channel.recv_exit_status(), bytes(output), bytes(errors)

    def ensure_program(self, client: paramiko.SSHClient) -> str:
        """Put the host program where it belongs, unless a file of that name and content is there.

        :return: its path
        """
        program, path = pack(), self.program
        script = (
            f"set -e; umask 077; mkdir -p {shlex.quote(self.directory)}/bin; "
            f"f={shlex.quote(path)}; "
            f'if ! echo "{program.sha256}  $f" | sha256sum --check --status 2>/dev/null; then '
            'trap \'rm -f "$f.$$"\' EXIT; cat > "$f.$$"; mv "$f.$$" "$f"; '
            f'echo "{program.sha256}  $f" | sha256sum --check --status; '
            "else cat > /dev/null; fi"
        )
        status, _, errors = self.run(client, ["/bin/sh", "-c", script], program.content)
        if status != 0:
            raise KvmHostError(
                f"connection {self.ssh_conn_id}: the host program could not be put at {path} on "
                f"{self.remote_host}: {errors.decode(errors='replace').strip()}"
            )
        return path

    def job(self, client: paramiko.SSHClient, *arguments: str, stdin: bytes = b"") -> dict[str, Any]:
        """Run ``job ...`` of the host program and return its answer."""
        return self._ask(client, "job", *arguments, stdin=stdin)

    def ledger(self, client: paramiko.SSHClient, *arguments: str, request: Any = None) -> dict[str, Any]:
        """Run ``ledger ...`` of the host program and return its answer.

        :param request: for add and done, as JSON on standard input
        """
        arguments = (*arguments, "--directory", self.directory)
        return self._ask(client, "ledger", *arguments, stdin=json.dumps(request).encode())

    def _ask(self, client: paramiko.SSHClient, command: str, *arguments: str, stdin: bytes) -> dict[str, Any]:
        status, output, errors = self.run(client, [PYTHON, self.program, command, *arguments], stdin)
        try:
            answer = json.loads(output.split(b"\n", 1)[0])
        except (ValueError, RecursionError):
            answer = {}
        if status != 0 or not isinstance(answer, dict) or not answer:
            reason = answer.get("error") if isinstance(answer, dict) else None
            raise KvmHostError(
                f"connection {self.ssh_conn_id}: {command} {arguments[0]} on {self.remote_host} failed with exit "
                f"status {status}: {reason or errors.decode(errors='replace').strip()}"
            )
        return answer

    def run_stage(self, stage: str, options: dict[str, Any]) -> dict[str, Any]:
        """Run a short stage and wait for it; its log goes to the task log.

        :return: the stage's result, whether it succeeded or not
        :raises KvmHostError: when the host gave none
        """
        with self.connected() as client:
            program = self.ensure_program(client)
            status, output, errors = self.run(
                client, [PYTHON, program, stage, "--result", "-"], json.dumps(options).encode(), STAGE_LIMIT
            )
        for line in errors.decode(errors="replace").split("\n"):
            if line:
                self.log.info("%s", shown(line))
        try:
            result = json.loads(output)
        except (ValueError, RecursionError):
            result = None
        if not isinstance(result, dict):
            said = errors.decode(errors="replace").rstrip().rpartition("\n")[2]
            raise KvmHostError(
                f"connection {self.ssh_conn_id}: stage {stage} on {self.remote_host} ended with exit status "
                f"{status} and left no result; last it said: {shown(said[:SAID_LIMIT]) or 'nothing'}"
            )
        return result


def work_of(options: dict[str, Any]) -> str:
    """Digest what a stage is asked for, as ``job start`` takes it: two that differ are not the same work.

    How fast a download may be is no part of it, and changes with the hour.
    """
    asked = {key: value for key, value in options.items() if key != "bandwidth"}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _require_short(*said: bytearray) -> None:
    if sum(map(len, said)) > ANSWER_LIMIT:
        raise OSError(f"it said more than {ANSWER_LIMIT >> 20} MiB, expected an answer")


def spoken(command: list[str]) -> str:
    """Name a command in a few words: our program's by what it is asked, others by their own words."""
    if command[0] == PYTHON:
        return shlex.join(["hyperflow-kvmhost", *command[2:]])
    return "sh: put the host program there" if command[0] == "/bin/sh" else shlex.join(command)
