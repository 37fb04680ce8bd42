"""What a started target must answer, asked on a bridge with a machine behind it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from hyperflow.kvmhost.stage import Job, StageError
from hyperflow.kvmhost.stages import start
from hyperflow.kvmhost.stages.start import Address, Options

BRIDGE, ADDRESS, MAC = "hftest0", "192.0.2.77", "02:00:5e:00:53:01"
OTHER = "02:00:5e:00:53:99"


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
        yield BRIDGE
    finally:
        for one in (("link", "delete", "hftest1"), ("link", "delete", BRIDGE), ("netns", "delete", BRIDGE)):
            subprocess.run(["ip", *one], check=False, capture_output=True)


def answer(bridge: str, domain_macs: list[str], mac: str | None) -> str | None:
    options = Options(uuid="", vm="vm", timeout_seconds=1, addresses=[Address(ADDRESS, mac)])
    asked = start._asked(options, dict.fromkeys(domain_macs, bridge), Job("start"))
    said = asked[f"address {ADDRESS}"]()
    assert said is None or isinstance(said, str)
    return said


@pytest.mark.parametrize("mac", [MAC.upper(), None])
def test_an_address_answers_from_the_targets_own_mac(bridge: str, mac: str | None) -> None:
    assert answer(bridge, [OTHER, MAC], mac) == f"{ADDRESS} at {MAC}"


@pytest.mark.parametrize("mac", [OTHER, None])
def test_an_address_that_another_machine_has_is_no_answer_of_the_target(bridge: str, mac: str | None) -> None:
    with pytest.raises(StageError, match=rf"{MAC} answers on {BRIDGE}, expected {OTHER}.*Another machine"):
        answer(bridge, [OTHER], mac)


def test_nobodys_answer_is_none(bridge: str) -> None:
    ip("-n", BRIDGE, "address", "flush", "dev", "eth0")
    assert answer(bridge, [MAC], None) is None
