"""Follows a detached job on a KVM host until it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, cast

import asyncssh
import structlog
from airflow.configuration import conf
from airflow.providers.ssh.hooks.ssh import SSHHookAsync
from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from hyperflow.hooks.audit import audit
from hyperflow.manifest.shown import shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

COMMAND_TIMEOUT = 60.0  # seconds for one round trip; a command on the host takes some 0.1 s
KEEPALIVE = 15  # seconds between SSH keep-alives: a connection that hangs is noticed after three of them
RECONNECT_DELAYS = (1.0, 2.0, 5.0, 10.0)  # seconds; the last one again and again
CONNECTION_FAULTS = (OSError, asyncssh.Error, TimeoutError)
ONLY_ASKING = (("job", "poll"), ("job", "collect"))  # commands that change nothing, every few seconds
SCHEDULER_LOOP = 3.0  # seconds that the scheduler of a busy machine takes until it looks at what has ended
DEFERRED = "deferred"  # Airflow's state of a task that a trigger waits for
UNREACHABLE = "UNREACHABLE"
FAILED = "FAILED"

logging.getLogger("asyncssh").setLevel(logging.WARNING)  # it logs twelve lines a poll into the task log otherwise

_AT_WORK: set[asyncio.Task[None]] = set()  # asyncio itself keeps no task


class HostUnreachable(Exception):
    """The host could not be asked for longer than the trigger's limit."""


class HostProgramFault(Exception):
    """The host program ended with an error of its own."""


class JobTrigger(BaseTrigger):
    """Polls a job with one round trip each time, and puts the stage's log into the task log.

    Fires once, with ``{"state": DONE|LOST|ABSENT|UNREACHABLE|FAILED, "exit_status"?, "reason"?, "result"?, "job"}``.
    A connection that breaks is made anew, for as long as ``unreachable_limit`` allows: the job on the host goes on
    meanwhile, and a later try attaches to it.

    A triggerer can be killed between any two steps, so nobody knows which lines it has still written. The one that
    takes its place therefore reads the log again from where this try of the task began. Each record has the time that
    the host gave the line, one of its own; Airflow, when it puts a task's log together from its files, shows records
    that are equal once.

    :param ssh_conn_id: connection of the host
    :param program: path of the host program on the host
    :param job: the job's directory on the host (one generation)
    :param poll_interval: seconds between two polls while there is nothing new
    :param unreachable_limit: seconds without an answer after which the trigger gives up
    """

    def __init__(
        self,
        *,
        ssh_conn_id: str,
        program: str,
        job: str,
        poll_interval: float = 2.0,
        unreachable_limit: float = 1800.0,
    ) -> None:
        super().__init__()
        self.ssh_conn_id = ssh_conn_id
        self.program = program
        self.job = job
        self.poll_interval = poll_interval
        self.unreachable_limit = unreachable_limit
        self._host = HostChannel(ssh_conn_id, program, lambda: self.task_instance)
        self._stage_log = structlog.get_logger(logger_name=f"{__name__}.stage")

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Give what is needed to make this trigger again in another process."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            "ssh_conn_id": self.ssh_conn_id,
            "program": self.program,
            "job": self.job,
            "poll_interval": self.poll_interval,
            "unreachable_limit": self.unreachable_limit,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Follow the job to its end and fire."""
        begun = time.monotonic()
        try:
            event = await self.follow(self.job)
        finally:
            await self._host.close()
        await not_too_soon(begun)
        yield TriggerEvent(event)

    async def take(self, task: Any) -> dict[str, Any]:
        """Take log and result of a job that is over, in the process of its task.

        :param task: the task instance
        :return: the event that :meth:`run` would fire
        """
        self.task_instance = task
        try:
            return await self.follow(self.job)
        finally:
            await self._host.close()

    async def follow(self, job: str) -> dict[str, Any]:
        """Follow ``job`` until it ended, its log is read to the end and its result is here."""
        try:
            return {**await self._follow(job), "job": job}
        except HostUnreachable as fault:
            return {"state": UNREACHABLE, "reason": str(fault), "job": job}
        except HostProgramFault as fault:
            return {"state": FAILED, "reason": str(fault), "retry": True, "job": job}

    async def _follow(self, job: str) -> dict[str, Any]:
        offset = -1  # the host knows where this reader began, or where the last one stopped
        while True:
            answer, log = await self._poll(job, offset)
            for line in log.split(b"\n")[:-1]:
                self._relay(line)
            offset = answer["offset"] + len(log)
            await self.on_poll(answer, log)
            if answer["state"] != "RUNNING" and not answer["more"]:
                if answer["state"] != "ABSENT":
                    await self._acknowledge(job, offset)
                return answer
            if not log:  # else at once: what was just logged is acknowledged by the next poll
                await asyncio.sleep(self.poll_interval)

    def _relay(self, line: bytes) -> None:
        """Put a line of the stage into the task log, under the time it has on the host."""
        time_said, _, text = line.decode(errors="replace").partition(" ")
        self._stage_log.info(shown(text), timestamp=time_said)

    async def on_poll(self, answer: dict[str, Any], log: bytes) -> None:
        """Do what else has to be done from time to time; here nothing."""

    async def on_kill(self) -> None:
        """End the job when a person marks its task failed or clears it."""
        await asyncio.shield(by_itself(self.end_job(str(PurePosixPath(self.job).parent))))

    async def end_job(self, directory: str) -> None:
        """End whatever runs for the task of that directory on the host, unless another triggerer goes on with it."""
        if await self._is_handed_on():
            self.log.info("the task is still deferred: another triggerer goes on with it, and its job is left alone")
            return
        answer = await self._host.ask("job", "kill", "--directory", directory)
        self.log.info("ended on the host: %d running job(s) of %s", answer["killed"], directory)
        await self._host.close()

    async def _is_handed_on(self) -> bool:
        """Whether nobody has ended the task, as then it is deferred no longer.

        Airflow 3.3.2 cancels a trigger with the same word when this triggerer was silent for so long (stopped, or on a
        machine that was too busy) that another one got its triggers (apache/airflow#73454).
        """
        ti = self.task_instance
        if ti is None:
            return False
        ask = sync_to_async(RuntimeTaskInstance.get_task_states)
        try:
            states = await ask(ti.dag_id, ti.map_index, task_ids=[ti.task_id], run_ids=[ti.run_id])
        except (AirflowRuntimeError, NameError) as fault:  # NameError: outside a triggerer nobody can be asked
            self.log.info("whether the task is still deferred is not known: %s", fault)
            return False
        return DEFERRED in states.get(ti.run_id, {}).values()

    @property
    def _reader(self) -> str:
        """The try of the task, which Airflow gives an id of its own: the same in every triggerer that serves it."""
        return str(self.task_instance.id) if self.task_instance is not None else "by-hand"

    async def _poll(self, job: str, offset: int) -> tuple[dict[str, Any], bytes]:
        output = await self._patiently(
            *("job", "poll", "--job", job, "--reader", self._reader, "--offset", str(offset))
        )
        header, _, log = output.partition(b"\n")
        return json.loads(header), log

    async def _acknowledge(self, job: str, offset: int) -> None:
        await self._poll(job, offset)
        await self._patiently("job", "collect", "--job", job)

    async def _patiently(self, *arguments: str) -> bytes:
        """Run a command on the host, through as many lost connections as the limit allows.

        :raises HostUnreachable: when the limit is over
        """
        first_fault: float | None = None
        attempt = 0
        while True:
            try:
                return await self._host.run(*arguments)
            except CONNECTION_FAULTS as fault:
                now = time.monotonic()
                if first_fault is None:
                    first_fault = now
                    self.log.warning("connection %s: %s; the job goes on, trying again", self.ssh_conn_id, fault)
                if now - first_fault > self.unreachable_limit:
                    raise HostUnreachable(
                        f"connection {self.ssh_conn_id}: no answer for {now - first_fault:.0f} s ({fault})"
                    ) from fault
            await asyncio.sleep(RECONNECT_DELAYS[min(attempt, len(RECONNECT_DELAYS) - 1)])
            attempt += 1


async def not_too_soon(begun: float) -> None:
    """Wait until a trigger may fire.

    The process that deferred has often ended for a whole heartbeat before Airflow 3.3.2 sees that it has. When the
    trigger has fired by then, Airflow takes that end for the end of the task, and tries it again beside the process
    that goes on with it (apache/airflow#72716).

    :param begun: when it began, on the monotonic clock
    """
    heartbeat = conf.getint("workers", "min_heartbeat_interval", fallback=5)
    await asyncio.sleep(begun + heartbeat + SCHEDULER_LOOP - time.monotonic())


def by_itself(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Begin something that goes on when its caller is cancelled.

    A triggerer of Airflow 3.3.2 cancels a trigger whose task a person has ended again and again, about once a second,
    until it has gone, and ``on_kill()`` with it: a job that does not end at the first SIGTERM, or a host that does not
    answer within a second, would be left at work.
    """
    task = asyncio.create_task(work)
    _AT_WORK.add(task)
    task.add_done_callback(_worked)
    return task


def _worked(task: asyncio.Task[None]) -> None:
    _AT_WORK.discard(task)
    if not task.cancelled() and (fault := task.exception()) is not None:
        logging.getLogger(__name__).warning("what was to be ended with its trigger was not: %s", fault)


class HostChannel:
    """One SSH connection to a host, opened when it is needed and kept for the next command.

    :param ssh_conn_id: connection of the host
    :param program: path of the host program on the host
    :param task: gives the task instance that the commands are run for, None when there is none
    """

    def __init__(self, ssh_conn_id: str, program: str, task: Callable[[], Any]) -> None:
        self.ssh_conn_id = ssh_conn_id
        self.program = program
        self.task = task
        self._connection: asyncssh.SSHClientConnection | None = None

    async def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """Run the host program once and return its standard output.

        :raises OSError, asyncssh.Error, TimeoutError: when the connection is to blame
        :raises HostProgramFault: when the program is
        """
        begun = time.monotonic()
        try:
            connection = await self._connect()
            command = shlex.join(["/usr/bin/python3", self.program, *arguments])
            done = await connection.run(command, input=stdin, encoding=None, check=False, timeout=COMMAND_TIMEOUT)
        except CONNECTION_FAULTS as fault:
            await self._audit(arguments, None, begun, str(fault) or type(fault).__name__)
            await self.close()
            raise
        await self._audit(arguments, done.exit_status, begun)
        if done.exit_status is None or done.exit_status < 0:
            await self.close()
            raise ConnectionError(f"lost while the host program ran ({done.exit_signal})")
        output, errors = cast("bytes", done.stdout), cast("bytes", done.stderr)  # bytes, for want of an encoding
        if done.exit_status != 0:
            told = (output + errors).decode(errors="replace").strip()
            raise HostProgramFault(f"{self.program} {shlex.join(arguments)}: exit status {done.exit_status}: {told}")
        return output

    async def _audit(
        self, arguments: tuple[str, ...], status: int | None, begun: float, said: str | None = None
    ) -> None:
        """Write a command into the run's audit file, unless it only asks how the job is."""
        task = self.task()
        if task is None or arguments[:2] in ONLY_ASKING:
            return
        await asyncio.to_thread(
            audit,
            *("host", shlex.join(["hyperflow-kvmhost", *arguments])),
            state="done" if status == 0 else "failed",
            on=self.ssh_conn_id,
            seconds=time.monotonic() - begun,
            exit_status=status,
            said=said,
            task=task,
        )

    async def _connect(self) -> asyncssh.SSHClientConnection:
        if self._connection is not None:
            return self._connection
        hook = SSHHookAsync(ssh_conn_id=self.ssh_conn_id, keepalive_interval=KEEPALIVE)
        connection: asyncssh.SSHClientConnection = await asyncio.wait_for(hook.get_conn(), COMMAND_TIMEOUT)
        self._connection = connection
        return connection

    async def ask(self, *arguments: str, stdin: bytes = b"") -> dict[str, Any]:
        """Run the host program once and return the JSON object that it prints first."""
        answer = json.loads((await self.run(*arguments, stdin=stdin)).split(b"\n", 1)[0])
        assert isinstance(answer, dict)  # noqa: S101 - the host program is ours, sent by its content hash
        return answer

    async def close(self) -> None:
        """Close the connection, if it is open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
