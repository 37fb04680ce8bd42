"""How a VM changes sides: a copy to look at, or the last export of a machine that is switched off for good."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hyperflow.manifest.section import WHOLE, ClosedSection, Matching, Maybe
from hyperflow.plans.wave_settings import Approval, Minutes

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
Ipv4 = Annotated[str, Matching(rf"{_OCTET}(?:\.{_OCTET}){{3}}", "an IPv4 address", 15)]
Port = Annotated[int, Field(ge=1, le=65535), WHOLE]


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
    approval: Maybe[Approval] = Field(
        default=None, description="Asked before the source is shut down, and before the target is started"
    )
    health: Health = Health()
