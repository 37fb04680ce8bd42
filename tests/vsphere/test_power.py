"""Guests that shut down and guests that do not, and VMs switched on and off; each read back from the lab's vCenter."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hyperflow.operators import rollback
from hyperflow.operators.rollback import bring_back, guest_of
from hyperflow.vsphere import power
from hyperflow.vsphere.errors import (
    NotFound,
    PermissionMissing,
    ShutdownTimedOut,
    TaskFailed,
    TaskUnfinished,
    ToolsNotRunning,
    WrongPowerState,
)
from hyperflow.vsphere.inventory import find_vm
from hyperflow.vsphere.nics import connections
from hyperflow.vsphere.power import (
    power_off,
    power_on,
    power_state,
    require_reachable,
    shut_down_guest,
    wait_for_guest,
    wait_until_down,
)
from hyperflow.vsphere.power_events import server_time, switched_on_since
from hyperflow.vsphere.properties import retrieve
from hyperflow.vsphere.session import Session
from hyperflow.vsphere.snapshot import wait_for_task
from pyVmomi import vim

TOOLS = "guest.toolsRunningStatus"


@pytest.fixture
def deaf(session: Session, admin: Any) -> Iterator[str]:
    moref = find_vm(session, "deaf")
    yield moref
    admin.as_it_was()
    power_on(session, moref)


@contextlib.contextmanager
def suspended(session: Session, moref: str) -> Iterator[None]:
    machine = session.object(vim.VirtualMachine, moref)
    wait_for_task(session, session.call(machine.SuspendVM_Task), "the suspension", 30)
    try:
        yield
    finally:
        power_on(session, moref)


def is_of_the_start(left: int, begun: float) -> bool:
    """Whether the seconds left of 60 are those of the start: what the first calls have taken may be gone already."""
    return 60 - (time.monotonic() - begun) <= left <= 60


def test_a_guest_is_asked_and_the_machine_is_off_when_it_has_shut_down(
    session: Session, admin: Any, cutover: str
) -> None:
    left: list[int] = []
    begun = time.monotonic()
    done = shut_down_guest(session, cutover, 60, left.append)
    assert (done.was, done.state, done.changed) == ("poweredOn", "poweredOff", True)
    assert done.seconds > 0
    assert admin.machine(cutover)["power_state"] == "poweredOff"
    assert is_of_the_start(left[0], begun)
    assert left == sorted(left, reverse=True)


def test_a_machine_that_is_off_already_is_a_success_that_says_so(session: Session) -> None:
    done = shut_down_guest(session, find_vm(session, "off01"), 60)
    assert not done.changed
    assert "poweredOff already" in done.sentence()


def test_a_guest_that_ignores_the_request_ends_in_a_timeout_and_nothing_is_forced(session: Session, deaf: str) -> None:
    with pytest.raises(ShutdownTimedOut, match=r"'deaf'.*still poweredOn 2 seconds.*Nothing was forced") as raised:
        shut_down_guest(session, deaf, 2)
    assert not raised.value.temporary
    assert power_state(session, deaf) == "poweredOn"


def test_the_question_a_machine_waits_on_is_shown(session: Session, admin: Any, deaf: str) -> None:
    admin.post("/machines/faults", {"vm": "deaf", "kind": "question"})
    with pytest.raises(ShutdownTimedOut, match=r"moved or copied.*I Moved It, I Copied It"):
        shut_down_guest(session, deaf, 1)


def test_without_tools_nobody_is_asked(session: Session, admin: Any) -> None:
    moref = find_vm(session, "no-tools")
    with pytest.raises(ToolsNotRunning, match=r"guestToolsNotRunning.*open-vm-tools"):
        shut_down_guest(session, moref, 60)
    assert power_state(session, moref) == "poweredOn"


def test_tools_that_ended_this_moment_are_the_same_error(session: Session, admin: Any, cutover: str) -> None:
    admin.post("/machines/faults", {"vm": "cutover", "kind": "tools-unavailable"})
    with pytest.raises(ToolsNotRunning, match=r"ToolsUnavailable.*cannot be asked"):
        shut_down_guest(session, cutover, 60)


def test_a_guest_that_was_asked_before_and_has_no_tools_any_more_is_waited_for(session: Session) -> None:
    moref = find_vm(session, "no-tools")
    asked: list[bool] = []
    with pytest.raises(ShutdownTimedOut):
        shut_down_guest(session, moref, 1, was_asked=True, about_to_ask=lambda: asked.append(True))
    assert asked == []


def test_who_waits_is_told_before_a_guest_is_asked(session: Session, cutover: str) -> None:
    states: list[str] = []
    shut_down_guest(session, cutover, 60, about_to_ask=lambda: states.append(power_state(session, cutover)))
    assert states == ["poweredOn"]


def test_a_guest_that_is_going_down_already_is_only_waited_for(session: Session, admin: Any, cutover: str) -> None:
    session.object(vim.VirtualMachine, cutover).ShutdownGuest()
    admin.post("/machines/faults", {"vm": "cutover", "kind": "tools-unavailable"})  # asking again would fail
    assert shut_down_guest(session, cutover, 60).state == "poweredOff"


def test_a_suspended_machine_is_neither_shut_down_nor_switched_off(session: Session, cutover: str) -> None:
    with suspended(session, cutover):
        with pytest.raises(WrongPowerState, match="Resume it"):
            shut_down_guest(session, cutover, 60)
        with pytest.raises(WrongPowerState, match="memory"):
            power_off(session, cutover)
        assert power_state(session, cutover) == "suspended"


def test_switching_off_and_on_is_read_back_and_can_be_repeated(session: Session, admin: Any, cutover: str) -> None:
    assert power_off(session, cutover).changed
    assert admin.machine(cutover)["power_state"] == "poweredOff"
    assert not power_off(session, cutover).changed
    assert power_on(session, cutover).changed
    assert admin.machine(cutover)["power_state"] == "poweredOn"
    assert not power_on(session, cutover).changed


def test_a_guest_that_was_switched_on_is_up_when_its_tools_run(session: Session, cutover: str) -> None:
    left: list[int] = []
    power_off(session, cutover)
    power_on(session, cutover)
    begun = time.monotonic()
    assert wait_for_guest(session, cutover, 60, left.append)
    assert is_of_the_start(left[0], begun)
    (vm,) = retrieve(session, [session.object(vim.VirtualMachine, cutover)], {vim.VirtualMachine: [TOOLS]})
    assert vm.get(TOOLS) == "guestToolsRunning"


def test_a_guest_whose_tools_do_not_run_is_given_up(session: Session, admin: Any, cutover: str) -> None:
    power_off(session, cutover)
    admin.post("/machines/faults", {"vm": "cutover", "kind": "no-tools"})
    power_on(session, cutover)
    assert not wait_for_guest(session, cutover, 1.5)


def test_a_guest_that_goes_off_again_is_not_waited_for(session: Session, cutover: str) -> None:
    power_off(session, cutover)
    with pytest.raises(WrongPowerState, match=r"was switched on, and is poweredOff again") as raised:
        wait_for_guest(session, cutover, 60)
    assert raised.value.temporary, "it is switched on by another try"


def test_a_guest_that_does_not_go_down_is_not_waited_for(session: Session, cutover: str) -> None:
    left: list[int] = []
    assert wait_until_down(session, cutover, 60, left.append)
    power_off(session, cutover)
    assert wait_until_down(session, cutover, 60, left.append)
    assert left == []


@pytest.fixture
def taken_back(session: Session, cutover: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the rollback bring the source back, at this session's vCenter."""
    record = {"vcenter": "vc", "name": "cutover", "moref": cutover, "power": "poweredOn", "tools": True}
    record["nics"] = connections(session, cutover)
    hook = SimpleNamespace(session=lambda: contextlib.nullcontext(session))
    monkeypatch.setattr(rollback, "VsphereHook", lambda _: hook)
    return lambda: bring_back(SimpleNamespace(log=logging.getLogger(__name__)), record)


def test_a_source_whose_guest_obeys_late_is_on_again_after_it(session: Session, cutover: str, taken_back: Any) -> None:
    session.object(vim.VirtualMachine, cutover).ShutdownGuest()
    since = server_time(session)
    done = taken_back()
    assert (done["power"], done["guest"], done["warnings"]) == ("poweredOn", True, [])
    assert switched_on_since(session, cutover, since), "it had gone off, and is on again"


def test_a_source_that_may_still_go_down_is_told(
    session: Session, admin: Any, cutover: str, taken_back: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "GUEST_LIMIT", 1.5)
    admin.post("/machines/faults", {"vm": "cutover", "kind": "no-power-off"})
    session.object(vim.VirtualMachine, cutover).ShutdownGuest()
    try:
        done = taken_back()
        assert not wait_for_guest(session, cutover, 1), "its Tools run, and will end"
    finally:
        admin.as_it_was()
        power_off(session, cutover)
    assert (done["power"], done["guest"]) == ("poweredOn", False)
    assert "it may still go down" in done["warnings"][0]


@pytest.mark.parametrize("fault", [None, "no-tools"])
def test_a_source_that_is_taken_back_runs_when_its_guest_answers_as_before(
    session: Session, admin: Any, cutover: str, monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    monkeypatch.setattr(power, "GUEST_LIMIT", 1.5 if fault else 60)
    power_off(session, cutover)
    if fault:
        admin.post("/machines/faults", {"vm": "cutover", "kind": fault})
    power_on(session, cutover)
    record = {"name": "cutover", "moref": cutover, "power": "poweredOn", "tools": True}
    task: Any = SimpleNamespace(log=logging.getLogger(__name__))
    found, told = guest_of(task, session, record)
    assert (found, len(told)) == ((False, 1) if fault else (True, 0))
    assert guest_of(task, session, {**record, "tools": False}) == (None, []), "they did not run before"


def test_a_machine_that_can_not_be_switched_on_says_why_and_what_it_waits_for(
    session: Session, admin: Any, cutover: str
) -> None:
    power_off(session, cutover)
    admin.post("/machines/faults", {"vm": "cutover", "kind": "no-power-on"})
    admin.post("/machines/faults", {"vm": "cutover", "kind": "question"})
    with pytest.raises(TaskFailed, match=r"GenericVmConfigFault.*no-power-on.*I Moved It"):
        power_on(session, cutover)
    assert power_state(session, cutover) == "poweredOff"


def test_a_machine_that_can_not_be_switched_off_says_why(session: Session, admin: Any, cutover: str) -> None:
    admin.post("/machines/faults", {"vm": "cutover", "kind": "no-power-off"})
    with pytest.raises(TaskFailed, match="no-power-off"):
        power_off(session, cutover)


def test_a_start_that_never_ends_is_given_up_so_that_the_machine_does_not_start_later(
    session: Session, admin: Any, cutover: str
) -> None:
    power_off(session, cutover)
    admin.post("/tasks", {"method": "PowerOnVM_Task", "vm": "cutover"})
    admin.post("/machines/faults", {"vm": "cutover", "kind": "question"})
    with pytest.raises(TaskUnfinished, match=r"within 1 seconds.*I Copied It"):
        power_on(session, cutover, time_limit=1)
    admin.delete("/tasks")
    limit = time.monotonic() + 30
    while "running" in states_of_tasks(session):
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert power_state(session, cutover) == "poweredOff"


def states_of_tasks(session: Session) -> set[str]:
    tasks = session.content.taskManager.recentTask
    return {str(task.get("info.state")) for task in retrieve(session, tasks, {vim.Task: ["info.state"]})}


@pytest.mark.parametrize("act", [power_off, lambda session, moref: shut_down_guest(session, moref, 60)])
def test_a_machine_that_somebody_else_switched_off_at_the_same_moment_is_off_as_asked(
    session: Session, cutover: str, monkeypatch: pytest.MonkeyPatch, act: Any
) -> None:
    read = power._read

    def read_and_be_overtaken(asking: Session, moref: str) -> Any:
        found = read(asking, moref)
        if found.get("runtime.powerState") == "poweredOn":
            machine = session.object(vim.VirtualMachine, moref)
            wait_for_task(session, machine.PowerOffVM_Task(), "somebody's power off", 30)
        return found

    monkeypatch.setattr(power, "_read", read_and_be_overtaken)
    assert act(session, cutover).state == "poweredOff"


def test_a_session_that_ends_while_a_guest_shuts_down_does_not_stop_the_wait(
    session: Session, admin: Any, cutover: str
) -> None:
    ended: list[int] = []

    def end_once(left: int) -> None:
        if not ended:
            admin.end_sessions()
        ended.append(left)

    assert shut_down_guest(session, cutover, 60, end_once).state == "poweredOff"
    assert len(ended) > 1


@pytest.mark.parametrize(
    ("privilege", "start"),
    [
        ("VirtualMachine.Interact.PowerOff", lambda session, moref: shut_down_guest(session, moref, 60)),
        ("VirtualMachine.Interact.PowerOff", power_off),
    ],
)
def test_a_missing_privilege_is_named_and_the_machine_goes_on(
    session: Session, admin: Any, cutover: str, privilege: str, start: Any
) -> None:
    admin.post("/privileges", {"missing": [privilege]})
    with pytest.raises(PermissionMissing, match=privilege):
        start(session, cutover)
    assert power_state(session, cutover) == "poweredOn"


def test_a_machine_that_is_gone_is_not_found(session: Session) -> None:
    for act in (power_on, power_off, lambda session, moref: shut_down_guest(session, moref, 1)):
        with pytest.raises(NotFound):
            act(session, "vm-999999")


def test_a_machine_that_was_on_for_a_while_is_told_by_its_events_though_it_is_off_again(
    session: Session, cutover: str
) -> None:
    power_off(session, cutover)
    since = server_time(session)
    assert switched_on_since(session, cutover, since) == []
    power_on(session, cutover)
    power_off(session, cutover)
    (told,) = switched_on_since(session, cutover, since)
    assert told.startswith("it was switched on at 20")
    assert switched_on_since(session, cutover, server_time(session)) == []
    assert switched_on_since(session, find_vm(session, "off01"), since) == []


def test_a_machine_that_is_gone_cannot_be_reached(session: Session, cutover: str) -> None:
    require_reachable(session, cutover)
    with pytest.raises(NotFound):
        require_reachable(session, "vm-999999")


@pytest.mark.parametrize(
    ("connection", "passes"),
    [("notResponding", True), ("disconnected", True), ("inaccessible", True), ("orphaned", False)],
)
def test_a_machine_whose_host_is_away_for_a_while_may_be_reached_later(
    connection: str, passes: bool, session: Session, cutover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = power._read(session, cutover)
    away = replace(found, properties={**found.properties, "runtime.connectionState": connection})
    monkeypatch.setattr(power, "_read", lambda *_: away)  # the simulator's hosts are never away
    with pytest.raises(WrongPowerState, match=connection) as refused:
        require_reachable(session, cutover)
    assert refused.value.temporary is passes
