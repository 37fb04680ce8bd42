"""The way to the host is cut, hangs, or ends at a host that is not what it was: real sshd, real job, real trigger."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, TaskDeferred
from airflow.utils.log.file_task_handler import _interleave_logs
from hyperflow.hooks.kvmhost import KvmHostError, KvmHostHook
from hyperflow.operators import base as operator_module
from hyperflow.operators.base import HostStageOperator
from hyperflow.triggers import job as trigger_module
from hyperflow.triggers.job import JobTrigger
from structlog.testing import capture_logs

from lab import kvmhost
from tests import own_airflow
from tests.faults import talking, watching
from tests.faults.clock import wrong_clock
from tests.faults.sshd import Sshd

pytestmark = pytest.mark.lab

CONNECTION = "faults_ssh"
OUTAGE = 20.0  # seconds
HOUR = 3600  # seconds
LIMIT = 120.0  # seconds a test waits before it gives up


@dataclass
class Host:
    """A host with the program on it, and the directory of one task."""

    sshd: Sshd
    hook: KvmHostHook
    task: Path

    def start(self, lines: int, seconds: float, *more: str, asked: float | None = None) -> dict[str, Any]:
        """Start a job that talks, as an operator does, or attach to one.

        :param asked: the time it is for the one who asks; None for the host's
        """
        arguments = self.arguments(time.time() if asked is None else asked, *more)
        with self.hook.connected() as client:
            return self.hook.job(client, *arguments, stdin=talking.options(lines, seconds))

    def arguments(self, asked: float, *more: str) -> tuple[str, ...]:
        """What ``job start`` is told."""
        run = f"{self.task.parent.parent.name}/{self.task.parent.name}"
        start = ("start", "--directory", str(self.task), "--stage", talking.STAGE, "--run", run)
        return (*start, "--now", f"{asked:.3f}", *more)

    def processes(self) -> list[int]:
        """The job's processes, of all its generations."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if f"HYPERFLOW_JOB={self.task}/".encode() in (path / "environ").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue  # it has ended
        return found

    def generations(self) -> list[str]:
        """How often a copy was started."""
        return sorted(path.name for path in self.task.iterdir() if path.name.isdigit())


class Program(KvmHostHook):
    """The hook with the talking program."""

    path: str

    @property
    def program(self) -> str:
        """Path of the program on the host."""
        return self.path

    def ensure_program(self, client: Any) -> str:
        """It lies there."""
        return self.path


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    state = tmp_path / "kvmhost"
    started = kvmhost.start(state)
    connection = {
        "conn_type": "ssh",
        "host": started.ssh_host,
        "port": started.ssh_port,
        "login": started.ssh_user,
        "extra": {"key_file": started.key_file, "host_key": started.host_key},
    }
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONNECTION.upper()}", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW_VAR_HYPERFLOW_INSTANCE", "this-airflow")  # signs what its tasks start
    hook = Program(ssh_conn_id=CONNECTION, directory=str(tmp_path / "staging"))
    hook.path = str(talking.pack(tmp_path))
    sshd = Sshd(state, started)
    under_test = Host(sshd, hook, tmp_path / "staging/jobs/dag/run/task")
    yield under_test
    for pid in under_test.processes():
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGKILL)
    sshd.end()
    kvmhost.stop(state)


class Talking(HostStageOperator):
    """A task that runs the talking stage on the host under test."""

    stage = talking.STAGE
    hook: KvmHostHook
    asked: dict[str, Any]

    @property
    def host(self) -> KvmHostHook:  # type: ignore[override] # made by the test
        """The host."""
        return self.hook

    @property
    def settings(self) -> Any:
        """What the task reads of its run."""
        return SimpleNamespace(host_connection=CONNECTION, staging_directory=f"{self.hook.directory}/vm")

    def options(self, context: Any) -> dict[str, Any]:
        """What the stage is told."""
        return self.asked


@dataclass
class Task:
    """A try of a task, and what it did."""

    operator: Talking
    context: dict[str, Any]
    kept: dict[str, Any]
    records: list[Any]

    def perform(self) -> Any:
        """Do the task's work."""
        with capture_logs() as self.records:
            return self.operator.perform(self.context)  # type: ignore[arg-type] # the part of it that is looked at

    @property
    def directory(self) -> Path:
        """The task's directory on the host."""
        return Path(self.operator.hook.directory, ".hyperflow/jobs/dag/run/talk")

    def has_said(self, line: str) -> bool:
        """Whether the stage has come so far."""
        log = self.directory / "log"
        return log.exists() and f"{line}\n".encode() in log.read_bytes()

    @property
    def lines(self) -> list[str]:
        """What the stage said, as the task has logged it."""
        return [record["event"] for record in self.records if "timestamp" in record]


def task(host: Host, lines: int, seconds: float) -> Task:
    """Make a task; its jobs are ended with those of the host under test."""
    kept: dict[str, Any] = {}
    ti = own_airflow.task_instance("dag", "talk")
    ti.xcom_push = lambda key, value: kept.update({key: value})
    operator = Talking(task_id="talk")
    operator.hook, operator.asked = host.hook, json.loads(talking.options(lines, seconds))
    context = {"dag": SimpleNamespace(dag_id="dag"), "run_id": "run", "ti": ti}
    made = Task(operator, context, kept, [])
    host.task = made.directory
    return made


class Reader:
    """A trigger that serves one try of a task, and what it put into the task log."""

    def __init__(self, host: Host, job: str) -> None:
        self.trigger = JobTrigger(ssh_conn_id=CONNECTION, program=host.hook.program, job=job, poll_interval=0.2)
        self.trigger.task_instance = own_airflow.task_instance("dag", "task")
        self.records: list[Any] = []

    def follow(self, *meanwhile: Callable[[], Any]) -> dict[str, Any]:
        """Run the trigger to its event, and what happens meanwhile beside it."""

        async def run() -> list[Any]:
            beside = [asyncio.create_task(asyncio.to_thread(each)) for each in meanwhile]
            events = [event.payload async for event in self.trigger.run()]
            await asyncio.gather(*beside)
            return events

        with capture_logs() as self.records:
            (event,) = asyncio.run(run())
        assert isinstance(event, dict)
        return event

    @property
    def lines(self) -> list[str]:
        """What the stage said, as the trigger has logged it."""
        return [record["event"] for record in self.records if "timestamp" in record]


def wait_for(condition: Callable[[], Any]) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.05)


def test_sshd_is_down_while_a_stage_talks_and_while_another_is_to_start(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigger_module, "RECONNECT_DELAYS", (1.0,))  # no need to wait for the tenth second
    started = host.start(100, OUTAGE * 0.75)
    reader = Reader(host, started["job"])
    refused = []

    def outage() -> None:
        wait_for(lambda: b"line 10\n" in (host.task / "log").read_bytes())
        host.sshd.kill()
        begun = time.monotonic()
        with pytest.raises(KvmHostError) as fault:
            host.start(1, 0)
        refused.append(str(fault.value))
        time.sleep(max(OUTAGE - (time.monotonic() - begun), 0))
        host.sshd.start()

    event = reader.follow(outage)

    assert (event["state"], event["exit_status"]) == ("DONE", 0)
    assert reader.lines == talking.lines(100), "the stage went on, and nothing of what it said is lost"
    assert "no SSH session with 127.0.0.1" in refused[0]
    assert host.start(1, 0)["attached"] is False, "it was collected: the next start is another one's"


def test_a_connection_that_hangs_is_given_up_and_polled_by_another(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger_module, "KEEPALIVE", 1)
    started = host.start(50, 20.0)  # long enough for the first connection to be there, and to hang
    reader = Reader(host, started["job"])
    stopped: list[int] = []

    def hang() -> None:
        wait_for(lambda: reader.lines and host.sshd.sessions())  # what they came by is kept for the next ones
        stopped.extend(host.sshd.sessions())
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):  # that of the start has just ended
                os.kill(pid, signal.SIGSTOP)

    event = reader.follow(hang)

    assert stopped
    assert (event["state"], event["exit_status"]) == ("DONE", 0)
    assert reader.lines == talking.lines(50)


def test_a_start_that_hangs_is_given_up_and_ends_nothing_when_it_comes_late(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = time.time()
    with host.hook.connected() as client, monkeypatch.context() as impatient:
        impatient.setattr(Program.run, "__defaults__", (b"", 2.0))
        wait_for(lambda: len(host.sshd.sessions()) == 1)  # who only looked whether it listens has gone
        (hung,) = host.sshd.sessions()
        os.kill(hung, signal.SIGSTOP)
        with pytest.raises(KvmHostError, match="no answer for 2 s"):
            host.hook.job(client, *host.arguments(before, "--restart"), stdin=talking.options(1, 0))
    second = host.start(30, 5.0, "--restart")
    os.kill(hung, signal.SIGCONT)  # and now the first start arrives
    reader = Reader(host, second["job"])

    event = reader.follow()

    assert (event["state"], event["exit_status"]) == ("DONE", 0)
    assert reader.lines == talking.lines(30)
    assert host.generations() == ["1"]


def test_a_host_that_was_rebooted_has_lost_the_job_and_does_it_again(host: Host, tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text("11111111-2222-3333-4444-555555555555\n")
    rebooted = (
        f"ForceCommand unshare --mount sh -c 'mount --bind {tmp_path}/boot_id /proc/sys/kernel/random/boot_id && "
        'exec sh -c "$SSH_ORIGINAL_COMMAND"\'\n'
    )
    first = host.start(1000, 60.0)
    reader = Reader(host, first["job"])

    def power_cut() -> None:
        wait_for(lambda: b"line 20\n" in (host.task / "log").read_bytes())
        host.sshd.kill()  # first: the reader must not be told of processes that are gone from a host that is up
        supervisor = json.loads((Path(first["job"]) / "job.json").read_text())["pid"]
        for pid in [supervisor, *host.processes()]:
            with contextlib.suppress(ProcessLookupError):  # it has died with its supervisor
                os.kill(pid, signal.SIGKILL)
        host.sshd.start(rebooted)

    event = reader.follow(power_cut)

    assert event["state"] == "LOST"
    assert "restarted" in event["reason"]
    said = reader.lines
    assert said == talking.lines(len(said))
    assert len(said) > 20
    second = host.start(10, 0.5)
    again = Reader(host, second["job"])
    assert again.follow()["state"] == "DONE"
    assert again.lines == talking.lines(10), "the try after it shows what came after it"
    assert host.generations() == ["1", "2"]


@pytest.mark.parametrize("off", [1, -1], ids=["fast", "slow"])
def test_a_host_whose_clock_is_an_hour_off_is_followed_in_the_time_of_who_asked(
    host: Host, tmp_path: Path, off: int
) -> None:
    host.sshd.kill()
    host.sshd.start(f'ForceCommand {wrong_clock(tmp_path, off * HOUR)} sh -c "$SSH_ORIGINAL_COMMAND"\n')
    reader = Reader(host, host.start(40, 2.0)["job"])

    event = reader.follow()

    ours = datetime.now(UTC)
    assert (event["state"], event["exit_status"]) == ("DONE", 0)
    assert reader.lines == talking.lines(40)
    theirs = datetime.fromisoformat(event["result"]["started"])
    assert timedelta(minutes=50) < (theirs - ours) * off < timedelta(minutes=70), "its own clock is really off"
    for record in reader.records:
        if "timestamp" in record:
            assert abs(datetime.fromisoformat(record["timestamp"]) - ours) < timedelta(minutes=5)
    # Attached to, killed and started again as ever: nothing of a job is judged by a clock that somebody sets.
    second = host.start(1000, 60.0)
    assert host.start(1000, 60.0) == {"job": second["job"], "attached": True}
    third = host.start(1, 0, "--restart")
    assert Reader(host, third["job"]).follow()["state"] == "DONE"
    assert host.processes() == []


def test_a_triggerer_that_was_killed_is_replaced_and_no_line_is_new_or_missing(host: Host) -> None:
    started = host.start(60, 6.0)
    reader = Reader(host, started["job"])
    with capture_logs() as reader.records:
        asyncio.run(_until(reader.trigger, lambda: len(reader.lines) > 3))
    first = [record for record in reader.records if "timestamp" in record]

    replacement = Reader(host, started["job"])
    replacement.trigger.task_instance = reader.trigger.task_instance
    event = replacement.follow()

    assert (event["state"], event["exit_status"]) == ("DONE", 0)
    assert replacement.lines == talking.lines(60)
    second = [record for record in replacement.records if "timestamp" in record]
    assert first == second[: len(first)], "records that both wrote are equal to the last field"
    assert len({record["timestamp"] for record in second}) == 60
    shown = _interleave_logs(iter(map(json.dumps, first)), iter(map(json.dumps, second)))
    assert [record.event for record in shown] == talking.lines(60), "Airflow, which reads both files, shows each once"


def test_a_job_that_does_not_end_at_once_is_killed_though_airflow_cancels_its_killer_every_second(host: Host) -> None:
    """As the triggerer of Airflow 3.3.2 does with ``on_kill()`` until it has returned."""
    job = host.start(1000, 60.0)["job"]
    trigger = Reader(host, job).trigger
    wait_for(lambda: b"line 1\n" in (host.task / "log").read_bytes())
    for pid in host.processes():
        os.kill(pid, signal.SIGSTOP)  # so that SIGTERM ends nothing

    async def ended_by_a_person() -> int:
        cancelled = 0
        killing = asyncio.create_task(trigger.on_kill())
        while host.processes():
            await asyncio.sleep(0.2)
            cancelled += killing.cancel()
            if killing.done():
                with contextlib.suppress(asyncio.CancelledError):
                    killing.result()
        return cancelled

    assert asyncio.run(asyncio.wait_for(ended_by_a_person(), LIMIT)) == 1
    wait_for((Path(job) / "exit.json").exists)  # its supervisor sees that a moment later
    assert host.start(1, 0)["attached"] is False


async def _until(trigger: JobTrigger, condition: Callable[[], bool]) -> None:
    """Run a trigger for a while and drop it where it stands."""
    running = asyncio.create_task(anext(trigger.run()))  # type: ignore[arg-type]
    while not condition():
        await asyncio.sleep(0.01)
    running.cancel()


def test_a_stage_that_is_over_soon_is_waited_for_by_its_task_and_told_whole(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_module, "SOON", LIMIT)
    ours = task(host, 20, 0.5)

    assert ours.perform() == {"lines": 20}

    assert ours.lines == talking.lines(20)
    assert ours.kept["result"]["succeeded"] is True
    assert (ours.directory / "1/collected").exists(), "nobody attaches to what is told already"


def test_a_stage_that_takes_longer_is_left_to_a_trigger_with_all_that_it_says(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_module, "SOON", 0.5)
    ours = task(host, 40, 12.0)  # much longer: it begins before it is waited for

    with pytest.raises(TaskDeferred) as deferred:
        ours.perform()

    assert ours.lines == []
    trigger = deferred.value.trigger
    assert isinstance(trigger, JobTrigger)
    reader = Reader(host, trigger.job)
    assert reader.follow()["state"] == "DONE"
    assert reader.lines == talking.lines(40)


def test_a_connection_that_is_lost_while_a_task_waits_is_the_triggers_affair(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_module, "SOON", LIMIT)
    ours = task(host, 20, 10.0)

    def cut() -> None:
        wait_for(lambda: watching.with_title(f"wait\0--job\0{ours.directory}/1\0"))  # else the start is not answered
        host.sshd.kill()

    cutting = Thread(target=cut)
    cutting.start()
    with pytest.raises(TaskDeferred):
        ours.perform()
    cutting.join()
    host.sshd.start()
    assert Reader(host, str(ours.directory / "1")).follow()["state"] == "DONE"


def test_a_person_ends_a_task_that_waits_and_the_job_with_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_module, "SOON", LIMIT)
    ours = task(host, 1000, 60.0)

    def end() -> None:
        wait_for(lambda: ours.has_said("line 1"))
        ours.operator.on_kill()  # as Airflow does when the process of the task gets its SIGTERM

    ending = Thread(target=end)
    ending.start()
    with pytest.raises(AirflowException, match="ended by SIGTERM"):
        ours.perform()
    ending.join()
    assert host.processes() == []
