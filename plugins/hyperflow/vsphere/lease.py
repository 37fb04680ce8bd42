"""Export leases: the URLs from which the disks of a snapshot (or of a VM that is off) can be downloaded.

A lease belongs to the session that opened it: it ends when that session does, and after ``leaseTimeout``
(300 seconds) without :meth:`Lease.keep_alive`. The URLs carry a ticket that needs no login, so they are
secrets.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from pyVmomi import vim, vmodl

from hyperflow.vsphere.devices import Names, read_disks
from hyperflow.vsphere.errors import (
    LeaseBusy,
    LeaseError,
    LeaseLost,
    NotFound,
    VsphereError,
    describe,
    from_fault,
    moref_of,
)
from hyperflow.vsphere.facts import DiskFacts
from hyperflow.vsphere.properties import first_refusal, retrieve, wait_until
from hyperflow.vsphere.session import Session

log = logging.getLogger(__name__)

HTTPS_PORT = 443

_system_error: Any = vmodl.fault.SystemError  # pyVmomi's constructors are not typed

# "/vm-42/ParaVirtualSCSIController0:1": type of the controller, its number, the disk's unit on it
_DEVICE = re.compile(r"/(?P<controller>[A-Za-z]+Controller)(?P<number>\d+):(?P<unit>\d+)$")

_BUSY_FAULTS = (
    vim.fault.TaskInProgress,
    vim.fault.ConcurrentAccess,
    vim.fault.FileLocked,
    vim.fault.InvalidState,
)


@dataclass(frozen=True)
class LeaseDisk:
    """Where one disk can be downloaded.

    :ivar key: the lease's own key of the URL
    :ivar disk_key: key of the virtual device, as in :class:`~hyperflow.vsphere.facts.DiskFacts`
    :ivar url: with a ticket that lets anyone download the disk, so it is not part of ``repr``
    :ivar thumbprint: SHA-1 or SHA-256 of the serving host's certificate, when vCenter tells it
    :ivar file_size: bytes of the download; None when unknown, as it is most often
    :ivar target_id: the file's name in the lease
    :ivar matched_by: how the URL was put to its disk: device, file or order
    """

    key: str
    disk_key: int
    url: str = field(repr=False)
    thumbprint: str | None
    file_size: int | None
    target_id: str | None
    matched_by: str


class Lease:
    """An open lease; a context manager that aborts it unless it was completed. Threads may share it.

    :ivar source: MoRef of the snapshot or VM that is exported
    :ivar disks: one entry for each disk that can be downloaded
    :ivar timeout: seconds the lease lives without :meth:`keep_alive`
    """

    def __init__(
        self, session: Session, reference: Any, *, source: str, disks: Sequence[LeaseDisk], timeout: int
    ) -> None:
        self.source = source
        self.disks = tuple(disks)
        self.timeout = timeout
        self._session = session
        self._reference = reference
        self._ended = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Lease({self.moref!r} of {self.source}, {len(self.disks)} disks)"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.abort(f"{kind.__name__}: the export failed" if kind else "the export was not completed")
        except VsphereError as failed:  # must not hide why the export ended; the lease times out by itself
            log.warning("the lease of %s could not be aborted: %s", self.source, failed)

    @property
    def moref(self) -> str:
        """The lease's MoRef, without the key of the session that vCenter puts in front of it; for the log."""
        return moref_of(self._reference).rpartition("]")[2]

    def disk(self, disk_key: int) -> LeaseDisk:
        """The download of one disk.

        :raises LeaseError: when vCenter offers none, as for an independent disk
        """
        for each in self.disks:
            if each.disk_key == disk_key:
                return each
        offered = ", ".join(str(each.disk_key) for each in self.disks) or "none"
        raise LeaseError(
            f"vCenter offers no download for the disk with key {disk_key} (offered: {offered}). Independent "
            "disks and physical raw device mappings are left out of an export"
        )

    def keep_alive(self, percent: int) -> None:
        """Tell vCenter that the download goes on; at least every half of :attr:`timeout`.

        :param percent: done so far, shown in vCenter's task list
        :raises LeaseLost: when there is no lease any more
        """
        self._call(self._reference.HttpNfcLeaseProgress, max(0, min(100, percent)))

    def state(self) -> str:
        """``initializing``, ``ready``, ``done``, ``error``; ``gone`` when vCenter no longer has it."""
        try:
            (found,) = retrieve(self._session, [self._reference], {vim.HttpNfcLease: ["state"]})
        except NotFound:
            return "gone"
        return str(found.get("state", "gone"))

    def complete(self) -> None:
        """End the lease as a success. Does nothing when it was ended here already.

        :raises LeaseLost: when there is no lease any more
        """
        with self._lock:
            if not self._ended:
                self._call(self._reference.HttpNfcLeaseComplete)
                self._ended = True

    def abort(self, reason: str) -> None:
        """End the lease as a failure. Does nothing when it has ended already.

        :param reason: shown in vCenter's task list; no secrets
        """
        with self._lock:
            if self._ended:
                return
            try:
                self._call(self._reference.HttpNfcLeaseAbort, _system_error(reason=reason))
            except LeaseLost:
                log.info("the lease of %s was gone already", self.source)
            self._ended = True

    def _call(self, function: Any, *arguments: Any) -> None:
        try:
            self._session.call(function, *arguments)
        except VsphereError as fault:
            if not isinstance(fault, NotFound) and not isinstance(fault.__cause__, vim.fault.Timedout):
                raise
            # Without the fault's own text: it names the lease, and with it the session.
            raise LeaseLost(
                f"the export lease of {self.source} at {self._session.host} is gone: it timed out after "
                f"{self.timeout} seconds without a sign of life, was ended there, or its session was. Open "
                "a new one and download the disk again"
            ) from None


def open_lease(session: Session, moref: str, *, time_limit: float = 300) -> Lease:
    """Open an export lease and wait until its URLs are there.

    :param moref: of a snapshot (``snapshot-7``: ExportSnapshot, the VM may run) or of a VM that is off
        (``vm-42``: ExportVm)
    :param time_limit: seconds to wait
    :raises LeaseBusy: another lease or operation holds the VM; to be tried again
    :raises LeaseError: vCenter's reason is in the message
    """
    is_snapshot = "snapshot" in moref
    kind = vim.vm.Snapshot if is_snapshot else vim.VirtualMachine
    source = session.object(kind, moref)
    (found,) = retrieve(session, [source], {kind: ["config.hardware.device"]})
    devices = found.get("config.hardware.device")
    if devices is None:
        raise first_refusal(session, found) or LeaseError(f"{session.host} has no configuration of {moref}")
    reference = _ask(session, source.ExportSnapshot if is_snapshot else source.ExportVm, moref)
    try:
        info = _wait_ready(session, reference, moref, time_limit)
        disks = match_urls(list(info.deviceUrl or []), list(devices), session.host, session.port)
    except BaseException:
        Lease(session, reference, source=moref, disks=(), timeout=0).__exit__(None, None, None)
        raise
    return Lease(session, reference, source=moref, disks=disks, timeout=int(info.leaseTimeout))


def match_urls(urls: Sequence[Any], devices: Sequence[Any], host: str, port: int = HTTPS_PORT) -> list[LeaseDisk]:
    """Put each of a lease's URLs to the virtual disk that it serves.

    By controller, its number and the unit in the URL's key, as vCenter writes it; else by the file's name, as
    govmomi's simulator does; else by order, when there are as many URLs as disks.

    :param urls: ``HttpNfcLeaseInfo.deviceUrl``
    :param devices: ``config.hardware.device`` of what is exported
    :param host: stands in for ``*`` in a URL
    :raises LeaseError: when none of the three is certain: a wrong guess would mix up the disks
    """
    wanted = [url for url in urls if url.disk]
    disks = {disk.key: disk for disk in read_disks(devices, (), Names({}, {}))}
    in_order = [disks[device.key] for device in devices if device.key in disks]
    order = [disk.key for disk in in_order] if len(in_order) == len(wanted) else None
    # The API reference does not say what the number after the controller's type is. Of other clients, some
    # take the bus number and some count the controllers of that type; they differ where types are mixed.
    by_bus = _all_certain([_by_place(url, _places_by_bus(in_order)) for url in wanted])
    by_count = _all_certain([_by_place(url, _places_by_count(in_order)) for url in wanted])
    if by_bus and by_count and by_bus != by_count:
        by_device = order if order in (by_bus, by_count) else None
    else:
        by_device = by_bus or by_count
    by_file = _all_certain([_by_file(url, in_order) for url in wanted])
    for how, keys in (("device", by_device), ("file", by_file), ("order", order)):
        if keys is not None:
            return [_lease_disk(url, key, how, host, port) for url, key in zip(wanted, keys, strict=True)]
    shown = ", ".join(str(url.key) for url in wanted)
    raise LeaseError(
        f"it is not certain which download is which disk: {len(in_order)} disks, downloads {shown}. Please "
        "report this with the machine's list of controllers and disks"
    )


def _all_certain(keys: Sequence[int | None]) -> list[int] | None:
    """The keys when each is known and no two are the same."""
    known = [key for key in keys if key is not None]
    return known if len(known) == len(keys) == len(set(known)) else None


_Place = tuple[str, int, int]  # controller's type, number, unit


def _places_by_bus(disks: Sequence[DiskFacts]) -> dict[_Place, int]:
    return {(disk.controller, disk.bus_number, disk.unit): disk.key for disk in disks}


def _places_by_count(disks: Sequence[DiskFacts]) -> dict[_Place, int]:
    """The number is the how many-th controller of its type it is, by bus number, from 0."""
    buses = {kind: sorted({disk.bus_number for disk in disks if disk.controller == kind}) for kind in _kinds(disks)}
    return {(disk.controller, buses[disk.controller].index(disk.bus_number), disk.unit): disk.key for disk in disks}


def _kinds(disks: Sequence[DiskFacts]) -> set[str]:
    return {disk.controller for disk in disks}


def _by_place(url: Any, places: Mapping[_Place, int]) -> int | None:
    for name in (url.key, url.importKey):
        match = _DEVICE.search(name or "")
        if match:
            return places.get((match["controller"], int(match["number"]), int(match["unit"])))
    return None


def _by_file(url: Any, disks: Sequence[DiskFacts]) -> int | None:
    if not url.targetId:
        return None
    found = [disk.key for disk in disks if disk.file and re.split(r"[/ ]", disk.file)[-1] == url.targetId]
    return found[0] if len(found) == 1 else None


def _lease_disk(url: Any, disk_key: int, how: str, host: str, port: int) -> LeaseDisk:
    return LeaseDisk(
        key=str(url.key),
        disk_key=disk_key,
        url=_reachable(str(url.url), host, port),
        thumbprint=url.sslThumbprint or None,
        file_size=int(url.fileSize) if url.fileSize else None,
        target_id=url.targetId or None,
        matched_by=how,
    )


def _reachable(url: str, host: str, port: int) -> str:
    """The URL with ``*`` replaced by the address of the connection, as the API reference asks of a client."""
    parts = urlsplit(url)
    if parts.scheme != "https":
        raise LeaseError(f"the lease offers a download by {parts.scheme!r}; only https is taken")
    name, _, given_port = parts.netloc.rpartition(":") if ":" in parts.netloc else (parts.netloc, "", "")
    if name != "*":
        return url
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    at = given_port or (str(port) if port != HTTPS_PORT else "")
    return urlunsplit(parts._replace(netloc=f"{shown}:{at}" if at else shown))


def _ask(session: Session, function: Any, moref: str) -> Any:
    try:
        return session.call(function)
    except VsphereError as fault:
        if isinstance(fault.__cause__, vmodl.MethodFault):
            raise lease_error(fault.__cause__, moref, session.host) from fault.__cause__
        raise


def _wait_ready(session: Session, reference: Any, moref: str, time_limit: float) -> Any:
    def done(known: dict[str, Any]) -> bool:
        return known.get("state") in ("ready", "error", "done")

    what = f"preparing the export of {moref}"
    try:
        known = wait_until(session, reference, ["state", "error", "info"], done, time_limit=time_limit, what=what)
    except NotFound:
        raise LeaseLost(f"the lease for {moref} was gone before it was ready; open a new one") from None
    if known["state"] != "ready":
        reason = known.get("error") or _system_error(reason=f"lease state {known['state']}")
        raise lease_error(reason, moref, session.host)
    return known["info"]


def lease_error(fault: Exception, moref: str, host: str) -> VsphereError:
    """The right error for vSphere's reason not to open a lease: wrong power state, busy, or others."""
    if isinstance(fault, vim.fault.InvalidPowerState):
        return LeaseError(
            f"{moref} can not be exported in its power state ({fault.existingState}; needed: "
            f"{fault.requestedState}). Export a snapshot of it, or shut it down"
        )
    if isinstance(fault, _BUSY_FAULTS):
        return LeaseBusy(
            f"{host} can not open an export of {moref} now: {describe(fault)}. Another export, backup or "
            "task "
            "holds it; try again when that has ended"
        )
    if isinstance(fault, (vim.fault.NoPermission, vmodl.fault.ManagedObjectNotFound)):
        return from_fault(fault, host)
    return LeaseError(f"{host} could not prepare the export of {moref}: {describe(fault)}")
