"""Reading properties by path, in as few round trips as there can be, and waiting for them to change.

By path, because a whole data object fails to parse when the server holds one enum value that pyVmomi does
not know (the simulator's ``runtime``), and because attribute access on managed objects costs a round trip
each.
"""

from __future__ import annotations

import contextlib
import time
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from hyperflow.vsphere.errors import TimeLimitReached, VsphereError, from_fault, moref_of
from hyperflow.vsphere.session import Session

PAGE = 500  # objects in one answer
LONGEST_WAIT = 20  # seconds one WaitForUpdatesEx may hang; well below a session's time limit for an answer

collector: Any = vmodl.query.PropertyCollector  # pyVmomi's data objects have no typed constructors


@dataclass(frozen=True)
class Found:
    """One managed object and those of the asked properties that it has."""

    moref: str
    kind: str  # "VirtualMachine", "Folder"
    reference: Any
    properties: dict[str, Any]
    refused: dict[str, Exception]  # property -> the fault that stands in its place

    def get(self, path: str, default: Any = None) -> Any:
        """The value of a property, or ``default`` where the object has none."""
        value = self.properties.get(path)
        return default if value is None else value


def retrieve(
    session: Session, start: Iterable[Any], paths: dict[type[Any], list[str]], traversals: Iterable[Any] = ()
) -> list[Found]:
    """Read properties of objects and of those reached from them. One round trip up to :data:`PAGE` objects.

    :param start: managed objects
    :param paths: properties by type
    :param traversals: selection specs that lead from ``start`` to further objects
    :raises NotFound: when a start object does not exist
    """
    filter_spec = _filter(start, paths, list(traversals))
    return session.call(_retrieve_pages, session, filter_spec)


def list_all(session: Session, kind: type[Any], paths: list[str]) -> list[Found]:
    """Read properties of every object of a type in the inventory, through a view that is destroyed again."""

    def read() -> list[Found]:
        view = session.content.viewManager.CreateContainerView(session.content.rootFolder, [kind], True)
        try:
            members = collector.TraversalSpec(name="members", type=vim.view.ContainerView, path="view", skip=False)
            return _retrieve_pages(session, _filter([view], {kind: paths}, [members], skip=True))
        finally:
            view.Destroy()

    return session.call(read)


def wait_until(
    session: Session,
    watched: Any,
    paths: list[str],
    done: Callable[[dict[str, Any]], bool],
    *,
    time_limit: float,
    what: str,
) -> dict[str, Any]:
    """Wait until the properties of an object satisfy ``done``, by the server's updates and not by polling.

    :param done: gets the properties known so far after every change; may raise to end the wait
    :param time_limit: seconds
    :return: the properties
    :raises TimeLimitReached: naming ``what``
    """
    deadline = time.monotonic() + time_limit

    def wait() -> dict[str, Any]:
        known: dict[str, Any] = {}
        # A collector of its own: versions of the session's common one would mix between threads.
        own = session.content.propertyCollector.CreatePropertyCollector()
        try:
            own.CreateFilter(_filter([watched], {type(watched): paths}, []), partialUpdates=False)
            version = ""
            while not done(known):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeLimitReached(f"{session.host} did not finish {what} within {time_limit:g} seconds")
                seconds = max(1, int(min(left, LONGEST_WAIT, session.timeout / 2)))
                updates = own.WaitForUpdatesEx(version, collector.WaitOptions(maxWaitSeconds=seconds))
                if updates is not None:
                    version = updates.version
                    _merge(updates, known)
        finally:
            _destroy(own)
        return known

    return session.call(wait)


def _gone(reference: Any) -> Exception:
    fault: Any = vmodl.fault.ManagedObjectNotFound
    return typing.cast(Exception, fault(obj=reference))


def _destroy(own: Any) -> None:
    # It ends with the session anyway, and must not hide what happened before.
    with contextlib.suppress(vmodl.MethodFault, OSError):
        own.DestroyPropertyCollector()


def _merge(updates: Any, known: dict[str, Any]) -> None:
    for filter_set in updates.filterSet or []:
        for changed in filter_set.objectSet or []:
            if changed.kind == "leave":
                raise _gone(changed.obj)
            for change in changed.changeSet or []:
                known[change.name] = change.val


def _filter(start: Iterable[Any], paths: dict[type[Any], list[str]], traversals: list[Any], skip: bool = False) -> Any:
    return collector.FilterSpec(
        objectSet=[collector.ObjectSpec(obj=each, skip=skip, selectSet=traversals) for each in start],
        propSet=[collector.PropertySpec(type=kind, all=False, pathSet=names) for kind, names in paths.items()],
    )


def _retrieve_pages(session: Session, filter_spec: Any) -> list[Found]:
    common = session.content.propertyCollector
    answer = common.RetrievePropertiesEx([filter_spec], collector.RetrieveOptions(maxObjects=PAGE))
    found: list[Found] = []
    while answer is not None:
        found += [_found(session, each) for each in answer.objects or []]
        answer = common.ContinueRetrievePropertiesEx(answer.token) if answer.token else None
    return found


def _found(session: Session, content: Any) -> Found:
    refused = {missing.path: missing.fault for missing in content.missingSet or []}
    for fault in refused.values():
        if isinstance(fault, vim.fault.NotAuthenticated):
            raise fault  # a session that ended is told property by property too; session.call logs in again
    values = {each.name: each.val for each in content.propSet or []}
    kind = str(type(content.obj)._wsdlName)
    return Found(moref_of(content.obj), kind, content.obj, values, refused)


def first_refusal(session: Session, found: Found) -> VsphereError | None:
    """The error for the first property that the server refused to show, if any."""
    for fault in found.refused.values():
        return from_fault(fault, session.host)
    return None
