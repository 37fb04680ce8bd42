"""How fast the downloads of a KVM host may be together: what a person writes, and what the host is told of it.

A limit is one rate, or a day plan: rates by the hours of the week in a time zone. The host is told no hours and no
zone but moments, as seconds since 1970, from which on a rate holds. So it needs no database of time zones (Python 3.9
on RHEL 9 may have none), and zones are those of one machine: the one that checked the plan.
"""

from __future__ import annotations

import contextlib
import zoneinfo
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from functools import cache
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, WrapValidator

from hyperflow.manifest.faults import Location
from hyperflow.manifest.section import ClosedSection, Matching, refuse
from hyperflow.plans.times import WEEKDAYS, zone
from hyperflow.plans.wave_settings import Clock, TimeZone, Weekday

UNITS = {"MB/s": 1_000_000, "MiB/s": 1 << 20, "Mbit/s": 125_000, "Gbit/s": 125_000_000}  # bytes a second
UNLIMITED = "unlimited"
LOWEST = 1_000_000  # bytes a second
HIGHEST = 400 * UNITS["Gbit/s"]
FORM = "a rate in MB/s, MiB/s, Mbit/s or Gbit/s, as 50 MB/s, or unlimited"
HORIZON = timedelta(days=30)  # how far ahead a host is told its rates; the lowest of all holds after it

HOURS_LIMIT = 50  # of one day plan; it is a week that they share
DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES
_HOUR = timedelta(hours=1)
_MINUTE = timedelta(minutes=1)


def bytes_per_second(rate: str) -> int | None:
    """Read a rate.

    :param rate: as :data:`Rate` allows
    :return: bytes a second, rounded down; None for no limit
    """
    if rate == UNLIMITED:
        return None
    (unit,) = [unit for unit in UNITS if rate.endswith(unit)]
    return int(Decimal(rate.removesuffix(unit).rstrip()) * UNITS[unit])


def _sensible(rate: str) -> str:
    found = bytes_per_second(rate)
    if found is not None and found < LOWEST:
        raise refuse("at least 1 MB/s: slower than that, a disk of 100 GB takes more than a day under its snapshot")
    if found is not None and found > HIGHEST:
        raise refuse(f"at most 400 Gbit/s, or {UNLIMITED}")
    return rate


def _known(name: str) -> str:
    if zone(name) is None:
        likely = _zones_by_slip().get(name.casefold())
        hint = f"; did you mean {likely}?" if likely else ""
        raise refuse(f"a time zone of the IANA database, as Europe/Berlin{hint}")
    return name


@cache
def _zones_by_slip() -> dict[str, str]:
    """Time zones by their name and by their city, without capitals. No likeness is computed: a plan may have many."""
    names = sorted(zoneinfo.available_timezones())
    return {name.rpartition("/")[2].casefold(): name for name in names} | {name.casefold(): name for name in names}


def _once(days: list[str]) -> list[str]:
    if len(set(days)) != len(days):
        raise refuse("each day once")
    return days


Rate = Annotated[
    str,
    Matching(rf"[0-9]{{1,9}}(?:\.[0-9]{{1,3}})? ?(?:{'|'.join(UNITS)})|{UNLIMITED}", FORM),
    AfterValidator(_sensible),
]
_RATE: TypeAdapter[str] = TypeAdapter(Rate)


class RateHours(ClosedSection):
    """Hours of the week with a rate of their own; they end on the next day when the end is not after the start."""

    start: Clock = Field(alias="from")
    end: Clock = Field(alias="to", description="The first minute that is no longer of them")
    days: Annotated[list[Weekday], Field(min_length=1, max_length=7), AfterValidator(_once)] = Field(
        default=list(WEEKDAYS), description="Days on which they begin"
    )
    rate: Rate

    def spans(self) -> Iterator[tuple[int, int]]:
        """List what is meant, in minutes of the week from Monday 00:00: first, and the one after the last."""
        start, end = _minute(self.start), _minute(self.end)
        length = end - start if end > start else end - start + DAY_MINUTES
        for day in self.days:
            first = WEEKDAYS.index(day) * DAY_MINUTES + start
            yield first, min(first + length, WEEK_MINUTES)
            if first + length > WEEK_MINUTES:
                yield 0, first + length - WEEK_MINUTES


class DayPlan(ClosedSection):
    """Rates by the hours of the week, by the clocks of a time zone."""

    time_zone: Annotated[TimeZone, AfterValidator(_known)]
    default: Rate = Field(description="The rate of all other hours")
    hours: Annotated[list[RateHours], Field(min_length=1, max_length=HOURS_LIMIT)]

    def week(self) -> list[int | None]:
        """Give each minute of the week, from Monday 00:00, its rate: bytes a second, None for no limit."""
        rates = [bytes_per_second(self.default)] * WEEK_MINUTES
        for hours in self.hours:
            rate = bytes_per_second(hours.rate)
            for first, end in hours.spans():
                rates[first:end] = [rate] * (end - first)
        return rates


def _either(value: Any, _: Callable[[Any], Any]) -> Any:
    """Read the form that is meant: a union would name each fault once for each form, in places that no file has."""
    if isinstance(value, dict | DayPlan):
        return DayPlan.model_validate(value)
    if not isinstance(value, str):
        raise refuse(f"{FORM}; or rates by the time of day, with time_zone, default and hours")
    return _RATE.validate_python(value, strict=True)


Bandwidth = Annotated[Rate | DayPlan, WrapValidator(_either)]


def overlaps(limit: Any) -> Iterator[tuple[Location, str, str]]:
    """Find hours that are in two spans of a day plan.

    :param limit: plain data that may have any other fault as well
    :return: where in it, what was found, what is expected; one for each span that meets an earlier one
    """
    hours = limit.get("hours") if isinstance(limit, dict) else None
    spans: list[tuple[int, int, int]] = []
    for index, each in enumerate(hours[:HOURS_LIMIT] if isinstance(hours, list) else []):
        with contextlib.suppress(ValidationError):  # the models list what is wrong with it
            spans += [(first, end, index) for first, end in RateHours.model_validate(each).spans()]
    reached, owner = 0, 0
    named = set()
    for first, end, index in sorted(spans):
        later, earlier = max(index, owner), min(index, owner)
        if first < reached and later not in named:
            named.add(later)
            day, minute = divmod(first, DAY_MINUTES)
            found = f"{WEEKDAYS[day]} {minute // 60:02d}:{minute % 60:02d}, which hours[{earlier}] has too"
            yield ("hours", later), found, "each hour of the week in one of them"
        if end > reached:
            reached, owner = end, index


def rates_from(limit: str | DayPlan, now: datetime) -> list[tuple[float, int | None]]:
    """Tell which rate holds from which moment on, for the next 30 days and, the lowest of the plan, after them.

    :param now: with a zone
    :return: seconds since 1970, ascending, the first before ``now``; and bytes a second, None for no limit
    """
    if not isinstance(limit, DayPlan):
        return [(0.0, bytes_per_second(limit))]
    week = limit.week()
    where = ZoneInfo(limit.time_zone)
    first = now.astimezone(UTC).replace(second=0, microsecond=0)
    moments = sorted({first, *(moment for moment in _turns(week, where, first) if moment > first)})
    rates = [(moment.timestamp(), _rate_at(week, moment.astimezone(where))) for moment in moments]
    limited = [rate for rate in week if rate is not None]
    rates.append(((first + HORIZON).timestamp(), min(limited, default=None)))
    return [each for place, each in enumerate(rates) if place == 0 or each[1] != rates[place - 1][1]]


def _turns(week: list[int | None], where: ZoneInfo, first: datetime) -> Iterator[datetime]:
    """List the moments of the next days, in UTC, at which the rate may change: by the plan, or with the clocks."""
    turns = [minute for minute in range(WEEK_MINUTES) if week[minute] != week[minute - 1]]
    today = first.astimezone(where).date()
    for ahead in range(-1, HORIZON.days + 1):
        day = today + timedelta(days=ahead)
        for minute in turns:
            if minute // DAY_MINUTES != day.weekday():
                continue
            clock = time_of_day(minute % DAY_MINUTES // 60, minute % 60)
            for fold in (0, 1):  # clocks show an hour twice when summer time ends
                moment = datetime.combine(day, clock, tzinfo=where).replace(fold=fold).astimezone(UTC)
                if moment < first + HORIZON:
                    yield moment
    for ahead in range(HORIZON.days * 24):
        hour = first + ahead * _HOUR
        if hour.astimezone(where).utcoffset() != (hour + _HOUR).astimezone(where).utcoffset():
            yield from (hour + minute * _MINUTE for minute in range(61))


def _rate_at(week: list[int | None], local: datetime) -> int | None:
    return week[local.weekday() * DAY_MINUTES + local.hour * 60 + local.minute]


def _minute(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)
