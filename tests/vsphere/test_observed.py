"""Each call that changes something at a vCenter is told of before it is made and after it was answered; no other is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hyperflow.vsphere.errors import TaskUnfinished, VsphereError
from hyperflow.vsphere.inventory import find_vm, read_vm
from hyperflow.vsphere.lease import open_lease
from hyperflow.vsphere.nics import connections, disconnect
from hyperflow.vsphere.observed import Change
from hyperflow.vsphere.power import power_off
from hyperflow.vsphere.privileges import missing_privileges
from hyperflow.vsphere.session import Session, connect
from hyperflow.vsphere.snapshot import Ownership, create_snapshot, find_snapshots, remove_snapshot

from lab.vcenter import Vcenter

USER, PASSWORD = "hyperflow@vsphere.local", "correct horse & <battery>"
OWNER = Ownership(dag="migrate.p.v", run="r", created="2026-11-26T12:00:00Z")


@pytest.fixture
def told() -> list[Change]:
    return []


@pytest.fixture
def watched(vcenter: Vcenter, told: list[Change]) -> Iterator[Session]:
    with connect(
        vcenter.host,
        vcenter.port,
        user=USER,
        password=PASSWORD,
        thumbprint=vcenter.thumbprint,
        observer=told.append,
    ) as session:
        yield session


def steps(told: list[Change]) -> list[tuple[str, str]]:
    return [(change.method, change.state) for change in told]


def test_reading_is_no_change(watched: Session, told: list[Change]) -> None:
    moref = find_vm(watched, "web01")
    read_vm(watched, moref)
    connections(watched, moref)
    missing_privileges(watched, moref, for_cutover=True)
    find_snapshots(watched, moref)
    assert told == []


def test_a_snapshot_is_told_of_with_what_was_asked_and_how_its_task_ended(watched: Session, told: list[Change]) -> None:
    moref = find_vm(watched, "web01")
    made = create_snapshot(watched, moref, name="observed", description=OWNER.description(), quiesce=False)
    remove_snapshot(watched, moref, made.moref, name="observed", ownership=OWNER)
    create, remove = "CreateSnapshot_Task", "RemoveSnapshot_Task"
    assert [step for step in steps(told) if step[0] in (create, remove)] == [
        (create, "asked"),
        (create, "done"),
        (remove, "asked"),
        (remove, "done"),
    ]
    asked, answered = told[:2]
    assert (asked.on, asked.arguments["name"]) == (f"VirtualMachine:{moref}", "observed")
    assert str(answered.answer).startswith("Task:")
    tasks = [change for change in told if change.on == answered.answer]
    assert [change.state for change in tasks] == ["done"]
    assert tasks[0].seconds is not None


def test_what_is_done_to_adapters_is_told_in_full(watched: Session, told: list[Change], cutover: str) -> None:
    disconnect(watched, cutover)
    (asked,) = [change for change in told if (change.method, change.state) == ("ReconfigVM_Task", "asked")]
    edits = json.loads(str(asked.arguments["spec"]))["deviceChange"]
    assert [edit["device"]["connectable"]["startConnected"] for edit in edits] == [False, False]


def test_a_call_that_is_refused_is_told_of_as_failed(
    watched: Session, told: list[Change], admin: Any, cutover: str
) -> None:
    admin.post("/privileges", {"missing": ["VirtualMachine.Interact.PowerOff"]})
    with pytest.raises(VsphereError):
        power_off(watched, cutover)
    assert steps(told) == [("PowerOffVM_Task", "asked"), ("PowerOffVM_Task", "failed")]
    assert told[1].said == "vim.fault.NoPermission"


def test_a_task_that_is_given_up_is_told_of_and_so_is_its_end(
    watched: Session, told: list[Change], admin: Any, cutover: str
) -> None:
    admin.post("/tasks", {"method": "PowerOffVM_Task", "vm": "cutover"})
    with pytest.raises(TaskUnfinished):
        power_off(watched, cutover, time_limit=1)
    task = str(told[1].answer)
    assert (told[2].on, told[2].state, told[2].said) == (task, "failed", "not done within the time limit")
    assert [(change.method, change.on) for change in told[3:]] == [("CancelTask", task)] * 2


def test_a_lease_is_told_of_without_its_session_and_without_signs_of_life(watched: Session, told: list[Change]) -> None:
    lease = open_lease(watched, find_vm(watched, "off01"))
    lease.keep_alive(50)
    lease.complete()
    assert steps(told) == [
        ("ExportVm", "asked"),
        ("ExportVm", "done"),
        ("HttpNfcLeaseComplete", "asked"),
        ("HttpNfcLeaseComplete", "done"),
    ]
    assert all("session[" not in str(change) for change in told)
    assert told[2].on.startswith("HttpNfcLease:")
