"""What vCenter's events tell of a VM's power: also of one that was on for a while and is off again."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pyVmomi import vim

from hyperflow.vsphere.session import Session

_event: Any = vim.event  # pyVmomi's data objects have no typed constructors


def server_time(session: Session) -> str:
    """The server's clock, which its events are written by; ISO 8601."""
    now: datetime = session.call(session.object(vim.ServiceInstance, "ServiceInstance").CurrentTime)
    return now.isoformat()


def switched_on_since(session: Session, moref: str, since: str) -> list[str]:
    """Each time that a VM was switched on or resumed, in words, the oldest first; empty when it was not.

    vCenter keeps events for weeks, a lone ESXi host the last thousand or so.

    :param since: of :func:`server_time`
    """
    spec = _event.EventFilterSpec(
        entity=_event.EventFilterSpec.ByEntity(entity=session.object(vim.VirtualMachine, moref), recursion="self"),
        time=_event.EventFilterSpec.ByTime(beginTime=datetime.fromisoformat(since)),
    )
    found = session.call(session.content.eventManager.QueryEvents, spec) or []
    on = [each for each in found if isinstance(each, (vim.event.VmPoweredOnEvent, vim.event.VmResumingEvent))]
    return [
        f"it was switched on at {each.createdTime:%Y-%m-%d %H:%M:%S} UTC by {each.userName or 'nobody known'}"
        for each in sorted(on, key=lambda each: each.createdTime)
    ]
