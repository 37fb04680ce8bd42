"""Take a migrated domain back: stopped, undefined, its images kept."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from hyperflow.kvmhost import domains
from hyperflow.kvmhost.stage import BadRequest, Job, StageError, write_atomically

POLL = 0.5  # seconds
FOLDER = "stopped"  # in the job root: what was undefined, by the attempt that has done it
KEPT = 7 * 86400  # seconds
ATTEMPT = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Options:
    """Which domain.

    :param vm: whose domain it must be; another's is left alone
    :param run: the run that must have defined it; None for any. Another run's is left as well
    :param shutdown_seconds: how long the guest may take to go down by itself; what it wrote is not thrown away lightly
    :param must_run: leave a domain that does not run here: it may run on another host, to which it was moved
    :param begun: an earlier try has found it running here, and has begun to stop it: it may be off by that
    :param attempt: names what is done over its tries; with ``directory``, a later one knows what this one has undefined
    :param directory: the host's job root, which keeps that
    :param only_look: say what would be stopped, and change nothing
    """

    uuid: str
    vm: str
    shutdown_seconds: float = 60.0
    run: Optional[str] = None  # noqa: UP045 - read at run time, by Python 3.9 too
    must_run: bool = False
    begun: bool = False
    attempt: Optional[str] = None  # noqa: UP045
    directory: Optional[Path] = None  # noqa: UP045
    only_look: bool = False
    uri: str = field(default="qemu:///system")


def run(options: Options, job: Job) -> dict[str, Any]:
    """Shut the domain down, end it when it does not, undefine it, and see that it is gone.

    :return: ``{"name": or None, "was": its state or None, "forced": bool}``; without a name nothing was undefined: the
        domain is not there, is of another run and off, or ``must_run`` and does not run
    :raises BadRequest: the domain is another's
    :raises StageError: it is still there, or is another run's and runs
    """
    uuid = options.uuid.lower()
    if not domains.UUID.fullmatch(uuid) or not options.vm:
        raise BadRequest(f"options: found the UUID {options.uuid!r} of {options.vm!r}, expected a UUID and whose it is")
    found = [domain for domain in domains.every_domain(options.uri) if domain.uuid == uuid]
    if not found:
        name = _undefined_before(options)
        job.log(
            f"stop: {f'{name} was undefined by an earlier try' if name else f'no domain {uuid}, nothing to take back'}"
        )
        return {"name": name, "was": None, "forced": False}
    (domain,) = found
    if domain.vm != options.vm:
        raise BadRequest(f"domain {domain.name}: found it of {domain.vm or 'nobody known'}, expected {options.vm}")
    was = _state(options)
    if options.run and domain.run != options.run:
        if was != domains.OFF:
            raise StageError(
                f"domain {domain.name}: it is {was}, and was defined by the run {domain.run or 'nobody knows'}, "
                f"expected {options.run}; stop it yourself (virsh shutdown {domain.name}) if it is not wanted"
            )
        job.log(f"stop: {domain.name} is off, and of the run {domain.run}: it is left as it is")
        return {"name": None, "was": was, "forced": False}
    if options.must_run and was in (domains.OFF, domains.GONE) and (not options.begun or _is_elsewhere(options)):
        return _left(domain.name, was, job)
    if options.only_look:
        job.log(f"stop: {domain.name} is {was}")
        return {"name": domain.name, "was": was, "forced": False}
    forced = was not in (domains.OFF, domains.GONE) and not _shut_down(options, job)
    if options.must_run and _is_elsewhere(options):  # libvirt holds a shutdown back until a migration is over
        return _left(domain.name, "moved to another host meanwhile", job)
    if forced:
        job.warn(f"{domain.name} did not shut down within {options.shutdown_seconds:.0f} s and was switched off")
        _switch_off(options, job)
    _note(options, domain.name)
    domains.undefine(options.uri, domain)
    job.log(f"stop: {domain.name} was {was}, and is undefined; its images are kept")
    return {"name": domain.name, "was": was, "forced": forced}


def _note(options: Options, name: str) -> None:
    """Write down that the domain is off, here, and is about to be undefined. What is old nobody asks for any more."""
    place = _place(options)
    if place is None:
        return
    place.parent.mkdir(mode=0o700, exist_ok=True)
    for other in place.parent.iterdir():
        if time.time() - other.stat().st_mtime > KEPT:
            other.unlink(missing_ok=True)
    write_atomically(place, name)


def _undefined_before(options: Options) -> Optional[str]:  # noqa: UP045
    """The domain's name, where an earlier try has undefined it."""
    place = _place(options)
    return place.read_text() if place is not None and place.exists() else None


def _place(options: Options) -> Optional[Path]:  # noqa: UP045
    if options.attempt is None or options.directory is None:
        return None
    if not ATTEMPT.fullmatch(options.attempt):
        raise BadRequest(f"options.attempt: found {options.attempt!r}, expected 32 hexadecimal digits")
    return options.directory / FOLDER / options.attempt


def _left(name: str, was: str, job: Job) -> dict[str, Any]:
    job.log(f"stop: {name} is {was}, expected it running: it is left as it is")
    return {"name": None, "was": was, "forced": False}


def _shut_down(options: Options, job: Job) -> bool:
    uuid = options.uuid.lower()
    try:
        domains.virsh(options.uri, "shutdown", uuid)
    except StageError as fault:  # such as a domain that is paused after a disk error
        job.log(f"stop: {fault}")
        return _is_off(options)
    end = time.monotonic() + options.shutdown_seconds
    while time.monotonic() < end:
        if _is_off(options):
            return True
        time.sleep(POLL)
    return _is_off(options)


def _switch_off(options: Options, job: Job) -> None:
    try:
        domains.virsh(options.uri, "destroy", options.uuid.lower())
    except StageError as fault:
        if not _is_off(options):  # else its guest went down in this very moment
            raise
        job.log(f"stop: {fault}")


def _is_elsewhere(options: Options) -> bool:
    state = _state(options)
    if state == domains.OFF:
        return "(migrated)" in domains.state_of(options.uri, options.uuid.lower(), reason=True)
    return state == domains.GONE  # one that only shuts down stays defined


def _is_off(options: Options) -> bool:
    return _state(options) in (domains.OFF, domains.GONE)


def _state(options: Options) -> str:
    return domains.state_of(options.uri, options.uuid.lower())
