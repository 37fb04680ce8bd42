"""What is wrong with a host's connection is said as that, and not as a host that is off: a real SSH server."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import paramiko
import pytest
from airflow.sdk.exceptions import AirflowNotFoundException
from hyperflow.errors.catalogue import find
from hyperflow.hooks.kvmhost import KvmHostAway, KvmHostError, KvmHostHook, KvmHostRefused

CONNECTION = "kvm01"


class Server:
    """An SSH server on loopback that shows its key and lets nobody in."""

    def __init__(self) -> None:
        self.key = paramiko.ECDSAKey.generate()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.transports: list[paramiko.Transport] = []
        Thread(target=self._serve, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.listener.getsockname()[1])

    @property
    def host_key(self) -> str:
        """As a connection's extra names it."""
        return f"{self.key.get_name()} {self.key.get_base64()}"

    def _serve(self) -> None:
        while True:
            try:
                transport = paramiko.Transport(self.listener.accept()[0])
            except OSError:
                return  # the test is over
            transport.add_server_key(self.key)
            self.transports.append(transport)
            # An event, so that it is not waited for: a client that hangs up at once would end this thread.
            transport.start_server(event=Event(), server=paramiko.ServerInterface())

    def end(self) -> None:
        """End it and its sessions."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for transport in self.transports:
            transport.close()


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.end()


def hook(monkeypatch: pytest.MonkeyPatch, server: Server, **extra: Any) -> KvmHostHook:
    port = server.port
    connection = {"conn_type": "ssh", "host": "127.0.0.1", "port": port, "login": "root", "extra": extra}
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONNECTION.upper()}", json.dumps(connection))
    made = KvmHostHook(ssh_conn_id=CONNECTION, directory="/var/lib/hyperflow/.hyperflow")
    made.conn_retry_attempts = 1
    return made


def code(message: str) -> str:
    known = find(message)
    assert known is not None, message
    return known.code


def test_a_key_file_that_cannot_be_read_is_no_host_that_is_away(
    monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path
) -> None:
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        host = hook(monkeypatch, server, host_key=server.host_key, key_file=str(path))
        with pytest.raises(KvmHostRefused, match=f"connection kvm01: key_file {path}: found {reason}") as fault:
            host.connected().__enter__()
        assert code(str(fault.value)) == "HF-HOST-030"


def test_a_fault_of_a_key_file_that_may_pass_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path
) -> None:
    host = hook(monkeypatch, server, host_key=server.host_key, key_file=str(tmp_path / "key"))
    for number in (errno.ESTALE, errno.EMFILE, errno.EIO):
        assert isinstance(host._no_session(OSError(number, os.strerror(number), str(tmp_path / "key"))), KvmHostAway)


def test_a_host_whose_key_nobody_knows_is_refused_with_the_field_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # has no known_hosts
    host = hook(monkeypatch, server, key_file=str(tmp_path / "key"))
    with pytest.raises(KvmHostRefused, match="found no host_key in the connection's extra") as fault:
        host.connected().__enter__()
    assert code(str(fault.value)) == "HF-HOST-032"


@pytest.mark.parametrize(
    "extra",
    [
        {"no_host_key_check": True},
        {"ignore_hostkey_verification": "true"},
        {"allow_host_key_change": "true"},
        {"known_hosts": "none"},
    ],
)
def test_that_the_hosts_key_is_not_verified_cannot_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, server: Server, extra: dict[str, Any]
) -> None:
    told = f"connection kvm01: found {next(iter(extra))}, expected host_key or known_hosts"
    with pytest.raises(KvmHostRefused, match=told) as fault:
        hook(monkeypatch, server, **extra)
    assert code(str(fault.value)) == "HF-HOST-005"


def test_a_field_that_cannot_be_used_is_refused_by_its_connections_name(
    monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    kind, key = server.host_key.split()
    for extra in (
        {"host_key": f"127.0.0.1 {kind} {key}"},  # as ssh-keyscan writes it
        {"host_key": f"{kind} {key[:50]}"},
        {"host_key": f"{kind} {key[:49]}"},
        {"host_key": f"{kind} {key[:40]}"},
        {"host_key": f"ssh-rsa {key}"},
        {"host_key": 5},
        {"private_key": "of one line"},
    ):
        with pytest.raises(KvmHostRefused, match="connection kvm01: one of its fields cannot be used") as fault:
            hook(monkeypatch, server, **extra)
        assert str(fault.value).isprintable()
        assert code(str(fault.value)) == "HF-HOST-031"


def test_a_connection_that_airflow_does_not_find_may_be_there_at_the_next_try() -> None:
    with pytest.raises(AirflowNotFoundException) as fault:
        KvmHostHook(ssh_conn_id="kvm02", directory="/var/lib/hyperflow/.hyperflow")
    assert code(str(fault.value)) == "HF-RUN-008"


@pytest.mark.parametrize(
    ("status", "said", "known"),
    [
        (1, "python: found 3.6, expected 3.9 or newer\n", "HF-HOST-012"),
        (127, "bash: /usr/bin/python3: No such file or directory\n", "HF-HOST-008"),
        (-9, "looking for tools\nlooking \x1b[2Jat space\n", "HF-HOST-008"),
        (-9, "", "HF-HOST-008"),
    ],
)
def test_a_stage_without_a_result_is_told_with_the_last_that_it_said(
    monkeypatch: pytest.MonkeyPatch, server: Server, status: int, said: str, known: str
) -> None:
    host = hook(monkeypatch, server, host_key=server.host_key)
    monkeypatch.setattr(host, "connected", contextlib.nullcontext)
    monkeypatch.setattr(host, "ensure_program", lambda _client: "/program")
    monkeypatch.setattr(host, "run", lambda *_: (status, b"", said.encode()))
    with pytest.raises(KvmHostError, match="left no result") as fault:
        host.run_stage("check", {})
    last = said.replace("\x1b", "\\x1b").strip().split("\n")[-1] or "nothing"
    assert str(fault.value).endswith(f"exit status {status} and left no result; last it said: {last}")
    assert code(str(fault.value)) == known
