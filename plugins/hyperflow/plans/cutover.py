"""How a VM changes sides: a copy to look at, or the last export of a machine that is switched off for good."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from hyperflow.manifest.section import WHOLE, ClosedSection, Matching, Maybe, refuse
from hyperflow.plans.wave_settings import Approval, Minutes

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
Ipv4 = Annotated[str, Matching(rf"{_OCTET}(?:\.{_OCTET}){{3}}", "an IPv4 address", 15)]
LIVE_COPY, COLD = "live-copy", "cold"  # the strategies
Step = Literal["shutdown", "start"]  # of a cutover; ids of the tasks that do them
Port = Annotated[int, Field(ge=1, le=65535), WHOLE]


def _absolute(words: list[str]) -> list[str]:
    if not words[0].startswith("/"):
        raise refuse("a program's absolute path and its arguments, a word each, as [/usr/bin/test, -e, /run/ready]")
    return words


# All words together, in JSON, are one argument of virsh: Linux takes at most 128 KiB for one.
CommandWord = Annotated[str, Matching(r"[^\u0000-\u001f\u007f]*", "a word without control characters", 500)]
Command = Annotated[list[CommandWord], Field(min_length=1, max_length=20), AfterValidator(_absolute)]


class Health(ClosedSection):
    """What the started target must answer before it counts as well; else it is rolled back."""

    timeout_seconds: Annotated[int, Field(ge=10, le=14400), WHOLE] = 900
    addresses: Maybe[Annotated[list[Ipv4], Field(max_length=50)]] = Field(
        default=None, description="That must answer from the VM's own MACs; those found in the guest when absent"
    )
    ports: Annotated[list[Port], Field(max_length=50)] = Field(
        default_factory=list, description="TCP ports that must accept, from the KVM host, on each address"
    )
    guest_agent: bool = Field(default=False, description="The QEMU guest agent must answer")
    target_state: bool = Field(
        default=False,
        description="systemd in the guest must say running, or degraded, which is a warning; asked by the guest agent",
    )
    command: Maybe[Command] = Field(
        default=None,
        description="Program, by its absolute path, and arguments; run in the guest by its agent, it must end with 0",
        json_schema_extra={"allOf": [{"items": [{"pattern": "^/"}]}]},
    )


def _each_once(steps: list[Step]) -> list[Step]:
    if len(set(steps)) < len(steps):
        raise refuse("each step once")
    return steps


class CutoverApproval(Approval):
    """Who is asked, before which steps, and what holds when nobody answers."""

    at: Annotated[list[Step], Field(min_length=1), AfterValidator(_each_once)] = Field(
        default=["shutdown", "start"],
        description="shutdown: before the source is shut down. start: before the target is started for good",
        json_schema_extra={"uniqueItems": True},
    )


class Cutover(ClosedSection):
    """The strategy, and what it needs to be told."""

    strategy: Literal["live-copy", "cold"] = Field(
        default="live-copy",
        description="live-copy: from a snapshot, the source keeps running. cold: the source is shut down, the target "
        "started, and rolled back when it is not well",
    )
    shutdown_timeout_minutes: Minutes = Field(default=15, description="How long the source's guest may take")
    on_shutdown_timeout: Literal["abort", "force", "ask"] = Field(
        default="abort", description="When it takes longer or cannot be asked; force is a hard power-off"
    )
    approval: Maybe[CutoverApproval] = Field(default=None, description="Who is asked, and before which steps")
    health: Health = Health()
