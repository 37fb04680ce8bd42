"""Start the migrated domain for good, ask it whether it is well, and have it start with its host from then on."""

from __future__ import annotations

import json
import socket
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from typing import Any, Optional

from hyperflow.kvmhost import arp, domains
from hyperflow.kvmhost.stage import BadRequest, Job, StageError

POLL = 2.0  # seconds between two rounds of questions
ANSWER = 1.0  # seconds one answer is waited for
TOLD_EVERY = 20.0  # seconds between two lines about what is still missing


@dataclass(frozen=True)
class Address:
    """An address that must answer.

    :param mac: from which MAC; None when any of the domain's own will do
    """

    address: str
    mac: Optional[str] = None  # noqa: UP045 - read at run time, by Python 3.9 too


@dataclass(frozen=True)
class Options:
    """What to start, and what it must answer.

    :param vm: whose domain it must be
    :param addresses: asked by ARP on the bridge of the domain's networks
    :param ports: TCP, asked from this host on each address
    :param guest_agent: the QEMU guest agent must answer
    """

    uuid: str
    vm: str
    timeout_seconds: float
    addresses: list[Address] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    guest_agent: bool = False
    uri: str = field(default="qemu:///system")


def run(options: Options, job: Job) -> dict[str, Any]:
    """Start the domain, and wait until everything that it must answer has answered in one round.

    A domain that runs already, from an earlier try, is only asked.

    :return: ``{"name", "uuid", "seconds", "was_running", "answers": {what: answer}, "asked": [what], "autostart"}``
    :raises BadRequest: the domain is not there, or another's
    :raises StageError: it does not start, stops again, or does not answer in time
    """
    domain = _own_domain(options)
    was_running = _state(options) == "running"
    if not was_running:
        job.log(f"start: starting {domain.name}")
        domains.virsh(options.uri, "start", options.uuid.lower())
    begun = time.monotonic()
    bridges = _bridges(domains.virsh(options.uri, "dumpxml", options.uuid.lower()))
    asked = _asked(options, bridges, job)
    told = begun
    while True:
        state = _state(options)
        if state != "running":
            raise StageError(f"{domain.name}: it was started, and is {state} after {time.monotonic() - begun:.0f} s")
        answers = {what: answer for what, ask in asked.items() if (answer := ask()) is not None}
        seconds = time.monotonic() - begun
        missing = sorted(asked.keys() - answers.keys())
        if not missing:
            job.log(f"start: {domain.name} is well after {seconds:.0f} s: {'; '.join(answers.values()) or 'it runs'}")
            return {
                "name": domain.name,
                "uuid": domain.uuid,
                "seconds": round(seconds, 1),
                "was_running": was_running,
                "answers": answers,
                "asked": sorted(asked),
                "autostart": _start_with_host(options, job),
            }
        if seconds > options.timeout_seconds:
            raise StageError(
                f"{domain.name} runs and is not well after {seconds:.0f} s: no answer from {', '.join(missing)}"
                + (f"; answered: {', '.join(answers.values())}" if answers else "")
            )
        if time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            job.log(f"start: {seconds:.0f} s, no answer yet from {', '.join(missing)}")
        time.sleep(POLL)


def _start_with_host(options: Options, job: Job) -> bool:
    """Have the domain start with its host, as vSphere's high availability had its source; read back."""
    uuid = options.uuid.lower()
    try:
        domains.virsh(options.uri, "autostart", uuid)
    except StageError as fault:
        job.warn(f"it will not start again after a reboot of this host: {fault}")
        return False
    return any(
        line.split() == ["Autostart:", "enable"] for line in domains.virsh(options.uri, "dominfo", uuid).splitlines()
    )


def _own_domain(options: Options) -> domains.Domain:
    uuid = options.uuid.lower()
    if not domains.UUID.fullmatch(uuid):
        raise BadRequest(f"options.uuid: found {options.uuid!r}, expected a UUID")
    for domain in domains.every_domain(options.uri):
        if domain.uuid == uuid:
            if domain.vm != options.vm or not options.vm:
                raise BadRequest(
                    f"domain {domain.name}: found it of {domain.vm or 'nobody known'}, expected {options.vm}"
                )
            return domain
    raise BadRequest(f"options.uuid: found no domain {uuid} in libvirt, expected the one that define has defined")


def _state(options: Options) -> str:
    return domains.state_of(options.uri, options.uuid.lower())


def _bridges(xml: str) -> dict[str, str]:
    """Tell the bridge that each interface of a running domain is plugged into, by MAC."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt wrote it
    found = {}
    for nic in root.findall("devices/interface"):
        mac, source = nic.find("mac"), nic.find("source")
        if mac is not None and source is not None and source.get("bridge"):
            found[mac.get("address", "").lower()] = str(source.get("bridge"))
    return found


def _asked(options: Options, bridges: dict[str, str], job: Job) -> dict[str, Any]:
    """Make the questions: what is asked -> a function that gives the answer in words, or None."""
    asked: dict[str, Any] = {}
    for one in options.addresses:
        where = [bridges[one.mac.lower()]] if one.mac and one.mac.lower() in bridges else sorted(set(bridges.values()))
        if not where:
            job.warn(f"address {one.address}: the domain is on no bridge of this host, so it cannot be asked")
            continue
        asked[f"address {one.address}"] = _address_question(one, where, sorted(bridges))
        for port in options.ports:
            asked[f"port {one.address}:{port}"] = _port_question(one.address, port)
    if options.guest_agent:
        asked["guest agent"] = lambda: _agent(options)
    if not asked:
        job.warn("nothing could be asked of the started guest: it is only known that its domain runs")
    return asked


def _address_question(one: Address, bridges: list[str], own: list[str]) -> Any:
    expected = [one.mac.lower()] if one.mac else own

    def ask() -> Optional[str]:  # noqa: UP045 - as above
        for bridge in bridges:
            mac = arp.who_has(bridge, one.address, ANSWER)
            if mac is not None and mac not in expected:
                raise StageError(
                    f"address {one.address}: {mac} answers on {bridge}, expected {' or '.join(expected)}. Another "
                    "machine has the address; see that the source is off the network"
                )
            if mac is not None:
                return f"{one.address} at {mac}"
        return None

    return ask


def _port_question(address: str, port: int) -> Any:
    def ask() -> Optional[str]:  # noqa: UP045 - as above
        try:
            with socket.create_connection((address, port), ANSWER):
                return f"{address}:{port} accepts"
        except OSError:
            return None

    return ask


def _agent(options: Options) -> Optional[str]:  # noqa: UP045 - as above
    request = json.dumps({"execute": "guest-ping"})
    try:
        domains.virsh(options.uri, "qemu-agent-command", "--timeout", "5", options.uuid.lower(), request)
    except StageError:
        return None
    return "its guest agent"
