"""``configuration`` of a manifest, applied to a mounted Linux guest; each part is told as it reads back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from hyperflow.kvmhost.guest import addresses, hostname, services, users
from hyperflow.kvmhost.guest.addresses import Network
from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.guest.hostname import Hostname
from hyperflow.kvmhost.guest.services import Services
from hyperflow.kvmhost.guest.users import User
from hyperflow.kvmhost.stage import BadRequest, Job, read_as


@dataclass(frozen=True)
class Configuration:
    """What is to be set; a part that is absent changes nothing.

    :param users: by name
    """

    users: dict[str, User] = field(default_factory=dict)
    services: Optional[Services] = None  # noqa: UP045 - read at run time, by Python 3.9 too
    hostname: Optional[Hostname] = None  # noqa: UP045 - as above
    network: Optional[Network] = None  # noqa: UP045 - as above


def of_manifest(manifest: Mapping[str, Any]) -> Configuration:
    """Read what a manifest's document wants; it is told by none but the manifest, for it may hold passwords' hashes.

    :raises BadRequest: with every fault
    """
    document = manifest.get("configuration")
    if document is None:
        return Configuration()
    wanted = read_as(Configuration, document, "configuration")
    check(wanted)
    return wanted


def check(wanted: Configuration) -> None:
    """Refuse values that would be more than one word or line where they are written.

    The manifest's schema refuses them too; this stage runs as root and takes a manifest by hand as well.

    :raises BadRequest: with every fault
    """
    faults = users.faults(wanted.users)
    for part in (wanted.services, wanted.hostname, wanted.network):
        if part is not None:
            faults += part.faults()
    if faults:
        raise BadRequest("; ".join(f"configuration.{fault}" for fault in faults))


def apply(files: GuestFiles, changes: Changes, wanted: Configuration, job: Job) -> dict[str, Any]:
    """Set what is wanted, part by part; what was read back of each.

    :raises StageError: what this guest cannot have, or what does not read back
    """
    observed: dict[str, Any] = {}
    if wanted.hostname is not None:
        observed["hostname"] = hostname.apply(files, changes, wanted.hostname)
    if wanted.users:
        observed["users"] = users.apply(files, changes, wanted.users, job)
    if wanted.network is not None:
        observed["network"] = addresses.apply(files, changes, wanted.network, job)
    if wanted.services is not None:
        observed["services"] = services.apply(files, changes, wanted.services)
    for part in observed:
        job.log(f"configuration: {part} set and read back")
    return observed
