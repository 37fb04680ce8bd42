"""The lab's KVM host: reached over SSH, with libvirt, and gone when it is stopped."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import kvmhost

pytestmark = pytest.mark.lab


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "kvmhost"
    kvmhost.stop(tmp_path / "kvmhost")


def ssh(host: kvmhost.KvmHost, known_hosts: Path, command: str, key: str = "") -> subprocess.CompletedProcess[str]:
    known_hosts.write_text(f"[{host.ssh_host}]:{host.ssh_port} {host.host_key}\n")
    return subprocess.run(
        [
            *("ssh", "-F", "none", "-o", f"UserKnownHostsFile={known_hosts}", "-o", "StrictHostKeyChecking=yes"),
            *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", key or host.key_file),
            *("-p", str(host.ssh_port), f"{host.ssh_user}@{host.ssh_host}", command),
        ],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_the_host_lets_its_own_key_in_and_has_libvirt_with_a_network(state: Path, tmp_path: Path) -> None:
    host = kvmhost.start(state)

    answer = ssh(host, tmp_path / "known_hosts", f"virsh -q -c {host.libvirt_uri} net-list --all --name")

    assert answer.returncode == 0, answer.stderr
    assert host.network in answer.stdout.split()
    assert kvmhost.status(state) == {"sshd": True, "libvirt": True, "network": True}
    assert json.loads((state / "kvmhost.json").read_text())["ssh_port"] == host.ssh_port


def test_another_key_is_not_let_in(state: Path, tmp_path: Path) -> None:
    host = kvmhost.start(state)
    stranger = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(stranger)], check=True)

    answer = ssh(host, tmp_path / "known_hosts", "true", key=str(stranger))

    assert "Permission denied" in answer.stderr


def test_a_second_start_finds_the_first(state: Path) -> None:
    assert kvmhost.start(state) == kvmhost.start(state)


def test_stop_ends_what_was_started_and_leaves_a_libvirt_that_was_there(state: Path, tmp_path: Path) -> None:
    first = kvmhost.start(tmp_path / "first")
    try:
        second = kvmhost.start(state)
        assert [one["name"] for one in second.started_by_us["servers"]] == ["sshd"]
        assert second.started_by_us["networks"] == []

        kvmhost.stop(state)

        assert kvmhost.running(state) is None
        assert ssh(second, tmp_path / "known_hosts", "true").returncode == 255
        assert kvmhost.running(tmp_path / "first") == first
    finally:
        kvmhost.stop(tmp_path / "first")


def test_a_host_that_was_stopped_comes_back_at_its_port_with_its_keys(state: Path) -> None:
    first = kvmhost.start(state)
    kvmhost.stop(state)

    again = kvmhost.start(state)

    assert (again.ssh_port, again.host_key, again.key_file) == (first.ssh_port, first.host_key, first.key_file)
