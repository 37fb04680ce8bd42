"""The network swallows every packet between Airflow and a host: nobody is told, and nothing of the job is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hyperflow.hooks.kvmhost import KvmHostAway
from hyperflow.triggers import job as trigger_module

from lab import kvmhost
from tests.faults import talking, watching
from tests.faults.namespace import PORT, THEIRS, Namespace, namespace
from tests.faults.sshd import Sshd
from tests.faults.test_ssh import CONNECTION, Host, Program, Reader, wait_for

pytestmark = pytest.mark.lab


@pytest.fixture
def network() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


@pytest.fixture
def host(network: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host whose sshd is in the namespace; the keys are those of one that the lab has started."""
    state = tmp_path / "kvmhost"
    started = kvmhost.start(state)
    network.sshd(state / "sshd_config")
    extra = {"key_file": started.key_file, "host_key": started.host_key}
    connection = {"conn_type": "ssh", "host": THEIRS, "port": PORT, "login": started.ssh_user, "extra": extra}
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONNECTION.upper()}", json.dumps(connection))
    hook = Program(ssh_conn_id=CONNECTION, directory=str(tmp_path / "staging"))
    hook.path = str(talking.pack(tmp_path))
    under_test = Host(Sshd(state, started), hook, tmp_path / "staging/jobs/dag/run/task")
    yield under_test
    for pid in under_test.processes():
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGKILL)
    kvmhost.stop(state)


def test_packets_are_dropped_while_a_stage_talks_and_while_another_is_to_start(
    network: Namespace, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigger_module, "KEEPALIVE", 1)
    monkeypatch.setattr(trigger_module, "COMMAND_TIMEOUT", 15.0)
    monkeypatch.setattr(trigger_module, "RECONNECT_DELAYS", (0.5,))
    started = host.start(60, 6.0)
    reader = Reader(host, started["job"])
    refused = []

    def swallow() -> None:
        wait_for(lambda: b"line 10\n" in (host.task / "log").read_bytes())
        network.drop()
        host.hook.conn_timeout, host.hook.conn_retry_attempts = 2, 1  # nobody answers, however long it asks
        with pytest.raises(KvmHostAway) as fault:
            host.start(1, 0)
        refused.append(str(fault.value))
        wait_for(lambda: not network.connections())
        wait_for(lambda: b"line 59\n" in (host.task / "log").read_bytes())
        network.let_pass()

    event = reader.follow(swallow)

    assert (event["state"], event["exit_status"]) == ("DONE", 0)
    assert reader.lines == talking.lines(60), "the stage went on, and nothing of what it said is lost"
    assert f"no SSH session with {THEIRS}" in refused[0]
    assert host.generations() == ["1"], "one copy, whatever was asked for meanwhile"


def test_packets_are_dropped_before_the_answer_to_a_start_and_the_next_try_attaches(
    network: Namespace, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as beside, monkeypatch.context() as impatient:
        impatient.setattr(Program.run, "__defaults__", (b"", 4.0))
        with watching.start_held(host.task):
            asking = beside.submit(host.start, 40, 6.0)
            wait_for(lambda: watching.waiting_starts(host.task))
            network.drop()
        with pytest.raises(KvmHostAway, match="no answer for 4 s"):
            asking.result()
    network.let_pass()

    again = host.start(40, 6.0)
    event = (reader := Reader(host, again["job"])).follow()

    assert again["attached"] is True
    assert (event["state"], event["exit_status"]) == ("DONE", 0)
    assert reader.lines == talking.lines(40)
    assert host.generations() == ["1"]
