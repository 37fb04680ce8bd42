"""Tells an observer of each call that changes something at a vCenter, before it is made and when it has answered.

It sits where every call passes, so that no change can be made that nobody is told of.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pyVmomi.SoapAdapter import SoapStubAdapter
from pyVmomi.VmomiJSONEncoder import VmomiJSONEncoder

# Calls on these only read, or concern the session itself.
READ_ONLY = {
    "vim.AuthorizationManager",
    "vim.SearchIndex",
    "vim.ServiceInstance",
    "vim.SessionManager",
    "vim.event.EventManager",  # nothing is posted there
    "vim.view.ContainerView",
    "vim.view.ViewManager",
    "vmodl.query.PropertyCollector",
    "vmodl.query.PropertyCollector.Filter",
}
SIGNS_OF_LIFE = {"HttpNfcLeaseProgress"}  # every 20 s for as long as a disk is downloaded

_Stub: Any = SoapStubAdapter  # pyVmomi says that it is typed, but this is not


@dataclass(frozen=True)
class Change:
    """A call that changes something.

    :ivar method: its name in the API's WSDL, such as ``PowerOnVM_Task``
    :ivar on: type and MoRef, such as ``VirtualMachine:vm-42``
    :ivar state: ``asked`` before it is made, then ``done`` or ``failed``
    :ivar arguments: by name; plain values or JSON texts
    :ivar answer: what came back: a task's MoRef, or a plain value
    :ivar seconds: until the answer; a task goes on after it
    :ivar said: the fault's name, and no more of it: its text can hold a ticket
    """

    method: str
    on: str
    state: Literal["asked", "done", "failed"] = "asked"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    answer: Any = None
    seconds: float | None = None
    said: str | None = None


Observer = Callable[[Change], None]


class ObservedStub(_Stub):  # type: ignore[misc]
    """A connection to a vCenter that tells :attr:`observer` of changes."""

    observer: Observer | None = None

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:
        """Make a call, as pyVmomi asks for it."""
        if self.observer is None or not is_change(mo, info):
            return super().InvokeMethod(mo, info, args, outerStub)
        change = Change(info.wsdlName, named(mo), arguments=_arguments(info, args))
        self.observer(change)
        begun = time.monotonic()
        try:
            answer = super().InvokeMethod(mo, info, args, outerStub)
        except BaseException as fault:
            self.observer(replace(change, state="failed", seconds=time.monotonic() - begun, said=type(fault).__name__))
            raise
        self.observer(replace(change, state="done", seconds=time.monotonic() - begun, answer=_plain(answer)))
        return answer


def is_change(mo: Any, info: Any) -> bool:
    """Whether a call may change anything but its own session."""
    return _type_of(mo) not in READ_ONLY and info.wsdlName not in SIGNS_OF_LIFE


def named(mo: Any) -> str:
    """Type and MoRef of a managed object, without the session's key that a lease's has in front."""
    return f"{_type_of(mo).rpartition('.')[2]}:{mo._moId.rpartition(']')[2]}"


def _type_of(mo: Any) -> str:
    return re.sub(r"^pyVmomi\.VmomiSupport\.", "", str(type(mo).__name__))


def _arguments(info: Any, args: Any) -> dict[str, Any]:
    pairs = zip(info.params, args, strict=False)
    return {parameter.name: _plain(value) for parameter, value in pairs if value is not None}


def _plain(value: Any) -> Any:
    """A value as JSON can carry it: a managed object by name, a data object as the JSON of what is set in it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, type):
        return value.__name__
    if hasattr(value, "_moId"):
        return named(value)
    return json.dumps(_set_in(json.loads(json.dumps(value, cls=VmomiJSONEncoder))), ensure_ascii=False)


def _set_in(value: Any) -> Any:
    """Leave out what is not set."""
    if isinstance(value, dict):
        kept = {key: _set_in(inner) for key, inner in value.items() if inner not in (None, [], {})}
        return {key: inner for key, inner in kept.items() if not key.startswith("_")}
    return [_set_in(inner) for inner in value] if isinstance(value, list) else value
