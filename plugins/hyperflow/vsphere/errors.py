"""What can go wrong at a vCenter, each with a message that says what to do about it."""

from __future__ import annotations

import ssl
from http.client import HTTPException
from typing import ClassVar
from xml.parsers.expat import ExpatError

from pyVmomi import vim, vmodl

# What a call raises when no proper answer came: ExpatError is pyVmomi's for an answer that is no XML.
TRANSPORT_FAULTS = (OSError, HTTPException, ExpatError)


class VsphereError(Exception):
    """Something at the vCenter is not as it must be.

    :cvar temporary: true when the same call may succeed later, so that a caller may try again
    """

    temporary: ClassVar[bool] = False


class NotFound(VsphereError):
    """The named thing is not in the inventory, or this user may not see it."""


class Ambiguous(VsphereError):
    """A name fits several virtual machines."""


class LoginFailed(VsphereError):
    """User name or password refused. Never tried again: every attempt counts towards the account's
    lockout.
    """


class CertificateUntrusted(VsphereError):
    """The server's certificate is neither trusted nor the pinned one. No credentials were sent.

    :ivar thumbprint: SHA-256 of the certificate that was found, hex pairs with colons; None when unknown
    """

    def __init__(self, message: str, thumbprint: str | None = None) -> None:
        super().__init__(message)
        self.thumbprint = thumbprint


class Unreachable(VsphereError):
    """No answer from the server, or no answer that a vCenter gives."""

    temporary = True


class PermissionMissing(VsphereError):
    """The user lacks a privilege; the message names it."""


class Busy(VsphereError):
    """Another operation holds the virtual machine."""

    temporary = True


class TimeLimitReached(VsphereError):
    """vCenter did not finish in the time allowed; the operation may still be going on there."""

    temporary = True


class TaskUnfinished(TimeLimitReached):
    """A vCenter task did not end in the time allowed. Not tried again by itself: the next try would wait as long."""

    temporary = False


class ShutdownTimedOut(TimeLimitReached):
    """The guest was asked to shut down and still runs at the deadline. Nothing was forced, nothing tries again."""

    temporary = False


class ToolsNotRunning(VsphereError):
    """VMware Tools does not run in the guest, so the guest cannot be asked anything."""


class WrongPowerState(VsphereError):
    """The virtual machine is in a power state from which this cannot be done."""


class NicsChanged(VsphereError):
    """The network adapters are others than those recorded; nothing was changed."""


class NameTaken(VsphereError):
    """Something else in the folder has the name already."""


class SessionEnded(VsphereError):
    """vCenter ended the session more often than one call bears."""

    temporary = True


class TaskFailed(VsphereError):
    """A vCenter task ended with an error; ``fault`` is vSphere's own, where it gave one."""

    def __init__(self, message: str, fault: Exception | None = None) -> None:
        super().__init__(message)
        self.fault = fault


class NotOurs(VsphereError):
    """A snapshot was not created by this run of Hyperflow, so it is not touched."""


class LeaseError(VsphereError):
    """An export lease could not be had or failed."""


class LeaseBusy(LeaseError, Busy):
    """Another lease or operation holds the virtual machine; try again later."""


class LeaseLost(LeaseError):
    """The lease is gone: completed, aborted, timed out, or its session ended. Only a new one helps."""

    temporary = True


def from_fault(fault: Exception, host: str) -> VsphereError:
    """Say in this module's terms what pyVmomi or the network raised.

    :param fault: a vSphere fault, or one of :data:`TRANSPORT_FAULTS`
    :param host: the server's name, for the message
    """
    if isinstance(fault, VsphereError):
        return fault
    if isinstance(fault, vmodl.fault.ManagedObjectNotFound):
        return NotFound(f"{moref_of(fault.obj)} is no longer in the inventory of {host} ({describe(fault)})")
    if isinstance(fault, vim.fault.NoPermission):
        return _no_permission(fault, host)
    if isinstance(fault, (vim.fault.TaskInProgress, vim.fault.InvalidState)):
        return Busy(
            f"{host} refuses the operation in the virtual machine's present state, often because another "
            f"one is going on: {describe(fault)}. See its recent tasks, then try again"
        )
    if isinstance(fault, TRANSPORT_FAULTS):
        return _no_answer(fault, host)
    return VsphereError(f"{host} answered: {describe(fault)}")


def _no_answer(fault: Exception, host: str) -> VsphereError:
    if isinstance(fault, ssl.SSLCertVerificationError):
        return CertificateUntrusted(f"the certificate of {host} is no longer trusted: {fault.verify_message}")
    return Unreachable(f"the connection to {host} failed: {type(fault).__name__}: {fault}")


def describe(fault: Exception) -> str:
    """Say a fault in one line: its type and every text the server gave, without pyVmomi's multi-line dump."""
    texts = [getattr(fault, "msg", None) or ""]
    texts += [message.message or "" for message in getattr(fault, "faultMessage", None) or []]
    reason = getattr(fault, "reason", None)
    texts.append(reason if isinstance(reason, str) else "")
    seen = list(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))
    return ": ".join([type(fault).__name__.rsplit(".", 1)[-1], *seen])


def moref_of(reference: object) -> str:
    """The MoRef of a managed object, such as ``vm-42``."""
    return str(getattr(reference, "_moId", reference))


def _no_permission(fault: vim.fault.NoPermission, host: str) -> VsphereError:
    if isinstance(fault, vim.fault.NotAuthenticated):
        return SessionEnded(f"{host} ended the session again, right after a new login ({describe(fault)})")
    return PermissionMissing(_missing_privilege(fault, host))


def _missing_privilege(fault: vim.fault.NoPermission, host: str) -> str:
    where = moref_of(fault.object) if fault.object is not None else "an object"
    privileges = [fault.privilegeId] if fault.privilegeId else []
    for missing in getattr(fault, "missingPrivileges", None) or []:
        privileges += missing.privilegeIds or []
    names = ", ".join(dict.fromkeys(privileges)) or "(not named)"
    return (
        f"the user lacks the privilege {names} on {where} at {host}. Add it to the user's role and see that "
        "the role is granted there with 'Propagate to children'; docs/vcenter.md lists every privilege and "
        "what it is for"
    )
