"""What an administrator, a slow storage and an outage do to a session in mid-work; the lab's vCenter really does it."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hyperflow.vsphere import properties
from hyperflow.vsphere.changes import changes
from hyperflow.vsphere.errors import LeaseLost, NotFound, SessionEnded, TaskUnfinished, Unreachable, VsphereError
from hyperflow.vsphere.inventory import find_vm, list_vms, read_vm
from hyperflow.vsphere.lease import open_lease
from hyperflow.vsphere.session import Session, connect
from hyperflow.vsphere.snapshot import (
    Ownership,
    create_snapshot,
    find_snapshots,
    remove_owned_snapshots,
    remove_snapshot,
)
from pyVmomi import vim

from tests.vsphere.conftest import PASSWORD, USER

OURS = Ownership(dag="migrate__web01", run="faults", created="2026-11-23T21:00:00Z")
NAME = "hyperflow-faults"


@pytest.fixture
def web01(session: Session, admin: Any) -> Iterator[str]:
    moref = find_vm(session, "web01")
    yield moref
    admin.delete("/tasks")
    eventually(lambda: not running_tasks(session))
    remove_owned_snapshots(session, moref, name=NAME, ownership=OURS)


def eventually(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def running_tasks(session: Session) -> list[Any]:
    recent = session.content.taskManager.recentTask
    return [task for task in recent if task.info.state in ("queued", "running")]


def test_a_snapshot_that_never_ends_is_an_error_at_its_time_limit_and_is_given_up_at_the_vcenter(
    session: Session, admin: Any, web01: str
) -> None:
    admin.post("/tasks", {"method": "CreateSnapshot_Task", "vm": "web01"})
    with pytest.raises(TaskUnfinished, match=r"hyperflow-faults.*within 1 seconds.*recent tasks") as raised:
        create_snapshot(session, web01, name=NAME, description=OURS.description(), time_limit=1)
    assert not raised.value.temporary
    admin.delete("/tasks")
    eventually(lambda: not running_tasks(session))
    assert find_snapshots(session, web01, NAME) == []


def test_a_removal_that_never_ends_is_an_error_at_its_time_limit_and_is_found_done_later(
    session: Session, admin: Any, web01: str
) -> None:
    created = create_snapshot(session, web01, name=NAME, description=OURS.description())
    admin.post("/tasks", {"method": "RemoveSnapshot_Task", "vm": "web01"})
    with pytest.raises(TaskUnfinished, match=r"the removal of the snapshot.*within 1 seconds.*try again"):
        remove_snapshot(session, web01, created.moref, name=NAME, ownership=OURS, time_limit=1)
    assert find_snapshots(session, web01, NAME)
    admin.delete("/tasks")
    eventually(lambda: find_snapshots(session, web01, NAME) == [])
    assert not remove_snapshot(session, web01, created.moref, name=NAME, ownership=OURS).existed


def test_a_session_that_ends_while_a_task_is_waited_for_costs_a_login_and_no_second_snapshot(
    session: Session, vcenter: Any, admin: Any, web01: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(properties, "LONGEST_WAIT", 1)  # else its end is seen at the end of a wait of 20 seconds
    admin.post("/tasks", {"method": "CreateSnapshot_Task", "vm": "web01"})
    login = {"user": USER, "password": PASSWORD, "thumbprint": vcenter.thumbprint}
    with (
        connect(vcenter.host, vcenter.port, **login) as waiting,
        ThreadPoolExecutor(1) as pool,
    ):
        taken = pool.submit(create_snapshot, waiting, web01, name=NAME, description=OURS.description())
        eventually(lambda: bool(running_tasks(session)))
        admin.end_sessions()
        eventually(lambda: len(admin.get("/sessions")) == 1)
        admin.delete("/tasks")
        created = taken.result()
    assert [each.moref for each in find_snapshots(session, web01, NAME)] == [created.moref]


def test_a_session_that_is_ended_at_once_after_every_login_may_be_tried_again(session: Session, admin: Any) -> None:
    def ask() -> Any:
        admin.end_sessions()
        return session.content.sessionManager.currentSession or session.content.rootFolder.childEntity

    with pytest.raises(SessionEnded, match="right after a new login") as raised:
        session.call(ask)
    assert raised.value.temporary


def test_a_vcenter_that_is_gone_for_a_moment_is_unreachable_and_then_goes_on_with_the_same_session(
    session: Session, admin: Any
) -> None:
    before = list_vms(session)
    admin.post("/outage", {"seconds": 600})
    with pytest.raises(Unreachable) as raised:
        list_vms(session)
    assert raised.value.temporary
    with pytest.raises(Unreachable) as raised:
        connect(session.host, session.port, user=USER, password=PASSWORD, timeout=5)
    assert raised.value.temporary
    admin.post("/outage", {"seconds": 0})
    assert list_vms(session) == before


def test_a_vcenter_that_hangs_is_unreachable_after_the_time_for_an_answer(vcenter: Any) -> None:
    login = {"user": USER, "password": PASSWORD, "thumbprint": vcenter.thumbprint}
    with connect(vcenter.host, vcenter.port, timeout=10, **login) as session:  # time also to answer when it goes on
        os.kill(vcenter.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unreachable) as raised:
                list_vms(session)
        finally:
            os.kill(vcenter.pid, signal.SIGCONT)
        assert raised.value.temporary
        assert list_vms(session)


def test_a_lease_that_somebody_aborts_is_lost_and_a_new_one_can_be_had(session: Session, admin: Any) -> None:
    moref = find_vm(session, "off01")
    with open_lease(session, moref) as lease:
        assert admin.delete("/leases?vm=off01") == {"ended": 1}
        with pytest.raises(LeaseLost, match="Open a new one") as raised:
            lease.keep_alive(10)
        assert raised.value.temporary
    with open_lease(session, moref) as lease:
        assert lease.state() == "ready"
        lease.complete()


def test_an_outage_while_many_threads_ask_leaves_none_of_them_hanging(session: Session, admin: Any) -> None:
    stop = threading.Event()
    told: list[list[VsphereError | None]] = [[] for _ in range(4)]  # what each thread got: a fault, or its answer

    def ask(own: list[VsphereError | None]) -> None:
        while not stop.is_set():
            try:
                list_vms(session)
                own.append(None)
            except VsphereError as fault:
                own.append(fault)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, own) for own in told]
        admin.post("/outage", {"seconds": 600})
        try:
            try:
                eventually(lambda: all(any(own) for own in told))
            finally:
                admin.post("/outage", {"seconds": 0})  # once: it cuts what is open
            eventually(lambda: all(own[-1] is None for own in told))
        finally:
            stop.set()
        for each in asking:
            each.result()
    assert all(fault.temporary for own in told for fault in own if fault)
    assert list_vms(session)


def test_what_somebody_changed_meanwhile_is_told_a_sentence_each(session: Session) -> None:
    moref = find_vm(session, "off01")
    before = read_vm(session, moref)
    assert changes(before, before) == []
    machine = session.object(vim.VirtualMachine, moref)
    grown: Any = vim.vm.device.VirtualDeviceSpec
    spec: Any = vim.vm.ConfigSpec(name="renamed01")
    (disk,) = [each for each in machine.config.hardware.device if isinstance(each, vim.vm.device.VirtualDisk)]
    disk.capacityInKB *= 2
    disk.capacityInBytes = disk.capacityInKB * 1024
    spec.deviceChange = [grown(operation="edit", device=disk)]
    wait(machine.ReconfigVM_Task(spec))
    wait(machine.PowerOnVM_Task())
    try:
        told = "\n".join(changes(before, read_vm(session, moref)))
    finally:
        wait(machine.PowerOffVM_Task())
        wait(machine.ReconfigVM_Task(vim.vm.ConfigSpec(name="off01")))
    for words in ("renamed from 'off01' to 'renamed01'", "was poweredOff and is poweredOn now", "for the new size"):
        assert words in told


def test_an_added_and_a_missing_disk_are_told_apart(session: Session) -> None:
    before = read_vm(session, find_vm(session, "mixed"))
    fewer = dataclasses.replace(before, disks=before.disks[1:])
    assert f"{before.disks[0].label} was taken from the VM" in changes(before, fewer)[0]
    assert f"{before.disks[0].label} was added after the snapshot" in changes(fewer, before)[0]
    moved = dataclasses.replace(before, inventory_path="/DC0/vm/Elsewhere/mixed")
    assert "was moved from" in changes(before, moved)[0]


def test_a_machine_that_is_moved_started_and_given_a_snapshot_and_a_disk_goes_on_being_exported(
    session: Session, admin: Any
) -> None:
    moref = find_vm(session, "restless")
    before = read_vm(session, moref)
    ours = create_snapshot(session, moref, name=NAME, description=OURS.description())
    machine = session.object(vim.VirtualMachine, moref)
    with open_lease(session, ours.moref) as lease:
        wait(machine.CreateSnapshot_Task("before the week-end", "by hand", False, False))
        wait(machine.ReconfigVM_Task(one_more_disk(machine)))
        (green,) = [each for each in machine.parent.parent.childEntity if each.name == "Green"]
        wait(green.MoveIntoFolder_Task([machine]))
        wait(machine.PowerOnVM_Task())
        lease.keep_alive(50)
    with open_lease(session, ours.moref) as lease:
        assert [disk.disk_key for disk in lease.disks] == [disk.key for disk in before.disks]
        lease.complete()
    told = "\n".join(changes(before, read_vm(session, moref)))
    for words in ("moved from /DC0/vm/Blue/restless to /DC0/vm/Green/restless", "is poweredOn now", "was added after"):
        assert words in told
    remove_owned_snapshots(session, moref, name=NAME, ownership=OURS)
    assert [each.name for each in find_snapshots(session, moref)] == ["before the week-end"]


def one_more_disk(machine: Any) -> Any:
    (disk,) = [each for each in machine.config.hardware.device if isinstance(each, vim.vm.device.VirtualDisk)]
    added: Any = vim.vm.device.VirtualDisk
    added = added(key=-1, controllerKey=disk.controllerKey, unitNumber=disk.unitNumber + 1, capacityInKB=1024)
    added.backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(diskMode="persistent", thinProvisioned=True)
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=added)
    return vim.vm.ConfigSpec(deviceChange=[change])


def test_a_machine_that_is_deleted_takes_its_lease_and_snapshot_with_it(session: Session, admin: Any) -> None:
    moref = find_vm(session, "doomed")
    ours = create_snapshot(session, moref, name=NAME, description=OURS.description())
    with open_lease(session, ours.moref) as lease:
        wait(session.object(vim.VirtualMachine, moref).Destroy_Task())
        with pytest.raises(LeaseLost):
            lease.keep_alive(50)
    with pytest.raises(NotFound, match="no longer in the inventory"):
        open_lease(session, ours.moref)
    with pytest.raises(NotFound, match="no longer in the inventory"):
        remove_owned_snapshots(session, moref, name=NAME, ownership=OURS)
    assert [each for each in admin.get("/snapshots") if each["name"] == NAME] == []


def wait(task: Any) -> None:
    eventually(lambda: task.info.state in ("success", "error"))
    assert task.info.state == "success", task.info.error
