"""Take a migrated domain back: stopped, undefined, its images kept."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from hyperflow.kvmhost import domains
from hyperflow.kvmhost.stage import BadRequest, Job, StageError

POLL = 0.5  # seconds


@dataclass(frozen=True)
class Options:
    """Which domain.

    :param vm: whose domain it must be; another's is left alone
    :param shutdown_seconds: how long the guest may take to go down by itself; what it wrote is not thrown away lightly
    """

    uuid: str
    vm: str
    shutdown_seconds: float = 60.0
    uri: str = field(default="qemu:///system")


def run(options: Options, job: Job) -> dict[str, Any]:
    """Shut the domain down, end it when it does not, undefine it, and see that it is gone.

    :return: ``{"name": or None, "was": its state or None, "forced": bool}``; a domain that is not there is a success
    :raises BadRequest: the domain is another's
    :raises StageError: it is still there
    """
    uuid = options.uuid.lower()
    if not domains.UUID.fullmatch(uuid) or not options.vm:
        raise BadRequest(f"options: found the UUID {options.uuid!r} of {options.vm!r}, expected a UUID and whose it is")
    found = [domain for domain in domains.every_domain(options.uri) if domain.uuid == uuid]
    if not found:
        job.log(f"stop: no domain {uuid}, nothing to take back")
        return {"name": None, "was": None, "forced": False}
    (domain,) = found
    if domain.vm != options.vm:
        raise BadRequest(f"domain {domain.name}: found it of {domain.vm or 'nobody known'}, expected {options.vm}")
    was = _state(options)
    forced = was != "shut off" and not _shut_down(options, job)
    if forced:
        job.warn(f"{domain.name} did not shut down within {options.shutdown_seconds:.0f} s and was switched off")
        domains.virsh(options.uri, "destroy", uuid)
    domains.undefine(options.uri, domain)
    job.log(f"stop: {domain.name} was {was}, and is undefined; its images are kept")
    return {"name": domain.name, "was": was, "forced": forced}


def _shut_down(options: Options, job: Job) -> bool:
    uuid = options.uuid.lower()
    try:
        domains.virsh(options.uri, "shutdown", uuid)
    except StageError as fault:  # such as a domain that is paused after a disk error
        job.log(f"stop: {fault}")
        return _state(options) == "shut off"
    end = time.monotonic() + options.shutdown_seconds
    while time.monotonic() < end:
        if _state(options) == "shut off":
            return True
        time.sleep(POLL)
    return _state(options) == "shut off"


def _state(options: Options) -> str:
    return domains.virsh(options.uri, "domstate", options.uuid.lower()).strip()
