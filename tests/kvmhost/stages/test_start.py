"""What a started target must answer: asked on a bridge with a machine behind it, at a port, and of a guest agent."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hyperflow.errors.catalogue import find
from hyperflow.kvmhost import domains
from hyperflow.kvmhost.stage import BadRequest, Job, StageError, parse_options
from hyperflow.kvmhost.stages import start
from hyperflow.kvmhost.stages.start import Address, Answer, Options
from hyperflow.operators.cutover import StartTargetOperator
from hyperflow.plans.cutover import Cutover, Health
from pydantic import ValidationError

BRIDGE, ADDRESS, MAC = "hftest0", "192.0.2.77", "02:00:5e:00:53:01"
OTHER = "02:00:5e:00:53:99"
LIMIT = 60.0  # seconds for what comes by itself, on a busy machine


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def bridge() -> Iterator[str]:
    """A bridge of its own, with one machine (a network namespace) that has the address."""
    made = [
        ("netns", "add", BRIDGE),
        ("link", "add", BRIDGE, "type", "bridge"),
        ("link", "add", "hftest1", "type", "veth", "peer", "name", "eth0", "netns", BRIDGE),
        ("link", "set", "hftest1", "master", BRIDGE, "up"),
        ("link", "set", BRIDGE, "up"),
        ("-n", BRIDGE, "link", "set", "eth0", "address", MAC, "up"),
        ("-n", BRIDGE, "address", "add", f"{ADDRESS}/24", "dev", "eth0"),
    ]
    try:
        for one in made:
            ip(*one)
        limit = time.monotonic() + LIMIT
        for device in ("hftest1", BRIDGE):  # the kernel lets packets through when it has seen that there is a link
            while Path(f"/sys/class/net/{device}/operstate").read_text() != "up\n":
                assert time.monotonic() < limit, f"{device} does not come up"
                time.sleep(0.05)
        yield BRIDGE
    finally:
        for one in (("link", "delete", "hftest1"), ("link", "delete", BRIDGE), ("netns", "delete", BRIDGE)):
            subprocess.run(["ip", *one], check=False, capture_output=True)


def answer(bridge: str, domain_macs: list[str], mac: str | None) -> Answer:
    options = Options(uuid="", vm="vm", timeout_seconds=1, addresses=[Address(ADDRESS, mac)])
    return start._asked(options, dict.fromkeys(domain_macs, bridge), domain_macs, Job("start"))[f"address {ADDRESS}"]()


@pytest.mark.parametrize("mac", [MAC.upper(), None])
def test_an_address_answers_from_the_targets_own_mac(bridge: str, mac: str | None) -> None:
    assert answer(bridge, [OTHER, MAC], mac) == Answer(f"{ADDRESS} at {MAC}")


@pytest.mark.parametrize("mac", [OTHER, None])
def test_an_address_that_another_machine_has_is_no_answer_of_the_target(bridge: str, mac: str | None) -> None:
    with pytest.raises(StageError, match=rf"{MAC} answers on {BRIDGE}, expected {OTHER}.*Another machine"):
        answer(bridge, [OTHER], mac)


def test_nobodys_answer_is_not_well(bridge: str) -> None:
    ip("-n", BRIDGE, "address", "flush", "dev", "eth0")
    assert answer(bridge, [MAC], None) == Answer("nobody has it", well=False)


UUID = "2b0c6f3e-6b0e-4c9f-8a53-0d6d3f0f7a11"
LOCAL = "127.0.0.1"
XML = (
    f"<domain><name>web01</name><uuid>{UUID}</uuid><metadata><h:migration xmlns:h='{domains.NAMESPACE}' vm='vm-1' "
    f"run='r'/></metadata><devices><interface type='direct'><mac address='{MAC}'/></interface></devices></domain>"
)
# In place of virsh: one domain on no bridge, off until it is started. Its guest agent runs what it is told to on this
# machine, and finds programs in this folder first; the file "agent" has what it says in place of that.
VIRSH = """#!/usr/bin/python3 -IS
import base64, json, os, subprocess, sys

os.chdir(os.path.dirname(os.path.realpath(sys.argv[0])))
words = sys.argv[4:]  # after --quiet --connect URI
with open("log", "a") as log:
    log.write(json.dumps(words) + "\\n")


def read(name):
    return open(name, "rb").read() if os.path.exists(name) else b""


def agent(execute, arguments):
    if execute == "guest-exec":
        open("status", "w").close()
        program = ["sh", "-c", '"$@" >out 2>err; echo $? >status', "sh", arguments["path"], *arguments["arg"]]
        path = os.getcwd() + ":" + os.environ["PATH"]
        nowhere = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return {"pid": subprocess.Popen(program, env={**os.environ, "PATH": path}, **nowhere).pid}
    if execute == "guest-exec-status" and not read("status"):
        return {"exited": False}
    if execute == "guest-exec-status":
        status = int(read("status"))
        end = {"signal": status - 128} if status > 128 else {"exitcode": status}
        written = {f"{name}-data": base64.b64encode(read(name)).decode() for name in ("out", "err") if read(name)}
        return {"exited": True, **end, **written}
    return {}


if words[0] == "list":
    print("UUID")
elif words[0] == "dumpxml":
    print("XML")
elif words[0] == "domstate":
    print(read("state").decode() or "shut off", *(["(shutdown)"] if "--reason" in words else []))
elif words[0] == "start":
    open("state", "w").write("running")
elif words[0] == "domifaddr":
    print(read(words[-1] + "-addresses").decode(), end="")
elif words[0] == "dominfo":
    print("Autostart:      enable")
elif words[0] == "qemu-agent-command":
    said, request = read("agent").decode(), json.loads(words[-1])
    if os.path.exists("once"):
        os.remove("agent")
        os.remove("once")
    if said.startswith("error: "):
        sys.exit(said)
    print(said or json.dumps({"return": agent(request["execute"], request["arguments"])}))
"""
NO_AGENT = "error: Guest agent is not responding: QEMU guest agent is not connected"


class Target:
    """The domain that the stand-in for virsh has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program("virsh", VIRSH.replace('"UUID"', repr(UUID)).replace('"XML"', repr(XML)))

    def program(self, name: str, text: str) -> str:
        file = self.folder / name
        file.write_text(text)
        file.chmod(0o755)
        return str(file)

    def agent_says(self, text: str, once: bool = False) -> None:
        (self.folder / "agent").write_text(text)
        if once:
            (self.folder / "once").touch()

    def start(self, job: Job | None = None, **asked: Any) -> dict[str, Any]:
        options = {"uuid": UUID, "vm": "vm-1", "timeout_seconds": 0.5, **asked}
        return start.run(parse_options(Options, json.dumps(options)), job or Job("start"))

    def why_not(self, **asked: Any) -> str:
        with pytest.raises(StageError, match=r"runs and is not well after .* s: no answer from ") as unwell:
            self.start(**asked)
        found = find(f"start on kvm01: {unwell.value}")
        assert found is not None
        assert found.code == "HF-CUTOVER-017"
        return str(unwell.value).partition("no answer from ")[2]

    def calls(self) -> list[str]:
        """What virsh was asked for, the agent's commands by their own names."""
        calls = [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]
        return [json.loads(call[-1])["execute"] if call[0] == "qemu-agent-command" else call[0] for call in calls]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(start, "POLL", 0.05)
    monkeypatch.setattr(start, "ANSWER", 60.0)  # a program takes as long as this machine's other work lets it
    return Target(tmp_path)


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server((LOCAL, 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> Iterator[int]:
    """A port that refuses: taken, so that nobody else listens on it."""
    with socket.socket() as taken:
        taken.bind((LOCAL, 0))
        yield taken.getsockname()[1]


def test_ports_of_a_target_without_an_interface_are_refused_and_nothing_is_started(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.program("virsh", (target.folder / "virsh").read_text().replace(f"<mac address='{MAC}'/>", ""))
    with pytest.raises(BadRequest, match=r"found 443, 22 and no address.*web01 has no network interface") as refused:
        target.start(ports=[443, 22])
    assert "start" not in target.calls()
    found = find(f"start on kvm01: {refused.value}")
    assert found is not None
    assert "cutover.health.command" in found.what_to_do


AGENT_SAYS = (
    " lo         00:00:00:00:00:00    ipv4         127.0.0.9/8\n"
    f" eth0       {MAC}    ipv4         {LOCAL}/24\n"
    " -          -                    ipv6         fe80::1/64\n"
)


def test_ports_of_a_guest_with_dhcp_are_asked_on_the_address_that_libvirt_knows(target: Target, listener: int) -> None:
    (target.folder / "agent-addresses").write_text(AGENT_SAYS)
    assert target.start(ports=[listener])["answers"] == {f"ports {listener}": f"{LOCAL}:{listener} accepts"}


@pytest.mark.parametrize("says", ["", AGENT_SAYS.replace(MAC, OTHER), f" eth0 {MAC} ipv4 ../../etc/24\n"])
def test_without_an_address_of_its_own_a_target_with_ports_is_not_well(
    target: Target, listener: int, says: str
) -> None:
    (target.folder / "agent-addresses").write_text(says)
    assert "libvirt knows no address of it" in target.why_not(ports=[listener])


def test_each_port_must_accept_on_the_address_that_is_found(target: Target, listener: int, closed: int) -> None:
    (target.folder / "lease-addresses").write_text(AGENT_SAYS)
    assert target.why_not(ports=[listener, closed]) == (f"ports {listener}, {closed} ({LOCAL}: Connection refused)")


def test_a_found_address_that_another_machine_answers_for_is_no_answer_of_the_target(
    target: Target, bridge: str, listener: int
) -> None:
    """The agent's word is the guest's: where there is a bridge, it is asked who has the address."""
    (target.folder / "agent-addresses").write_text(f" eth0 {OTHER} ipv4 {ADDRESS}/24\n")
    options = Options(uuid=UUID, vm="vm-1", timeout_seconds=1, ports=[listener])
    (question,) = start._asked(options, {OTHER: bridge}, [OTHER], Job("start")).values()
    with pytest.raises(StageError, match=f"{MAC} answers on {BRIDGE}, expected {OTHER}"):
        question()


def test_a_port_is_asked_also_where_the_domain_is_on_no_bridge(target: Target, listener: int) -> None:
    job = Job("start")
    done = target.start(job, addresses=[{"address": LOCAL}], ports=[listener])
    assert done["asked"] == [f"port {LOCAL}:{listener}"]
    assert done["answers"] == {f"port {LOCAL}:{listener}": f"{LOCAL}:{listener} accepts"}
    (warning,) = job.warnings
    assert warning.endswith("so it cannot be asked; what accepts at its ports may be another machine")


def test_a_port_that_refuses_is_not_well(target: Target, listener: int, closed: int) -> None:
    said = target.why_not(addresses=[{"address": LOCAL}], ports=[closed, listener])
    assert said == f"port {LOCAL}:{closed} (Connection refused); answered: {LOCAL}:{listener} accepts"


def test_a_command_that_ends_with_0_is_well_and_what_it_said_is_told(target: Target) -> None:
    command = [target.program("ready", "#!/bin/sh\necho \"$#: $1\"; printf 'a\\033[2J\\nb' >&2\n"), "two words"]
    done = target.start(guest_agent=True, command=command)
    what = f"command {command[0]} 'two words'"
    assert done["asked"] == [what, "guest agent"]
    words = f"{command[0]}: exit status 0: 1: two words a\\x1b[2J b"
    assert done["answers"] == {"guest agent": "its guest agent", what: words}


class TwoRuns:
    """A clock by which a start's time is over when the agent was told to run something twice, and not before."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def monotonic(self) -> float:
        return LIMIT if self._target.calls().count("guest-exec") > 1 else 0.0

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def test_a_command_that_ends_otherwise_is_run_again_until_the_time_is_over_and_its_last_words_are_told(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "time", TwoRuns(target))
    command = [
        target.program("ready", "#!/bin/sh\nhead -c 5000 /dev/zero | tr '\\0' x\necho 'no database' >&2; exit 1")
    ]
    said = target.why_not(timeout_seconds=3, command=command)
    assert said.startswith(f"command {command[0]} (exit status 1: ...xxx")
    assert "no database" in said
    assert len(said) < 2 * start.SHOWN + len(command[0]) + 100
    assert target.calls().count("guest-exec") == 2


def test_a_command_that_is_well_at_last_is_well(target: Target) -> None:
    command = [target.program("ready", '#!/bin/sh\n[ -e "$0.seen" ] && exit 0\n: > "$0.seen"\nexit 1\n')]
    (answer,) = target.start(timeout_seconds=LIMIT, command=command)["answers"].values()
    assert answer == f"{command[0]}: exit status 0"
    assert target.calls().count("guest-exec") == 2


def test_a_command_that_takes_longer_than_a_round_is_waited_for_and_not_started_beside_itself(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "ANSWER", 0.1)
    until_asked_thrice = 'until [ "$(grep -c ^..domstate log)" -gt 2 ]; do sleep 0.05; done'
    target.start(timeout_seconds=LIMIT, command=["/bin/sh", "-c", until_asked_thrice])
    assert target.calls().count("guest-exec") == 1
    assert target.calls().count("domstate") > 2


def test_of_a_guest_that_goes_down_again_libvirts_reason_is_told(target: Target) -> None:
    with pytest.raises(StageError, match=r"web01: it was started, and is shut off \(shutdown\) after \d+ s") as down:
        target.start(timeout_seconds=LIMIT, command=["/bin/sh", "-c", "rm state; exit 1"])
    found = find(f"start on kvm01: {down.value}")
    assert found is not None
    assert found.code == "HF-DEFINE-005"


def test_a_command_that_does_not_end_is_not_well(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "ANSWER", 0.1)
    assert target.why_not(command=["/bin/sleep", "120"]) == "command /bin/sleep 120 (still runs)"


def test_a_command_that_is_killed_is_not_well(target: Target) -> None:
    killed = target.program("killed", "#!/bin/sh\nkill -9 $$\n")
    assert target.why_not(command=[killed]).startswith(f"command {killed} (signal 9")


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (NO_AGENT, "virsh qemu-agent-command: Guest agent is not responding: QEMU guest agent is not connected"),
        ("error: disabled\x1b[2J\u202e", "virsh qemu-agent-command: disabled\\x1b[2J\\u202e"),
        ("no JSON", "Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_without_an_agent_or_with_one_that_refuses_nothing_asked_of_it_is_well(
    target: Target, says: str, told: str
) -> None:
    target.agent_says(says)
    said = target.why_not(guest_agent=True, target_state=True, command=["/bin/true"])
    assert said == f"command /bin/true ({told}), guest agent ({told}), target state ({told})"


@pytest.mark.parametrize(
    "says",
    [
        {},
        {"exited": True},
        {"exited": True, "exitcode": "0", "out-data": ["x"]},
        {"exited": True, "exitcode": None, "err-data": "!"},
        {"exited": True, "signal": "\x1b[2J" * 1000},
    ],
)
def test_an_agent_that_makes_things_up_is_not_well_and_nothing_it_says_is_obeyed(
    target: Target, monkeypatch: pytest.MonkeyPatch, says: dict[str, Any]
) -> None:
    monkeypatch.setattr(start, "ANSWER", 0.1)
    target.agent_says(json.dumps({"return": says}))
    said = target.why_not(target_state=True, command=["/bin/true"])
    assert said.isprintable()
    assert len(said) < 3 * start.SHOWN


def test_an_agent_that_comes_late_is_waited_for(target: Target) -> None:
    target.agent_says(NO_AGENT, once=True)
    assert target.start(timeout_seconds=LIMIT, guest_agent=True)["answers"] == {"guest agent": "its guest agent"}
    assert target.calls().count("guest-ping") == 2


def systemd(target: Target, state: str) -> None:
    target.program("systemctl", f'#!/bin/sh\n[ "$*" = is-system-running ] && echo {state}\n[ {state} = running ]\n')


@pytest.mark.parametrize(("state", "warned"), [("running", 0), ("degraded", 1)])
def test_a_guest_that_has_reached_its_target_state_is_well_and_a_degraded_one_is_a_warning(
    target: Target, state: str, warned: int
) -> None:
    systemd(target, state)
    job = Job("start")
    assert target.start(job, target_state=True)["answers"] == {"target state": f"systemd is {state}"}
    assert [warning for warning in job.warnings if "systemd in the guest is degraded" in warning] == job.warnings
    assert len(job.warnings) == warned


@pytest.mark.parametrize("state", ["starting", "maintenance", "offline"])
def test_another_state_is_waited_for(target: Target, state: str) -> None:
    systemd(target, state)
    assert target.why_not(target_state=True) == f"target state (systemd is {state})"


def options_of(health: dict[str, Any]) -> Options:
    """The stage's options, of a VM with a static address, one of IPv6, and one of a card that is gone."""
    operator: Any = SimpleNamespace(
        settings=SimpleNamespace(cutover=Cutover.model_validate({"health": health})),
        facts=SimpleNamespace(bios_uuid=UUID, instance_uuid="vm-1", nics=()),
        guest={
            "network": [
                {"name": "ens192", "mac": MAC, "addresses": [f"{ADDRESS}/24", "2001:db8::7/64"]},
                {"name": "ens224", "mac": None, "addresses": ["198.51.100.5/24"]},
            ]
        },
        fix={"network_without_card": ["ens224"]},
    )
    context: Any = {"dag": SimpleNamespace(dag_id="migrate.plan.vm"), "run_id": "manual:1"}
    return parse_options(Options, json.dumps(StartTargetOperator.options(operator, context)))


def test_what_the_plan_asks_is_what_the_stage_is_given() -> None:
    command = ["/bin/test", "-e", "/run/a b"]
    options = options_of({"ports": [443], "guest_agent": True, "target_state": True, "command": command})
    assert (options.ports, options.guest_agent, options.target_state, options.command) == ([443], True, True, command)
    assert options.addresses == [Address(ADDRESS, MAC)]
    assert options.run == "migrate.plan.vm/manual_1"
    options = options_of({})
    assert (options.ports, options.guest_agent, options.target_state, options.command) == ([], False, False, [])


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ({"command": []}, ("command",)),
        ({"command": None}, ("command",)),
        ({"command": "/bin/true"}, ("command",)),
        ({"command": ["true"]}, ("command",)),
        ({"command": ["", "/bin/true"]}, ("command",)),
        ({"command": ["./true"]}, ("command",)),
        ({"command": ["/bin/sleep", 1]}, ("command", 1)),
        ({"command": ["/bin/echo", "a\nb"]}, ("command", 1)),
        ({"command": ["/bin/echo", "a\0b"]}, ("command", 1)),
        ({"command": ["/bin/echo", "x" * 501]}, ("command", 1)),
        ({"command": ["/bin/echo", *["x"] * 20]}, ("command",)),
        ({"target_state": 1}, ("target_state",)),
        ({"target_state": "running"}, ("target_state",)),
    ],
)
def test_a_plan_that_asks_for_what_cannot_be_asked_is_refused_with_its_place(
    written: dict[str, Any], place: tuple[str | int, ...]
) -> None:
    with pytest.raises(ValidationError) as refused:
        Health.model_validate(written)
    assert [error["loc"] for error in refused.value.errors()] == [place]


def test_a_domain_that_another_run_has_defined_is_not_started(target: Target) -> None:
    with pytest.raises(BadRequest, match=r"found it defined by the run r, expected migrate\.plan\.vm/manual_2"):
        target.start(run="migrate.plan.vm/manual_2")
    assert "start" not in target.calls()
    target.start(run="r")
    assert "start" in target.calls()
