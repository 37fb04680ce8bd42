"""The power of a virtual machine: read, the guest asked to shut down, switched off and on; each read back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pyVmomi import vim

from hyperflow.vsphere.errors import (
    Busy,
    ShutdownTimedOut,
    TaskFailed,
    TaskUnfinished,
    TimeLimitReached,
    ToolsNotRunning,
    VsphereError,
    WrongPowerState,
    describe,
)
from hyperflow.vsphere.inventory import unescaped
from hyperflow.vsphere.properties import Found, first_refusal, retrieve, wait_until
from hyperflow.vsphere.session import Session
from hyperflow.vsphere.snapshot import give_up, wait_for_task

ON, OFF, SUSPENDED = "poweredOn", "poweredOff", "suspended"
POWER_LIMIT = 600  # seconds that switching a VM on or off may take
GUEST_LIMIT = 600  # seconds until the guest of a VM that was switched on is to answer, or one that goes down is off
RUNNING, SHUTTING_DOWN = "running", "shuttingDown"  # guest.guestState
TOOLS_RUNNING = "guestToolsRunning"  # guest.toolsRunningStatus

SecondsLeft = Callable[[int], None]

_PATHS = [
    "name",
    "guest.guestState",
    "guest.toolsRunningStatus",
    "runtime.connectionState",
    "runtime.powerState",
    "runtime.question",
]


class WentOff(WrongPowerState):
    """A VM that was on is off, or suspended, before its guest answered; it may be switched on again."""

    temporary: ClassVar[bool] = True


class HostDown(WrongPowerState):
    """A VM whose host does not answer at this moment; it may come back."""

    temporary: ClassVar[bool] = True


@dataclass(frozen=True)
class PowerChange:
    """What became of a change of power.

    :ivar was: the power state found at the start
    :ivar state: the power state as read back at the end
    :ivar seconds: how long it took, rounded to a tenth
    """

    was: str
    state: str
    seconds: float

    @property
    def changed(self) -> bool:
        """False when the VM was in this state already, so that nothing was done."""
        return self.was != self.state

    def sentence(self) -> str:
        """What happened, for a person."""
        if not self.changed:
            return f"it was {self.state} already; nothing was done"
        return f"it was {self.was} and is {self.state} after {self.seconds:g} s, as read back"


def power_state(session: Session, moref: str) -> str:
    """``poweredOn``, ``poweredOff`` or ``suspended``, as it is at this moment.

    :raises NotFound: when the VM is gone
    """
    (vm,) = retrieve(session, [session.object(vim.VirtualMachine, moref)], {vim.VirtualMachine: ["runtime.powerState"]})
    return str(vm.get("runtime.powerState", "unknown"))


def power_and_tools(session: Session, moref: str) -> tuple[str, bool]:
    """As :func:`power_state`, and whether VMware Tools run, at this moment.

    :raises NotFound: when the VM is gone
    """
    vm = _read(session, moref)
    return _state(vm), vm.get("guest.toolsRunningStatus") == TOOLS_RUNNING


def require_reachable(session: Session, moref: str) -> None:
    """See that a VM is there, and on a host that is up, so that it can be switched.

    :raises NotFound: when the VM is gone
    :raises HostDown: its host or its storage does not answer
    :raises WrongPowerState: the VM is orphaned or invalid
    """
    vm = _read(session, moref)
    connection = str(vm.get("runtime.connectionState", "unknown"))
    if connection != "connected":
        raise (WrongPowerState if connection in ("orphaned", "invalid") else HostDown)(
            f"the power state of {_name(vm)} is {_state(vm)!r} at {session.host} (its connection: {connection}). See "
            "that its host is up and connected"
        )


def shut_down_guest(
    session: Session,
    moref: str,
    deadline_seconds: float,
    progress: SecondsLeft | None = None,
    *,
    was_asked: bool = False,
    about_to_ask: Callable[[], None] | None = None,
) -> PowerChange:
    """Ask the guest to shut down, by VMware Tools, and wait until the VM is off. Nothing is ever forced.

    Bears being called again: a guest that is off is a success, one that is going down already is only waited for.
    Tools are among the first that end: a guest that was asked before and has none any more is taken for one of these.

    :param deadline_seconds: seconds that the guest may take
    :param was_asked: an earlier call has asked it
    :param about_to_ask: called before it is asked
    :param progress: gets the seconds left, at the start and every 20 seconds or so
    :raises ToolsNotRunning: nobody in the guest can hear
    :raises WrongPowerState: the VM is suspended, or became so meanwhile
    :raises ShutdownTimedOut: the VM is not off at the deadline
    """
    begun = time.monotonic()
    vm = _read(session, moref)
    was = _state(vm)
    if was == OFF:
        return PowerChange(was, OFF, 0)
    try:
        _must_hear(session, vm)
        if vm.get("guest.guestState") != SHUTTING_DOWN:
            if about_to_ask is not None:
                about_to_ask()
            session.call(_ask_to_shut_down, session, vm)
    except ToolsNotRunning:
        if not was_asked:
            raise

    def off(known: dict[str, Any]) -> bool:
        if progress is not None:
            progress(max(0, math.ceil(deadline_seconds - (time.monotonic() - begun))))
        if known.get("runtime.powerState") == SUSPENDED:
            raise WrongPowerState(f"{_name(vm)} was suspended while its guest was to shut down. Resume it, try again")
        return known.get("runtime.powerState") == OFF

    left = deadline_seconds - (time.monotonic() - begun)
    what = f"the shutdown of {_name(vm)}"
    try:
        wait_until(session, vm.reference, ["runtime.powerState"], off, time_limit=left, what=what)
    except TimeLimitReached as reached:
        now = _read(session, moref)
        if _state(now) != OFF:
            raise _timed_out(now, deadline_seconds) from reached
    return PowerChange(was, OFF, _since(begun))


def power_off(session: Session, moref: str, time_limit: float = POWER_LIMIT) -> PowerChange:
    """Switch a VM off, as by its plug: what the guest has not written to its disks is lost. A VM that is off stays so.

    :param time_limit: seconds
    :raises WrongPowerState: the VM is suspended; switching it off would throw its memory away
    :raises TaskFailed: with vCenter's reason, and the question that the VM waits on
    :raises TaskUnfinished: the time is over; vCenter was asked to give the task up
    """
    vm = _read(session, moref)
    if _state(vm) == SUSPENDED:
        raise WrongPowerState(
            f"{_name(vm)} is suspended: what its memory holds is not on its disks, and would be thrown away. Resume "
            "it, and shut it down"
        )
    return _switch(session, vm, OFF, vm.reference.PowerOffVM_Task, time_limit)


def power_on(session: Session, moref: str, time_limit: float = POWER_LIMIT) -> PowerChange:
    """Switch a VM on, or resume it. A VM that is on stays so.

    :param time_limit: seconds
    :raises TaskFailed: with vCenter's reason, and the question that the VM waits on
    :raises TaskUnfinished: the time is over; vCenter was asked to give the task up, so that the VM does not start
        when nobody expects it
    """
    vm = _read(session, moref)
    return _switch(session, vm, ON, vm.reference.PowerOnVM_Task, time_limit)


def wait_until_down(session: Session, moref: str, time_limit: float, progress: SecondsLeft | None = None) -> bool:
    """Wait for a guest that shuts down at this moment, as one that obeys late does; for any other there is no wait.

    Tools end before the VM is off, so a guest that was seen going down is waited for until it is off, or runs again.

    :param time_limit: seconds
    :param progress: gets the seconds left, at the start and every 20 seconds or so
    :return: False when it is still going down at the end of that time
    """
    begun = time.monotonic()
    vm = _read(session, moref)
    if _state(vm) != ON or vm.get("guest.guestState") != SHUTTING_DOWN:
        return True

    def is_over(known: dict[str, Any]) -> bool:
        if progress is not None:
            progress(max(0, math.ceil(time_limit - (time.monotonic() - begun))))
        return known.get("runtime.powerState", ON) != ON or known.get("guest.guestState") == RUNNING

    paths = ["runtime.powerState", "guest.guestState"]
    try:
        wait_until(session, vm.reference, paths, is_over, time_limit=time_limit, what=f"the shutdown of {_name(vm)}")
    except TimeLimitReached:
        return False
    return True


def wait_for_guest(session: Session, moref: str, time_limit: float, progress: SecondsLeft | None = None) -> bool:
    """Wait until VMware Tools run in a VM that was switched on, which its guest starts when it is up.

    :param time_limit: seconds
    :param progress: gets the seconds left, at the start and every 20 seconds or so
    :return: False when they do not in that time, or run in a guest that shuts down
    :raises WentOff: the VM went off again, or was suspended
    """
    begun = time.monotonic()
    vm = _read(session, moref)

    def answers(known: dict[str, Any]) -> bool:
        if progress is not None:
            progress(max(0, math.ceil(time_limit - (time.monotonic() - begun))))
        if known.get("runtime.powerState", ON) != ON:
            raise WentOff(
                f"{_name(vm)} was switched on, and is {known.get('runtime.powerState')} again. See its events in "
                "vCenter, and its console"
            )
        runs = known.get("guest.toolsRunningStatus") == TOOLS_RUNNING
        return runs and known.get("guest.guestState") != SHUTTING_DOWN

    paths = ["runtime.powerState", "guest.guestState", "guest.toolsRunningStatus"]
    try:
        wait_until(session, vm.reference, paths, answers, time_limit=time_limit, what=f"the guest of {_name(vm)}")
    except TimeLimitReached:
        return False
    return True


def _switch(session: Session, vm: Found, wanted: str, start: Callable[[], Any], time_limit: float) -> PowerChange:
    begun = time.monotonic()
    was = _state(vm)
    if was == wanted:
        return PowerChange(was, wanted, 0)
    task = None
    what = f"the change of {_name(vm)} from {was} to {wanted}"
    try:
        task = session.call(start)
        wait_for_task(session, task, what, time_limit)
    except (Busy, TaskFailed, TaskUnfinished) as failed:
        if isinstance(failed, TaskUnfinished):
            give_up(task)
        now = _read(session, vm.moref)
        if _state(now) != wanted:  # else somebody else did it meanwhile
            failed.args = (f"{failed}{_question(now)}",)
            raise
    state = power_state(session, vm.moref)
    if state != wanted:
        raise WrongPowerState(
            f"{session.host} says that it has finished {what}, but the virtual machine is {state}. See its recent "
            "tasks and events in vCenter for who changed it"
        )
    return PowerChange(was, state, _since(begun))


def _ask_to_shut_down(session: Session, vm: Found) -> None:
    try:
        vm.reference.ShutdownGuest()
    except vim.fault.ToolsUnavailable as fault:
        raise _no_tools(vm, f"{session.host} answers {describe(fault)}") from fault
    except vim.fault.InvalidPowerState:
        return  # it went off between the two calls, or was suspended: the wait tells which


def _must_hear(session: Session, vm: Found) -> None:
    """Refuse a VM whose guest cannot be asked to shut down."""
    state = _state(vm)
    if state == SUSPENDED:
        raise WrongPowerState(
            f"{_name(vm)} is suspended, so its guest cannot shut down. Resume it in vCenter, and try again"
        )
    if state != ON:
        raise WrongPowerState(
            f"the power state of {_name(vm)} is {state!r} at {session.host} (its connection: "
            f"{vm.get('runtime.connectionState', 'unknown')}). See that its host is up and connected"
        )
    if vm.get("guest.guestState") == SHUTTING_DOWN:
        return  # Tools is among the first that end
    status = str(vm.get("guest.toolsRunningStatus", "not told"))
    if status != TOOLS_RUNNING:
        raise _no_tools(vm, f"its status is {status}")


def _no_tools(vm: Found, why: str) -> ToolsNotRunning:
    return ToolsNotRunning(
        f"VMware Tools does not run in {_name(vm)} ({why}), so its guest cannot be asked to shut down{_question(vm)}. "
        "Shut it down from within, or start VMware Tools (open-vm-tools) in it, or have it powered off the hard way"
    )


def _timed_out(vm: Found, seconds: float) -> ShutdownTimedOut:
    return ShutdownTimedOut(
        f"{_name(vm)} is still {_state(vm)} {seconds:g} seconds after its guest was asked to shut down{_question(vm)}. "
        "Nothing was forced. See on its console what it waits for; then shut it down there, or allow more time, or "
        "have it powered off the hard way"
    )


def _question(vm: Found) -> str:
    """The question that a VM waits on, as the end of a sentence; empty when there is none."""
    question = vm.get("runtime.question")
    if question is None:
        return ""
    text = " ".join(str(question.text or "").split())
    choices = [str(each.label) for each in getattr(question.choice, "choiceInfo", None) or []]
    offered = f" ({', '.join(choices)})" if choices else ""
    return f". It waits for an answer in vCenter to the question {text!r}{offered}"


def _read(session: Session, moref: str) -> Found:
    (vm,) = retrieve(session, [session.object(vim.VirtualMachine, moref)], {vim.VirtualMachine: _PATHS})
    if vm.get("runtime.powerState") is None:
        raise first_refusal(session, vm) or VsphereError(
            f"{session.host} does not tell the power state of {moref}. See that its host is up and connected"
        )
    return vm


def _state(vm: Found) -> str:
    return str(vm.get("runtime.powerState"))


def _name(vm: Found) -> str:
    return f"{unescaped(str(vm.get('name', vm.moref)))!r} ({vm.moref})"


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 1)
