"""Exports one disk: holds its NFC lease while the host downloads it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.connection import get_async_connection
from airflow.triggers.base import TriggerEvent

from hyperflow.hooks.kvmhost import work_of
from hyperflow.hooks.vsphere import open_session
from hyperflow.triggers.job import CONNECTION_FAULTS, HostProgramFault, JobTrigger, by_itself, not_too_soon
from hyperflow.triggers.threads import in_thread, threads_of
from hyperflow.vsphere.errors import LeaseBusy, LeaseLost, NotFound, VsphereError
from hyperflow.vsphere.lease import Lease, open_lease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from hyperflow.vsphere.session import Session

Made = TypeVar("Made")

KEEP_ALIVE = 20.0  # seconds between two reports of progress, at most; vSphere ends a lease after 300 s without one
GIVE_BACK_LIMIT = 10.0  # seconds that the end of a download waits for vCenter to take the lease back
GIVE_BACK_AGAIN = (5.0, 10.0, 20.0, 30.0)  # seconds between tries to give it back to a vCenter that is away
BUSY_DELAY = 15.0  # seconds between two tries while another lease holds the VM
BUSY_LIMIT = 3600.0  # seconds; the other disks of the VM may be exported one after the other
WHAT_TO_DO_WHEN_GONE = (
    "Was the VM deleted, or did this run's snapshot go, which a run that ends removes? If the VM is there, clear the "
    "task snapshot too, so that a new one is taken, or start a new run"
)
PERCENT = re.compile(rb"^\S+ progress: .*\((\d{1,3}) %\)", re.MULTILINE)


class ExportTrigger(JobTrigger):
    """Opens a lease for one disk, starts the download on the host and keeps the lease alive until it ended.

    Lease and vCenter session live in this trigger, because both belong to one login. When the triggerer is
    restarted they are gone; the download is then started over with a new lease.

    :param ssh_conn_id: connection of the host
    :param program: path of the host program on the host
    :param directory: the task's job directory on the host
    :param run_key: the run, ``DAG/RUN``, as the host program records it
    :param vsphere_conn_id: connection of the vCenter
    :param entity: MoRef of the snapshot, or of the powered-off VM, to export
    :param disk_key: the disk's device key in vSphere
    :param options: options of the download stage, but for url and thumbprints
    :param thumbprint: the connection's own pin, for a lease that names no certificate
    """

    def __init__(
        self,
        *,
        directory: str,
        run_key: str,
        vsphere_conn_id: str,
        entity: str,
        disk_key: int,
        options: dict[str, Any],
        thumbprint: str | None,
        job: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(job=job, **kwargs)
        self.directory = directory
        self.run_key = run_key
        self.vsphere_conn_id = vsphere_conn_id
        self.entity = entity
        self.disk_key = disk_key
        self.options = options
        self.thumbprint = thumbprint
        self._percent = 0

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Give what is needed to make this trigger again in another process; nothing of it is a secret."""
        path, arguments = super().serialize()
        return path, arguments | {
            "directory": self.directory,
            "run_key": self.run_key,
            "vsphere_conn_id": self.vsphere_conn_id,
            "entity": self.entity,
            "disk_key": self.disk_key,
            "options": self.options,
            "thumbprint": self.thumbprint,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Export the disk and fire."""
        begun = time.monotonic()
        try:
            event = await self._export()
        except NotFound as fault:
            event = {"state": "FAILED", "reason": f"{fault}. {WHAT_TO_DO_WHEN_GONE}", "retry": False}
        except VsphereError as fault:
            event = {"state": "FAILED", "reason": str(fault), "retry": fault.temporary}
        except (HostProgramFault, *CONNECTION_FAULTS) as fault:
            said = str(fault) or type(fault).__name__
            reason = f"connection {self.ssh_conn_id}: the download could not be started: {said}"
            event = {"state": "FAILED", "reason": reason, "retry": True}
        finally:
            await self._host.close()
        await not_too_soon(begun)
        yield TriggerEvent(event)

    async def on_kill(self) -> None:
        """End the download; the lease is given back by the end of :meth:`run`."""
        await asyncio.shield(by_itself(self.end_job(self.directory)))

    async def on_poll(self, answer: dict[str, Any], log: bytes) -> None:
        """Note the progress that the lease is told next."""
        for match in PERCENT.finditer(log):
            self._percent = min(int(match[1]), 99)  # 100 is said by completing the lease

    async def _export(self) -> dict[str, Any]:
        connection = await get_async_connection(self.vsphere_conn_id)
        session = await unless_cancelled(
            self.vsphere_conn_id,
            lambda: open_session(connection, self.task_instance),
            lambda opened: None if opened is None else opened.logout(),
        )
        lease: Lease | None = None
        succeeded = False
        try:
            lease = await self._open_lease(session)
            keeper = asyncio.create_task(self._keep_alive(lease))
            try:
                event = await self.follow(await self._start(lease))
            finally:
                keeper.cancel()
            succeeded = event.get("exit_status") == 0
            return event
        finally:
            await self._give_back_in_time(session, lease, succeeded)

    async def _open_lease(self, session: Session) -> Lease:
        waited = 0.0
        while True:
            try:
                # Given back with its session, which opening it may have logged in anew.
                lease = await unless_cancelled(
                    self.vsphere_conn_id,
                    lambda: open_lease(session, self.entity),
                    lambda opened: self._give_back(session, opened, False),
                )
            except LeaseBusy as fault:
                if waited >= BUSY_LIMIT:
                    raise
                self.log.info("another lease holds the VM (%s); asking again in %.0f s", fault, BUSY_DELAY)
                await asyncio.sleep(BUSY_DELAY)
                waited += BUSY_DELAY
            else:
                self.log.info("lease %s opened on %s", lease.moref, self.entity)
                return lease

    async def _start(self, lease: Lease) -> str:
        """Start the download; the URL, which is a ticket, goes to the host's standard input and nowhere else."""
        disk = lease.disk(self.disk_key)
        pins = [pin for pin in (disk.thumbprint, None if disk.thumbprint else self.thumbprint) if pin]
        options = {
            **self.options,
            "url": disk.url,
            "thumbprints": pins,
            "expected_bytes": disk.file_size,
            "now": time.time(),
        }
        started = await self._host.ask(
            *("job", "start", "--directory", self.directory, "--stage", "download", "--run", self.run_key, "--restart"),
            *("--work", work_of(self.options), "--now", f"{time.time():.3f}"),
            stdin=json.dumps(options).encode(),
        )
        self.job = started["job"]
        return self.job

    async def _keep_alive(self, lease: Lease) -> None:
        """Report progress for as long as the download takes.

        A fault is said and not raised: vCenter may be away for less than the lease lives, and when the lease is
        really gone the download ends with an error of its own.
        """
        while True:
            await asyncio.sleep(min(KEEP_ALIVE, lease.timeout / 3))
            try:
                await in_thread(self.vsphere_conn_id, lease.keep_alive, self._percent)
            except LeaseLost as fault:
                self.log.warning("the download will be cut: %s", fault)
                return
            except VsphereError as fault:
                self.log.warning("the lease could not be kept alive: %s", fault)

    async def _give_back_in_time(self, session: Session, lease: Lease | None, succeeded: bool) -> None:
        """Give the lease back, and do not wait long for a vCenter that hangs: a person who ends the task waits.

        It goes on by itself: a triggerer that shuts down cancels this, and the lease must be given back all the same.
        """
        tried = asyncio.Event()
        by_itself(self._give_back_again(session, lease, succeeded, tried))
        try:
            await asyncio.wait_for(tried.wait(), GIVE_BACK_LIMIT)
        except TimeoutError:
            self.log.warning("vCenter does not answer; the lease is given back when it does, or ends by itself")

    async def _give_back_again(
        self, session: Session, lease: Lease | None, succeeded: bool, tried: asyncio.Event
    ) -> None:
        """End lease and session, with some patience for a vCenter that is away: who comes next may need the VM.

        :param tried: set when it is done, or is to be tried again
        """
        try:
            for wait in (*GIVE_BACK_AGAIN, 0.0):
                if await in_thread(self.vsphere_conn_id, self._ended, lease, succeeded):
                    break
                tried.set()
                await asyncio.sleep(wait)
        finally:
            await in_thread(self.vsphere_conn_id, session.logout)
            tried.set()

    def _give_back(self, session: Session, lease: Lease | None, succeeded: bool) -> None:
        """End the lease and the session; a lease that cannot be ended ends by itself, for want of progress."""
        try:
            self._ended(lease, succeeded)
        finally:
            session.logout()

    def _ended(self, lease: Lease | None, succeeded: bool) -> bool:
        """End the lease, if there is one; False when it may be asked for again."""
        try:
            if lease is not None and succeeded:
                lease.complete()
            elif lease is not None:
                lease.abort("the download did not succeed")
        except VsphereError as fault:
            self.log.warning("the lease could not be given back: %s", fault)
            return not fault.temporary
        return True


async def unless_cancelled(vcenter: str, make: Callable[[], Made], undo: Callable[[Made | None], None]) -> Made:
    """Make something in a thread, which nobody can stop: what is made after this was cancelled is undone again.

    :param vcenter: id of the connection of the vCenter that is asked
    :param undo: gets what was made, or None when making it failed
    """
    making = asyncio.create_task(in_thread(vcenter, make))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        making.add_done_callback(lambda done: _undo(vcenter, done, undo))
        raise


def _undo(vcenter: str, done: asyncio.Task[Made], undo: Callable[[Made | None], None]) -> None:
    failed = done.cancelled() or done.exception() is not None
    threads_of(vcenter).submit(undo, None if failed else done.result())
