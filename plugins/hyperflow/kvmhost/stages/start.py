"""Start the migrated domain for good, ask it whether it is well, and have it start with its host from then on."""

from __future__ import annotations

import base64
import json
import shlex
import socket
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Optional

from hyperflow.kvmhost import arp, domains
from hyperflow.kvmhost.probe.evidence import UP
from hyperflow.kvmhost.stage import BadRequest, Job, StageError, one_line

POLL = 2.0  # seconds between two rounds of questions
ANSWER = 1.0  # seconds one answer is waited for
SOON = 0.1  # seconds between two looks at a program that was just started in the guest
TOLD_EVERY = 20.0  # seconds between two lines about what is still missing
SHOWN = 200  # characters of what a guest says: its end, where the reason of a failure stands


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
    :param run: the run that must have defined it, of whose disks it is; None for any
    :param addresses: asked by ARP on the bridge of the domain's networks
    :param ports: TCP, asked from this host on each address, on a bridge or not; without addresses on one that libvirt
        finds the domain to have, as with DHCP
    :param guest_agent: the QEMU guest agent must answer
    :param target_state: systemd in the guest must have come to its target, as the guest agent tells
    :param command: a program and its arguments; run by the guest agent, it must end with 0. None when empty
    """

    uuid: str
    vm: str
    timeout_seconds: float
    addresses: list[Address] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    guest_agent: bool = False
    target_state: bool = False
    command: list[str] = field(default_factory=list)
    run: Optional[str] = None  # noqa: UP045 - as above
    uri: str = field(default="qemu:///system")


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    :param words: the answer, or why there is none
    :param well: whether it is what the target must answer
    :param warning: what a person must know although it is well; nothing when empty
    """

    words: str
    well: bool = True
    warning: str = ""


Question = Callable[[], Answer]


def run(options: Options, job: Job) -> dict[str, Any]:
    """Start the domain, and wait until everything that it must answer has answered in one round.

    A domain that runs already, from an earlier try, is only asked.

    :return: ``{"name", "uuid", "seconds", "was_running", "answers": {what: answer}, "asked": [what], "autostart"}``
    :raises BadRequest: the domain is not there, or another's, or it has no interface to ask ports on; nothing was
        started
    :raises StageError: it does not start, stops again, or does not answer in time
    """
    domain = _own_domain(options)
    _require_askable(options, domain)
    was_running = _state(options) == "running"
    if not was_running:
        job.log(f"start: starting {domain.name}")
        domains.virsh(options.uri, "start", options.uuid.lower())
    begun = time.monotonic()
    bridges = _bridges(domains.virsh(options.uri, "dumpxml", options.uuid.lower()))
    asked = _asked(options, bridges, domain.macs, job)
    told = begun
    while True:
        state = _state(options)
        if state != "running":
            state = domains.state_of(options.uri, options.uuid.lower(), reason=True)
            raise StageError(f"{domain.name}: it was started, and is {state} after {time.monotonic() - begun:.0f} s")
        said = {what: ask() for what, ask in asked.items()}
        seconds = time.monotonic() - begun
        answers = {what: answer.words for what, answer in said.items() if answer.well}
        missing = [f"{what} ({answer.words})" for what, answer in sorted(said.items()) if not answer.well]
        if not missing:
            job.log(f"start: {domain.name} is well after {seconds:.0f} s: {'; '.join(answers.values()) or 'it runs'}")
            for warning in filter(None, (answer.warning for answer in said.values())):
                job.warn(warning)
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
    return domains.starts_with_host(options.uri, uuid)


def _require_askable(options: Options, domain: domains.Domain) -> None:
    """Refuse ports that would be asked nowhere: the target would count as well without them."""
    if options.ports and not options.addresses and not domain.macs:
        raise BadRequest(
            f"options.ports: found {', '.join(map(str, options.ports))} and no address to ask them on: domain "
            f"{domain.name} has no network interface. Ask a command in the guest in their place, "
            "cutover.health.command in the plan"
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
            if options.run and domain.run != options.run:
                raise BadRequest(
                    f"domain {domain.name}: found it defined by the run {domain.run or 'nobody knows'}, expected "
                    f"{options.run}: it has other disks"
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


def _asked(options: Options, bridges: dict[str, str], macs: Collection[str], job: Job) -> dict[str, Question]:
    """Make the questions: what is asked -> who asks it."""
    asked: dict[str, Question] = {}
    for one in options.addresses:
        where = [bridges[one.mac.lower()]] if one.mac and one.mac.lower() in bridges else sorted(set(bridges.values()))
        if where:
            asked[f"address {one.address}"] = _address_question(one, where, sorted(bridges))
        else:
            doubt = "; what accepts at its ports may be another machine" if options.ports else ""
            job.warn(f"address {one.address}: the domain is on no bridge of this host, so it cannot be asked{doubt}")
        for port in options.ports:
            asked[f"port {one.address}:{port}"] = _port_question(one.address, port)
    if options.ports and not options.addresses:
        asked[f"ports {', '.join(map(str, options.ports))}"] = _found_question(options, bridges, macs)
    if options.guest_agent:
        asked["guest agent"] = _agent_question(lambda: _ping(options))
    if options.target_state:
        systemd = InGuest(options, ["systemctl", "is-system-running"])
        asked["target state"] = _agent_question(lambda: _target_state(systemd))
    if options.command:
        program = InGuest(options, options.command)
        asked[f"command {shlex.join(options.command)[:SHOWN]}"] = _agent_question(lambda: _command(program))
    if not asked:
        job.warn("nothing could be asked of the started guest: it is only known that its domain runs")
    return asked


def _address_question(one: Address, bridges: list[str], own: list[str]) -> Question:
    expected = [one.mac.lower()] if one.mac else own

    def ask() -> Answer:
        for bridge in bridges:
            mac = arp.who_has(bridge, one.address, ANSWER)
            if mac is not None and mac not in expected:
                raise StageError(
                    f"address {one.address}: {mac} answers on {bridge}, expected {' or '.join(expected)}. Another "
                    "machine has the address; see that the source is off the network"
                )
            if mac is not None:
                return Answer(f"{one.address} at {mac}")
        return Answer("nobody has it", well=False)

    return ask


def _found_question(options: Options, bridges: dict[str, str], macs: Collection[str]) -> Question:
    """Ask the ports on whichever address libvirt finds the domain to have: all of them must accept on one."""

    def ask() -> Answer:
        found = domains.addresses_of(options.uri, options.uuid.lower(), macs)
        if not found:
            return Answer(
                "libvirt knows no address of it, neither by a lease of its own DHCP nor by the guest agent; name them "
                "in the plan, cutover.health.addresses",
                well=False,
            )
        tried = []
        for address, mac in found.items():
            questions = [_port_question(address, port) for port in options.ports]
            if mac in bridges:  # that it is this guest's: what an agent says is the guest's word
                questions.insert(0, _address_question(Address(address, mac), [bridges[mac]], [mac]))
            answers = [question() for question in questions]
            if all(answer.well for answer in answers):
                return Answer(", ".join(answer.words for answer in answers))
            tried.append(f"{address}: {', '.join(answer.words for answer in answers if not answer.well)}")
        return Answer("; ".join(tried), well=False)

    return ask


def _port_question(address: str, port: int) -> Question:
    def ask() -> Answer:
        try:
            with socket.create_connection((address, port), ANSWER):
                return Answer(f"{address}:{port} accepts")
        except OSError as fault:
            return Answer(fault.strerror or str(fault), well=False)

    return ask


def _agent_question(ask: Question) -> Question:
    """Take what the guest agent cannot or will not do for an answer that may be another one in the next round."""

    def asked() -> Answer:
        try:
            return ask()
        except (StageError, ValueError) as fault:  # ValueError: what the agent says is the guest's, and may be anything
            return Answer(_shown(str(fault)), well=False)

    return asked


def _ping(options: Options) -> Answer:
    _agent(options, "guest-ping", {})
    return Answer("its guest agent")


class InGuest:
    """A program that the guest agent runs as its own user, root: one at a time, and anew when it has ended.

    :param words: the program and its arguments; the agent looks in its PATH for one without a path
    """

    def __init__(self, options: Options, words: list[str]) -> None:
        self._options = options
        self.words = words
        self._pid: Any = None  # of one that was still running when it was last asked for

    def ended(self) -> Optional[dict[str, Any]]:  # noqa: UP045 - Python 3.9
        """Start it, or ask for the one that runs.

        :return: ``{"exitcode" or "signal", "out-data", "err-data"}``, as far as the agent says so; None while it runs
        :raises StageError: no agent, or it refuses; the next one is started anew, as an agent that was restarted in
            between knows of none
        """
        pid, self._pid = self._pid, None
        if pid is None:
            path, *arguments = self.words
            request = {"path": path, "arg": arguments, "capture-output": True}
            pid = _agent(self._options, "guest-exec", request).get("pid")
        end = time.monotonic() + ANSWER
        while True:
            status = _agent(self._options, "guest-exec-status", {"pid": pid})
            if status.get("exited"):
                return status
            if time.monotonic() > end:
                self._pid = pid
                return None
            time.sleep(SOON)


def _target_state(systemd: InGuest) -> Answer:
    """Ask systemd in the guest; a state that it passes through is waited for."""
    status = systemd.ended()
    if status is None:
        return Answer("systemd has not answered", well=False)
    state = _said(status, "out-data")
    if state not in UP:
        return Answer(f"systemd is {state or _said(status, 'err-data') or 'not there'}", well=False)
    failed = "systemd in the guest is degraded: it is up, and units of it failed; see 'systemctl --failed' there"
    return Answer(f"systemd is {state}", warning=failed if state == "degraded" else "")


def _command(program: InGuest) -> Answer:
    """Run the plan's command in the guest."""
    status = program.ended()
    if status is None:
        return Answer("still runs", well=False)
    how = f"signal {status['signal']}" if "signal" in status else f"exit status {status.get('exitcode')}"
    said = " ".join(filter(None, (_said(status, "out-data"), _said(status, "err-data"))))
    words = _shown(how) + (f": {said}" if said else "")
    well = status.get("exitcode") == 0
    return Answer(f"{program.words[0]}: {words}" if well else words, well)


def _agent(options: Options, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Have the guest agent do something.

    :return: its answer, of which nothing is sure: it is the guest's
    :raises StageError: no agent, or it refuses
    :raises ValueError: its answer is no JSON
    """
    request = json.dumps({"execute": command, "arguments": arguments})
    said = domains.virsh(options.uri, "qemu-agent-command", "--timeout", "5", options.uuid.lower(), request)
    answer = json.loads(said)
    returned = answer.get("return") if isinstance(answer, dict) else None
    return returned if isinstance(returned, dict) else {}


def _said(status: dict[str, Any], stream: str) -> str:
    """Show what a program in the guest has written."""
    output = base64.b64decode(str(status.get(stream, "")))
    return _shown(output[-4 * SHOWN :].decode("utf-8", "backslashreplace"))


def _shown(text: str) -> str:
    """Keep what a guest says to the end of one line, its control characters shown and not obeyed."""
    line = one_line(" ".join(text.split()))
    return line if len(line) <= SHOWN else f"...{line[-SHOWN:]}"
