"""The export of one disk, held by its trigger: real vCenter, sshd, job and download, and no scheduler in between.

Leases live for some seconds here, and the trigger is what the triggerer runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperflow.hooks.audit import audit_file
from hyperflow.hooks.kvmhost_program import pack
from hyperflow.triggers import export as export_module
from hyperflow.triggers.export import ExportTrigger
from hyperflow.vsphere.inventory import find_vm, read_vm
from hyperflow.vsphere.session import Session, connect
from hyperflow.vsphere.snapshot import create_snapshot
from pyVmomi import vim

from lab import kvmhost, vcenter
from lab.small_guest import CAPACITY, ensure_small_guest
from tests import own_airflow

pytestmark = pytest.mark.lab

USER, PASSWORD = "hyperflow@vsphere.local", "not a secret"
LEASE_SECONDS = 12  # its keeper comes every four: a busy machine may be late by as much as twice that
PLACE = 8 << 20  # bytes after which a download is disturbed; it has some 25 MB
VMS = ("disk01", "disk02")
LIMIT = 120.0  # seconds a test waits before it gives up


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[vcenter.Vcenter]:
    state = tmp_path_factory.mktemp("vcenter")
    disk = {"file": str(ensure_small_guest()), "capacity_bytes": CAPACITY, "thin": True}
    (state / "inventory.json").write_text(json.dumps({"vms": [{"name": name, "disks": [disk]} for name in VMS]}))
    started = vcenter.start(
        state, state / "inventory.json", user=USER, password=PASSWORD, lease_timeout_seconds=LEASE_SECONDS
    )
    yield started
    vcenter.stop(started)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kvmhost.KvmHost]:
    state = tmp_path_factory.mktemp("kvmhost")
    yield kvmhost.start(state)
    kvmhost.stop(state)


@pytest.fixture
def session(source: vcenter.Vcenter) -> Iterator[Session]:
    """An administrator's session; not one of those that a test ends."""
    with login(source) as opened:
        yield opened


def login(source: vcenter.Vcenter) -> Session:
    return connect(source.host, source.port, user=USER, password=PASSWORD, thumbprint=source.thumbprint)


class Export:
    """The export of one disk of a VM, and what befalls it."""

    def __init__(self, source: vcenter.Vcenter, folder: Path, vm: str) -> None:
        self.source = source
        self.vm = vm
        self.folder = folder
        self.directory = folder / "staging/.hyperflow/jobs/dag/run/export"
        self.target = folder / "staging/disk.vmdk"
        with login(source) as session:
            self.moref = find_vm(session, vm)
            (disk,) = read_vm(session, self.moref).disks
            self.entity = create_snapshot(session, self.moref, name="hyperflow-test", description="{}").moref
        self.disk_key = disk.key
        program = folder / "program.pyz"
        program.write_bytes(pack().content)
        self.program = str(program)

    def trigger(self) -> ExportTrigger:
        """One try, as the operator would start it."""
        options = {
            "target": str(self.target),
            "disk_id": "disk-0",
            "source": f"disk-0 of {self.entity}",
            "capacity_bytes": CAPACITY,
            "decode": {"image": str(self.folder / "images" / "disk-0.qcow2"), "format": "qcow2"},
        }
        trigger = ExportTrigger(
            ssh_conn_id="faults_kvm",
            program=self.program,
            directory=str(self.directory),
            run_key="dag/run",
            vsphere_conn_id="faults_vcenter",
            entity=self.entity,
            disk_key=self.disk_key,
            options=options,
            thumbprint=self.source.thumbprint,
            poll_interval=0.2,
        )
        trigger.task_instance = own_airflow.task_instance(f"export-{self.folder.name}", "export")
        return trigger

    def follow(self, *meanwhile: Callable[[], Any], then: Callable[[], Any] | None = None) -> dict[str, Any]:
        """Run a try to its event, and what happens meanwhile beside it.

        :param then: what is done while the triggerer, which outlives the try, still runs
        """

        async def run() -> list[Any]:
            beside = [asyncio.create_task(asyncio.to_thread(each)) for each in meanwhile]
            events = [event.payload async for event in self.trigger().run()]
            await asyncio.gather(*beside)
            if then is not None:
                await asyncio.to_thread(then)
            return events

        (event,) = asyncio.run(run())
        assert isinstance(event, dict)
        return event

    def disturb(self, kind: str, **more: Any) -> None:
        """Have the next download of this VM disturbed."""
        self.source.admin("POST", "/faults", {"kind": kind, "vm": self.vm, "offset": PLACE, **more})

    def until_stalled(self) -> None:
        """Wait until the download has stopped in its middle."""
        partial = self.target.with_name(f".{self.target.name}.partial")
        wait_for(lambda: self.leases() and partial.exists() and partial.stat().st_size > 0)

    def audited(self) -> list[str]:
        """What its run's audit file tells of the vCenter, and no ticket of a lease."""
        file = audit_file(f"export-{self.folder.name}", "run")
        text = file.read_text()
        assert "nfc/" not in text and "session[" not in text
        entries = [json.loads(line) for line in text.splitlines()]
        return [f"{entry['what']} {entry['state']}" for entry in entries if entry["kind"] == "vsphere"]

    def leases(self) -> list[Any]:
        """The VM's leases that live."""
        return [each for each in self.source.admin("GET", "/leases")["live"] if each["vm"] == self.vm]

    def last_end(self) -> str:
        """How its last lease ended."""
        return str([one for one in self.source.admin("GET", "/leases")["ended"] if one["vm"] == self.vm][-1]["reason"])

    def processes(self) -> list[int]:
        """The processes of its jobs."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if f"HYPERFLOW_JOB={self.directory}/".encode() in (path / "environ").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue  # it has ended
        return found

    def require_nothing_left(self, *, decoded: bool = False) -> None:
        """No lease, no session, no process, nothing half-written.

        :param decoded: the download was good, so that what was decoded lies ready for convert
        """
        wait_for(lambda: not self.leases() and not self.source.admin("GET", "/sessions"))
        assert self.processes() == []
        left = [path.name for path in self.folder.rglob("*.partial")]
        assert left == ([".disk-0.qcow2.decoded.partial"] if decoded else [])


@pytest.fixture
def export(
    source: vcenter.Vcenter, host: kvmhost.KvmHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Export]:
    ssh = {"host": host.ssh_host, "port": host.ssh_port, "login": host.ssh_user}
    ssh |= {"conn_type": "ssh", "extra": {"key_file": host.key_file, "host_key": host.host_key}}
    api = {"conn_type": "vsphere", "host": source.host, "port": source.port, "login": USER, "password": PASSWORD}
    api |= {"extra": {"thumbprint": source.thumbprint}}
    monkeypatch.setenv("AIRFLOW_CONN_FAULTS_KVM", json.dumps(ssh))
    monkeypatch.setenv("AIRFLOW_CONN_FAULTS_VCENTER", json.dumps(api))
    (tmp_path / "images").mkdir()
    under_test = Export(source, tmp_path, VMS[0])
    yield under_test
    source.admin("DELETE", "/faults")
    source.admin("POST", "/outage", {"seconds": 0})
    for pid in under_test.processes():
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGKILL)
    with login(source) as session:
        machine = session.object(vim.VirtualMachine, under_test.moref)
        task = machine.RemoveAllSnapshots_Task()
        wait_for(lambda: task.info.state == "success")


def wait_for(condition: Callable[[], Any]) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.05)


def require_whole(export: Export, event: dict[str, Any]) -> None:
    assert (event["state"], event["exit_status"]) == ("DONE", 0), event
    assert export.target.read_bytes() == ensure_small_guest().read_bytes()
    sha256 = hashlib.sha256(ensure_small_guest().read_bytes()).hexdigest()
    assert event["result"]["observed"]["sha256"] == sha256
    export.require_nothing_left(decoded=True)
    assert export.last_end() == "completed"


def require_another_try(export: Export, event: dict[str, Any], *words: str) -> None:
    """The try ended as one that may pass, nothing of it is left, and the next one is good."""
    said = event.get("reason") or event["result"]["error"]["message"]
    for word in words:
        assert word in said
    assert event["retry"] if event["state"] == "FAILED" else event["result"]["error"]["kind"] == "try-again"
    export.require_nothing_left()
    require_whole(export, export.follow())


def test_a_lease_lives_for_as_long_as_a_download_that_takes_three_times_its_time_limit(export: Export) -> None:
    export.disturb("stall", seconds=3 * LEASE_SECONDS)
    require_whole(export, export.follow())
    assert export.audited() == [
        "ExportSnapshot asked",
        "ExportSnapshot done",
        "HttpNfcLeaseComplete asked",
        "HttpNfcLeaseComplete done",
    ]


def test_a_lease_of_which_nobody_reports_progress_times_out_and_the_next_try_has_another(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the triggerer hangs: the keeper of the lease sleeps, and everything else is real."""

    async def asleep(trigger: ExportTrigger, lease: Any) -> None:
        await asyncio.sleep(LIMIT)

    with monkeypatch.context() as patched:
        patched.setattr(ExportTrigger, "_keep_alive", asleep)
        export.disturb("stall")
        event = export.follow()
    assert export.last_end() == "timed out"
    require_another_try(export, event, "127.0.0.1")


@pytest.mark.parametrize("path", ["/sessions?vm=disk01", "/leases?vm=disk01"])
def test_a_session_or_lease_that_somebody_ends_in_mid_download_costs_one_try(export: Export, path: str) -> None:
    def end() -> None:
        export.until_stalled()
        assert export.source.admin("DELETE", path) == {"ended": 1}

    export.disturb("stall")
    require_another_try(export, export.follow(end), "failed after")


def test_a_vcenter_that_is_gone_in_mid_download_costs_tries_until_it_is_back(export: Export) -> None:
    def go() -> None:
        export.until_stalled()
        export.source.admin("POST", "/outage", {"seconds": 600})

    export.disturb("stall")
    event = export.follow(go)
    assert event["result"]["error"]["kind"] == "try-again"
    event = export.follow()
    assert (event["state"], event["retry"]) == ("FAILED", True)
    assert "can not be reached" in event["reason"]
    export.source.admin("POST", "/outage", {"seconds": 0})
    wait_for(lambda: not export.leases())
    export.source.admin("DELETE", "/sessions")  # of the first try: nobody could log it out
    require_whole(export, export.follow())


def test_a_vcenter_that_comes_back_is_given_the_lease_back_that_it_could_not_take(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "GIVE_BACK_AGAIN", (0.5,) * 20)

    def away_for_a_moment() -> None:
        export.until_stalled()
        export.source.admin("POST", "/outage", {"seconds": 2})

    export.disturb("stall")
    event = export.follow(away_for_a_moment, then=lambda: wait_for(lambda: not export.source.admin("GET", "/sessions")))
    assert event["result"]["error"]["kind"] == "try-again"
    assert export.last_end() == "aborted", "and not timed out"
    require_whole(export, export.follow())


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ({"kind": "cut"}, "failed after"),
        ({"kind": "truncate"}, "is cut after"),
        ({"kind": "status", "status": 500}, "answers 500"),
        ({"kind": "status", "status": 401}, "the lease of this download is over"),
        ({"kind": "flip"}, "what arrives is damaged"),
    ],
    ids=["cut", "truncate", "500", "401", "flip"],
)
def test_what_may_pass_costs_one_try_and_a_lease(export: Export, fault: dict[str, Any], word: str) -> None:
    export.disturb(**fault)
    require_another_try(export, export.follow(), word)


def test_a_redirect_is_final_and_gives_the_lease_back(export: Export) -> None:
    export.disturb("redirect")
    event = export.follow()
    assert "redirects to elsewhere.example" in event["result"]["error"]["message"]
    assert event["result"]["error"]["kind"] == "bad-request"
    assert export.last_end() == "aborted"
    export.require_nothing_left()


def test_a_snapshot_that_is_gone_is_final_and_says_what_to_do(export: Export, session: Session) -> None:
    task = session.object(vim.vm.Snapshot, export.entity).RemoveSnapshot_Task(False)
    wait_for(lambda: task.info.state == "success")
    event = export.follow()
    assert (event["state"], event["retry"]) == ("FAILED", False)
    for words in ("no longer in the inventory", "clear the task snapshot too"):
        assert words in event["reason"]


def test_a_person_who_ends_the_task_ends_the_download_and_the_lease(export: Export) -> None:
    """What the triggerer does then: it cancels run(), and calls on_kill()."""
    export.disturb("stall")
    asyncio.run(ended_by_a_person(export, export.until_stalled))
    assert export.last_end() == "aborted"
    export.require_nothing_left()
    require_whole(export, export.follow())


def test_a_vcenter_that_hangs_keeps_nobody_from_ending_the_download(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang() -> None:
        export.until_stalled()
        os.kill(export.source.pid, signal.SIGSTOP)

    async def act() -> None:
        await ended_by_a_person(export, hang)
        assert export.processes() == [], "the download is over while vCenter still hangs"
        os.kill(export.source.pid, signal.SIGCONT)

    export.disturb("stall")
    try:
        with monkeypatch.context() as impatient:
            impatient.setattr(export_module, "GIVE_BACK_LIMIT", 0.5)
            asyncio.run(act())
    finally:
        os.kill(export.source.pid, signal.SIGCONT)
    wait_for(lambda: not export.leases() and not export.source.admin("GET", "/sessions"))
    require_whole(export, export.follow())


def test_a_task_that_is_ended_while_its_lease_is_being_opened_leaves_no_lease(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, go_on = asyncio.Event(), asyncio.Event()
    opened: list[str] = []
    really = export_module.open_lease

    async def act() -> None:
        loop = asyncio.get_running_loop()

        def slowly(session: Session, entity: str) -> Any:
            loop.call_soon_threadsafe(opening.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            lease = really(session, entity)
            opened.append(lease.moref)
            return lease

        monkeypatch.setattr(export_module, "open_lease", slowly)
        trigger = export.trigger()
        running = asyncio.create_task(anext(trigger.run()))
        await opening.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        go_on.set()
        await asyncio.to_thread(wait_for, lambda: opened and not export.leases())

    asyncio.run(act())
    assert export.last_end() == "aborted"
    wait_for(lambda: not export.source.admin("GET", "/sessions"))


async def ended_by_a_person(export: Export, when: Callable[[], None]) -> None:
    """Do what the triggerer does when a person marks a task failed, or clears it."""
    trigger = export.trigger()
    running = asyncio.create_task(anext(trigger.run()))
    await asyncio.to_thread(when)
    running.cancel("__airflow_user_action__")
    with pytest.raises(asyncio.CancelledError):
        await running
    await trigger.on_kill()
