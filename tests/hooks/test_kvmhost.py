"""What is wrong with a host's connection is said as that, and not as a host that is off: a real SSH server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import paramiko
import pytest
from hyperflow.errors.catalogue import find
from hyperflow.hooks.kvmhost import KvmHostHook, KvmHostRefused

CONNECTION = "kvm01"


class Server:
    """An SSH server on loopback that shows its key and lets nobody in."""

    def __init__(self) -> None:
        self.key = paramiko.ECDSAKey.generate()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.transports: list[paramiko.Transport] = []
        Thread(target=self._serve, daemon=True).start()

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
            transport.start_server(server=paramiko.ServerInterface())
            self.transports.append(transport)

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
    port = server.listener.getsockname()[1]
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
