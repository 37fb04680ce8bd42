"""Snapshots: created with their owner on them, found again, removed when ours and only then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hyperflow.vsphere import snapshot
from hyperflow.vsphere.errors import NotFound, NotOurs, TaskFailed, TimeLimitReached
from hyperflow.vsphere.inventory import find_vm
from hyperflow.vsphere.properties import wait_until
from hyperflow.vsphere.session import Session
from hyperflow.vsphere.snapshot import (
    NAME_LIMIT,
    Ownership,
    create_snapshot,
    find_snapshots,
    read_ownership,
    remove_owned_snapshots,
    remove_snapshot,
    snapshot_name,
    wait_for_task,
)
from pyVmomi import vim

OURS = Ownership(dag="migrate__web01", run="manual__2026-11-23T21:00:00+00:00", created="2026-11-23T21:00:00Z")
NAME = snapshot_name("migrate__web01-1")


@pytest.fixture
def web01(session: Session) -> Iterator[str]:
    moref = find_vm(session, "web01")
    yield moref
    remove_owned_snapshots(session, moref, name=NAME, ownership=OURS)


def test_a_snapshot_carries_its_owner_and_is_found_by_its_name(session: Session, web01: str) -> None:
    created = create_snapshot(session, web01, name=NAME, description=OURS.description())
    (found,) = find_snapshots(session, web01, NAME)
    assert found.moref == created.moref
    assert json.loads(found.description)["run"] == OURS.run
    assert OURS.owns(found)
    assert (created.quiesced, created.warnings) == (True, ())


def test_a_machine_that_is_off_needs_no_quiescing(session: Session) -> None:
    moref = find_vm(session, "off01")
    created = create_snapshot(session, moref, name=NAME, description=OURS.description())
    assert (created.quiesced, created.warnings) == (False, ())
    remove_snapshot(session, moref, created.moref, name=NAME, ownership=OURS)


def test_without_tools_the_snapshot_is_crash_consistent_and_says_so(session: Session) -> None:
    moref = find_vm(session, "no-tools")
    created = create_snapshot(session, moref, name=NAME, description=OURS.description())
    assert not created.quiesced
    assert "crash-consistent" in created.warnings[0]
    remove_snapshot(session, moref, created.moref, name=NAME, ownership=OURS)


def test_a_guest_that_can_not_be_quiesced_gets_a_crash_consistent_snapshot_and_a_warning(
    session: Session, web01: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The simulator always quiesces; the fault that a real guest would give is put in place of the first
    # result.
    faults: list[Exception] = [vim.fault.FilesystemQuiesceFault(msg="VSS writer failed")]

    def wait_with_fault(waiting: Session, task: Any, what: str, *more: Any) -> Any:
        result = wait_for_task(waiting, task, what, *more)
        if faults:
            raise TaskFailed(f"could not finish {what}", faults.pop())
        return result

    monkeypatch.setattr(snapshot, "wait_for_task", wait_with_fault)
    created = create_snapshot(session, web01, name=NAME, description=OURS.description())
    assert not created.quiesced
    assert "FilesystemQuiesceFault: VSS writer failed" in created.warnings[0]
    assert "crash-consistent" in created.warnings[0]


def test_removal_is_read_back_and_can_be_repeated(session: Session, web01: str, admin: Any) -> None:
    created = create_snapshot(session, web01, name=NAME, description=OURS.description())
    assert remove_snapshot(session, web01, created.moref, name=NAME, ownership=OURS).existed
    assert find_snapshots(session, web01) == []
    assert not remove_snapshot(session, web01, created.moref, name=NAME, ownership=OURS).existed
    assert not [each for each in admin.get("/snapshots") if each["vm"] == "web01"]


def test_a_snapshot_without_our_mark_is_never_removed(session: Session) -> None:
    moref = find_vm(session, "old-snapshots")
    for theirs in find_snapshots(session, moref):
        with pytest.raises(NotOurs, match="left alone"):
            remove_snapshot(session, moref, theirs.moref, name=theirs.name, ownership=OURS)
    assert len(find_snapshots(session, moref)) == 2


def test_a_snapshot_of_another_run_name_or_airflow_is_never_removed(session: Session, web01: str) -> None:
    ours = replace(OURS, airflow="a-1")
    created = create_snapshot(session, web01, name=NAME, description=ours.description())
    for name, ownership in (
        (NAME, replace(ours, run="another")),
        (NAME, replace(ours, dag="another")),
        (NAME, replace(ours, airflow="another")),
        ("hyperflow-another", ours),
    ):
        with pytest.raises(NotOurs):
            remove_snapshot(session, web01, created.moref, name=name, ownership=ownership)
        assert remove_owned_snapshots(session, web01, name=name, ownership=ownership) == []
    assert [each.moref for each in find_snapshots(session, web01)] == [created.moref]


@pytest.mark.parametrize(("one", "other"), [("", ""), ("a-1", ""), ("", "a-1"), ("a-1", "a-1")])
def test_a_snapshot_that_does_not_say_which_airflow_made_it_is_known_by_dag_and_run(one: str, other: str) -> None:
    assert replace(OURS, airflow=one).is_of_same_run(replace(OURS, airflow=other, created="another"))


def test_teardown_finds_every_snapshot_of_the_run_by_name_and_owner(session: Session, web01: str) -> None:
    for _ in range(2):
        create_snapshot(session, web01, name=NAME, description=OURS.description())
    removed = remove_owned_snapshots(session, web01, name=NAME, ownership=OURS)
    assert len(removed) == 2
    assert find_snapshots(session, web01) == []


def test_a_session_that_ended_does_not_stop_the_removal(session: Session, web01: str, admin: Any) -> None:
    created = create_snapshot(session, web01, name=NAME, description=OURS.description())
    admin.end_sessions()
    assert remove_snapshot(session, web01, created.moref, name=NAME, ownership=OURS).existed


def test_a_machine_that_is_gone_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound):
        find_snapshots(session, "vm-999999")
    with pytest.raises(NotFound):
        create_snapshot(session, "vm-999999", name=NAME, description="")


def test_a_failed_task_says_why(session: Session) -> None:
    machine = session.object(vim.VirtualMachine, find_vm(session, "off01"))
    task = session.call(machine.PowerOffVM_Task)
    with pytest.raises(TaskFailed, match=r"switching it off.*InvalidPowerState") as raised:
        wait_for_task(session, task, "switching it off", 30)
    assert isinstance(raised.value.fault, vim.fault.InvalidPowerState)


def test_waiting_ends_at_its_time_limit(session: Session) -> None:
    machine = session.object(vim.VirtualMachine, find_vm(session, "off01"))
    with pytest.raises(TimeLimitReached, match="powering on by itself within 1 seconds"):
        wait_until(
            session,
            machine,
            ["runtime.powerState"],
            lambda known: known.get("runtime.powerState") == "poweredOn",
            time_limit=1,
            what="powering on by itself",
        )


@pytest.mark.parametrize("text", ["", "before upgrade", "[]", '{"owner": "hyperflow"}', '{"owner": 1}', "null"])
def test_other_descriptions_are_nobodys(text: str) -> None:
    assert read_ownership(text) is None


def test_a_snapshots_name_fits_vcenters_limit_and_holds_no_odd_characters() -> None:
    name = snapshot_name("a/b%" + "x" * 200)
    assert name.startswith("hyperflow-a-b-x")
    assert len(name) == NAME_LIMIT
