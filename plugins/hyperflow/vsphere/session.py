"""A session at a vCenter: trust first, then one login, relogin when vCenter ended it, logout always."""

from __future__ import annotations

import http.client
import logging
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from xml.etree import ElementTree

from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import GetServiceVersions, versionIdMap

from hyperflow.vsphere.certificate import presented_thumbprint, trust_context, untrusted
from hyperflow.vsphere.errors import (
    TRANSPORT_FAULTS,
    LoginFailed,
    Unreachable,
    VsphereError,
    describe,
    from_fault,
)
from hyperflow.vsphere.observed import Change, ObservedStub, Observer

log = logging.getLogger(__name__)

# pyVmomi says that it is typed, but these are not.
_make_stub: Any = ObservedStub
_make_service_instance: Any = vim.ServiceInstance
_versions_newest_first: Any = GetServiceVersions

Result = TypeVar("Result")

VERSIONS_PATH = "/sdk/vimServiceVersions.xml"
VERSIONS_LIMIT = 1024 * 1024  # bytes; the real one has some 3 kB
IDLE_SECONDS = 30  # an idle pooled connection older than this is not used again: the server may have closed it


def connect(
    host: str,
    port: int = 443,
    *,
    user: str,
    password: str,
    thumbprint: str | None = None,
    ca_file: Path | str | None = None,
    timeout: float = 60.0,
    observer: Observer | None = None,
) -> Session:
    """Log in to a vCenter (or a lone ESXi host).

    :param thumbprint: SHA-256 or SHA-1 of the server's certificate in hex, colons optional: exactly this
        certificate is trusted, whoever signed it and whatever name it carries
    :param ca_file: PEM file of the authorities to trust instead of the system's
    :param timeout: seconds any single answer may take
    :param observer: is told of each call that changes something
    :raises CertificateUntrusted: before any credentials are sent
    :raises LoginFailed: after exactly one attempt
    :raises Unreachable: when there is no vCenter at this address
    """
    context = trust_context(thumbprint, ca_file)
    version = _newest_common_version(host, port, context, timeout)
    stub = _make_stub(
        host,
        port,
        version=version,
        path="/sdk",
        sslContext=context,
        httpConnectionTimeout=timeout,
        connectionPoolTimeout=IDLE_SECONDS,
    )
    stub.observer = observer
    session = Session(host, port, user=user, password=password, stub=stub, timeout=timeout)
    session.login()
    return session


class Session:
    """A logged-in session; a context manager that logs out at the end. May be used by several threads.

    :ivar host: name or address the connection was made to
    :ivar content: pyVmomi's ServiceContent
    """

    def __init__(self, host: str, port: int, *, user: str, password: str, stub: Any, timeout: float) -> None:
        self.host = host
        self.port = port
        self.user = user
        self.timeout = timeout
        self.content: Any = None
        self._password = password
        self._stub = stub
        self._login_lock = threading.Lock()
        self._logins = 0

    def __repr__(self) -> str:
        return f"Session({self.user!r} at {self.host}:{self.port})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.logout()

    @property
    def about(self) -> dict[str, str]:
        """Product, version and build of the server, for reports."""
        about = self.content.about
        names = {
            "name": "fullName",
            "version": "version",
            "build": "build",
            "api": "apiVersion",
            "kind": "apiType",
        }
        return {key: str(getattr(about, attribute) or "") for key, attribute in names.items()}

    def login(self) -> None:
        """Log in once, with one attempt.

        :raises LoginFailed: user or password refused, expired, or without any right
        """
        try:
            self.content = _make_service_instance("ServiceInstance", self._stub).RetrieveContent()
            self.content.sessionManager.Login(self.user, self._password, "en_US")
        except (vim.fault.InvalidLogin, vim.fault.PasswordExpired, vim.fault.NoPermission) as fault:
            self._stub.DropConnections()
            raise LoginFailed(
                f"{self.host} refuses the user {self.user!r} or the password ({describe(fault)}). It was "
                "tried once and will not be tried again, because vCenter locks an account after a few "
                "failures. Correct the login of the connection (the user name with its domain, such as "
                "hyperflow@vsphere.local) and see that the user has a role in vCenter"
            ) from None  # the fault's dump could repeat what was sent
        except vim.fault.InvalidLocale as fault:
            raise VsphereError(f"{self.host} does not know the locale en_US: {describe(fault)}") from fault
        except (vmodl.MethodFault, *TRANSPORT_FAULTS) as fault:
            raise from_fault(fault, self.host) from fault
        self._logins += 1

    def logout(self) -> None:
        """End the session at vCenter, so that none is left to count against its limit; never raises for
        that.
        """
        try:
            self.content.sessionManager.Logout()
        except (vmodl.MethodFault, *TRANSPORT_FAULTS) as fault:
            log.info("logout from %s: %s", self.host, type(fault).__name__)
        finally:
            self._stub.DropConnections()

    def tell(self, change: Change) -> None:
        """Tell the observer what became of a change, such as of a task that a call has started."""
        if self._stub.observer is not None:
            self._stub.observer(change)

    def object(self, kind: type[Any], moref: str) -> Any:
        """The managed object of a type and MoRef; nothing is asked of the server."""
        return kind(moref, self._stub)

    def call(self, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Call a function that talks to vCenter; once more after a new login when the session had been ended
        there.

        What runs must bear being run from its start again: the session can end in its middle. Objects that
        belong to a session (collectors, views, leases) are gone with it.

        :raises VsphereError: in place of pyVmomi's faults and network errors
        """
        logins = self._logins
        try:
            return function(*arguments, **named)
        except vim.fault.NotAuthenticated:
            self._login_again(logins)
        except (vmodl.MethodFault, *TRANSPORT_FAULTS) as fault:
            raise from_fault(fault, self.host) from fault
        try:
            return function(*arguments, **named)
        except (vmodl.MethodFault, *TRANSPORT_FAULTS) as fault:
            raise from_fault(fault, self.host) from fault

    def _login_again(self, logins_seen: int) -> None:
        """Log in anew, unless another thread already did since this one's call began."""
        with self._login_lock:
            if self._logins == logins_seen:
                log.info("%s ended the session; logging in again", self.host)
                self.login()


def _newest_common_version(host: str, port: int, context: ssl.SSLContext, timeout: float) -> str:
    """The newest API version both sides know. The first request at all, so trust and reachability are judged
    here.

    pyVmomi's SmartConnect does the same, but without a time limit and with a bare Exception for every
    failure.
    """
    connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    try:
        connection.request("GET", VERSIONS_PATH)
        response = connection.getresponse()
        body = response.read(VERSIONS_LIMIT)
    except ssl.SSLCertVerificationError as fault:
        found = presented_thumbprint(host, port, timeout)
        raise untrusted(host, port, fault.verify_message, found) from fault
    except (OSError, http.client.HTTPException) as fault:
        raise Unreachable(
            f"{host}:{port} can not be reached: {_plainly(fault)}. Check the connection's host and port and "
            "that this machine may reach it (curl -kI https://HOST:PORT/sdk)"
        ) from fault
    finally:
        connection.close()
    known = _versions_in(body) if response.status == http.HTTPStatus.OK else set()
    for version in _versions_newest_first("vim25"):
        if versionIdMap[version] in known:
            return str(version)
    raise Unreachable(
        f"{host}:{port} answers, but not as a vCenter or ESXi host (GET {VERSIONS_PATH}: status "
        f"{response.status}). Check the connection's host and port"
    )


def _versions_in(body: bytes) -> set[str]:
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - of a server already trusted, 1 MiB at most
    except ElementTree.ParseError:
        return set()
    return {element.text for element in root.iter("version") if element.text}


def _plainly(fault: Exception) -> str:
    if isinstance(fault, TimeoutError):
        return "no answer in the time allowed"
    if isinstance(fault, ssl.SSLError):
        return f"it does not speak TLS as expected ({fault.reason or fault})"
    return str(fault) or type(fault).__name__
