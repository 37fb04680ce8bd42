"""What a person writes of waves: models of the plan file's ``waves`` and ``people``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from hyperflow.manifest.section import WHOLE, ClosedSection, Matching, Maybe
from hyperflow.plans.notices import Notice
from hyperflow.plans.profile import Name

Text = Annotated[str, Matching(r"[^\u0000-\u001f\u007f]+", "text without control characters", 500)]
Word = Annotated[str, Matching(r"[^\u0000-\u001f\u007f]+", "a VM, a group, or a pattern as web*", 2000)]
UserId = Annotated[str, Matching(r"[A-Za-z0-9][A-Za-z0-9_.@+-]*", "the id of an Airflow user", 200)]
TimeZone = Annotated[str, Matching(r"[A-Za-z0-9_+/-]+", "a time zone as Europe/Berlin", 60)]
Clock = Annotated[str, Matching(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]", "a time of day as 22:00")]
LocalTime = Annotated[
    str,
    Matching(
        r"20[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])[T ](?:[01][0-9]|2[0-3]):[0-5][0-9]",
        "a date and time as 2026-12-05T22:00, in the time zone of the plan",
    ),
]
Cron = Annotated[str, Matching(r"(?:[0-9*/,?#L -]|[A-Za-z]{3})+", "five fields of cron as 0 22 * * sat", 200)]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Minutes = Annotated[int, Field(ge=1, le=14 * 24 * 60), WHOLE]


class Person(ClosedSection):
    """Somebody who may be asked."""

    id: Maybe[UserId] = Field(
        default=None, description="Airflow's id of the user, as HITL knows it; the key when absent"
    )
    name: Maybe[Text] = Field(default=None, description="Shown where the question is; the key when absent")


class MemberRule(ClosedSection):
    """VMs of the plan by what they are; all that is given must match. ``*`` and ``?`` stand for anything."""

    name: Maybe[Word] = Field(default=None, description="The VM's name")
    folder: Maybe[Word] = Field(default=None, description="Folder as /Datacenter/vm/Production, all below it too")
    label: Maybe[Word] = Field(default=None, description="One of the labels that the plan gives the VM")
    tag: Maybe[Word] = Field(default=None, description="A tag at the vCenter, as ./hyperflow wave survey read it")
    host: Maybe[Word] = Field(default=None, description="The ESXi host it runs on, as the survey read it")


def _kind(value: object) -> str:
    return "[rule]" if isinstance(value, dict | MemberRule) else "[word]"


# Told apart by what is written, so that a fault is one of the kind that was meant.
Member = Annotated[Annotated[Word, Tag("[word]")] | Annotated[MemberRule, Tag("[rule]")], Discriminator(_kind)]


class Schedule(ClosedSection):
    """When the wave starts by itself: exactly one of cron and at."""

    cron: Maybe[Cron] = None
    at: Maybe[Annotated[list[LocalTime], Field(min_length=1, max_length=100)]] = None


class Window(ClosedSection):
    """When VMs of the wave may be at work; it ends on the next day when the end is not after the start."""

    days: Annotated[list[Weekday], Field(min_length=1, max_length=7)] = Field(
        default=["mon", "tue", "wed", "thu", "fri", "sat", "sun"], description="Days on which it opens"
    )
    start: Clock
    end: Clock
    latest_start: Maybe[Clock] = Field(default=None, description="No VM is started after it; the end when absent")


class Approval(ClosedSection):
    """Who is asked, and what holds when nobody answers."""

    by: Maybe[Annotated[list[Name], Field(min_length=1, max_length=100)]] = Field(
        default=None, description="Keys of people; everybody who may run the DAG when absent"
    )
    timeout_minutes: Minutes = 60
    on_timeout: Literal["reject", "approve"] = "reject"


class WaveEntry(ClosedSection):
    """A wave: which VMs, in which order, when, how many at once, who approves."""

    name: Name
    description: Maybe[Text] = None
    members: Annotated[list[Member], Field(min_length=1, max_length=2000)] = Field(
        description="VMs by name, slug or pattern, or by what they are"
    )
    groups: dict[Name, Annotated[list[Word], Field(min_length=1, max_length=2000)]] = Field(
        default_factory=dict, description="Names for several members, for use in after and apart"
    )
    after: dict[Word, Annotated[list[Word], Field(min_length=1, max_length=200)]] = Field(
        default_factory=dict, description="VM or group -> those that must have arrived before it starts"
    )
    apart: Annotated[list[Annotated[list[Word], Field(min_length=1, max_length=50)]], Field(max_length=200)] = Field(
        default_factory=list, description="VMs or groups of which never two VMs are at work at once, such as an HA pair"
    )
    max_in_flight: Annotated[int, Field(ge=1, le=500), WHOLE] = Field(default=4, description="VMs at work at once")
    schedule: Maybe[Schedule] = None
    window: Maybe[Window] = None
    approval: Maybe[Approval] = Field(default=None, description="Asked before the first VM starts")
    notify: Maybe[Annotated[list[Notice], Field(max_length=20)]] = Field(
        default=None, description="Who is told of this wave's own events; those of the plan's notify when absent"
    )
    on_failure: Literal["go-on", "stop", "ask"] = Field(
        default="go-on",
        description="After the first VM that failed: start the others, start none, or ask who approves",
    )
