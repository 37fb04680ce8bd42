"""Local time as people plan with it: time zones, cron, windows, and the hours that clocks skip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from functools import cache
from typing import get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter
from croniter.croniter import CroniterBadCronError, CroniterBadDateError

from hyperflow.plans.wave_settings import Weekday, Window

WEEKDAYS: tuple[Weekday, ...] = get_args(Weekday)
# The years whose clock changes are looked at. Fixed, so that a plan does not become good or bad by waiting.
FIRST_YEAR, LAST_YEAR = 2026, 2031
MISSED_AFTER = timedelta(minutes=15)  # a scheduled start this late was missed: un-pausing a DAG makes its last one
_DAY = timedelta(days=1)


def zone(name: str) -> ZoneInfo | None:
    """Find a time zone; None when there is none of that name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def exists(local: datetime, where: ZoneInfo) -> bool:
    """Tell whether clocks in a zone ever show a time: they skip an hour when summer time begins.

    :param local: without a zone
    """
    there = local.replace(tzinfo=where)
    return there.astimezone(UTC).astimezone(where).replace(tzinfo=None) == local


def instant(local: datetime, where: ZoneInfo) -> datetime:
    """Tell which moment a local time is, in UTC; one that is skipped is the moment clocks go on from."""
    return local.replace(tzinfo=where).astimezone(UTC)


@cache
def skipped(name: str) -> tuple[tuple[datetime, datetime], ...]:
    """List what clocks of a zone skip between 2026 and 2031: local times, first minute and the one after the last."""
    found = ((change.replace(tzinfo=None), before, after) for change, before, after in _changes(ZoneInfo(name)))
    return tuple((plain + before, plain + after) for plain, before, after in found if after > before)


@cache
def set_back(name: str) -> tuple[datetime, ...]:
    """List when clocks of a zone are set back between 2026 and 2031, in UTC: they show the time before it again."""
    return tuple(change for change, before, after in _changes(ZoneInfo(name)) if after < before)


def is_shown_again(moment: datetime, where: ZoneInfo) -> bool:
    """Tell whether clocks of a zone show a moment's time once more after it, because they are set back."""
    local = moment.astimezone(where)
    return local.fold == 0 and local.utcoffset() != local.replace(fold=1).utcoffset()


def _changes(where: ZoneInfo) -> Iterator[tuple[datetime, timedelta, timedelta]]:
    """List when clocks change, in UTC, with the offsets before and after."""
    moment = datetime(FIRST_YEAR, 1, 1, tzinfo=UTC)
    while moment.year <= LAST_YEAR:
        if _offset(moment + _DAY, where) != _offset(moment, where):
            change = _change_between(moment, moment + _DAY, where)
            yield change, _offset(change - timedelta(minutes=1), where), _offset(change, where)
        moment += _DAY


def _offset(moment: datetime, where: ZoneInfo) -> timedelta:
    return moment.astimezone(where).utcoffset() or timedelta()


def _change_between(low: datetime, high: datetime, where: ZoneInfo) -> datetime:
    at_low = _offset(low, where)
    while high - low > timedelta(minutes=1):
        middle = (low + (high - low) / 2).replace(second=0, microsecond=0)
        low, high = (middle, high) if _offset(middle, where) == at_low else (low, middle)
    return high


def cron_fault(cron: str, zone_name: str | None) -> tuple[str, str] | None:
    """Find what is wrong with a cron expression: what was found and what is expected, None when it is good."""
    expected = "five fields of cron that some day matches, as 0 22 * * sat"
    if len(cron.split()) != 5:
        return f"{cron!r}, {len(cron.split())} field(s)", expected
    try:
        croniter(cron, datetime(FIRST_YEAR, 1, 1, tzinfo=UTC)).get_next(datetime)
    except CroniterBadDateError:
        return f"{cron!r}, which no day ever matches", expected
    except (CroniterBadCronError, ValueError, KeyError) as error:
        return f"{cron!r} ({error})", expected
    if zone_name is not None:
        for first, end in skipped(zone_name):
            minute = first
            while minute < end:
                if croniter.match(cron, minute):
                    return (
                        f"{cron!r}, which fires at {minute:%Y-%m-%d %H:%M}, when clocks in {zone_name} go from "
                        f"{first:%H:%M} to {end:%H:%M}",
                        "a time that every day has",
                    )
                minute += timedelta(minutes=1)
    return None


@dataclass(frozen=True)
class Opening:
    """One time that a window is open; moments in UTC.

    :param latest_start: no VM is started at or after it
    """

    start: datetime
    end: datetime
    latest_start: datetime


def minutes_open(window: Window) -> int:
    """How long a window is open, in minutes of a day on which no clock changes."""
    start, end = _minutes(window.start), _minutes(window.end)
    return end - start if end > start else end + 24 * 60 - start


def minutes_to_latest_start(window: Window) -> int:
    """How long after its start VMs may be started, in minutes; 0 or more than the window is open when it is wrong."""
    if window.latest_start is None:
        return minutes_open(window)
    return (_minutes(window.latest_start) - _minutes(window.start)) % (24 * 60)


def is_sound(window: Window) -> bool:
    """Tell whether the latest start of a window lies in it."""
    return 0 < minutes_to_latest_start(window) <= minutes_open(window)


def skipped_by_window(window: Window, zone_name: str) -> list[tuple[str, str]]:
    """Find times of a window that clocks of a zone skip on a day it opens on: the key, and what to say of it.

    The first skipped minute is no fault: it is the moment at which the clocks go on.
    """
    after_start = {"start": 0, "end": minutes_open(window), "latest_start": minutes_to_latest_start(window)}
    if window.latest_start is None:
        del after_start["latest_start"]
    found: dict[str, str] = {}
    for first, end in skipped(zone_name):
        for day in (first.date() - _DAY, first.date()):
            if WEEKDAYS[day.weekday()] not in window.days:
                continue
            opens = datetime.combine(day, time_of_day.fromisoformat(window.start))
            for key, minutes in after_start.items():
                moment = opens + timedelta(minutes=minutes)
                if first < moment < end:
                    words = f"{moment:%Y-%m-%d %H:%M}, when clocks in {zone_name} go from {first:%H:%M} to {end:%H:%M}"
                    found.setdefault(key, words)
    return list(found.items())


def opening_at(window: Window, where: ZoneInfo, now: datetime) -> Opening | None:
    """Find the opening that a moment lies in; None when the window is closed.

    :param now: with a zone
    """
    today = now.astimezone(where).date()
    for day in (today - _DAY, today):
        found = _opening_on(window, where, day)
        if found is not None and found.start <= now < found.end:
            return found
    return None


def next_opening(window: Window, where: ZoneInfo, now: datetime) -> Opening:
    """Find the first opening that starts after a moment."""
    day = now.astimezone(where).date()
    while True:
        found = _opening_on(window, where, day)
        if found is not None and found.start > now:
            return found
        day += _DAY


def _opening_on(window: Window, where: ZoneInfo, day: date) -> Opening | None:
    if WEEKDAYS[day.weekday()] not in window.days:
        return None
    start = datetime.combine(day, time_of_day.fromisoformat(window.start))
    end, latest = (
        start + timedelta(minutes=minutes) for minutes in (minutes_open(window), minutes_to_latest_start(window))
    )
    return Opening(instant(start, where), instant(end, where), instant(latest, where))


def _minutes(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)
