"""How long a wave will take: from sizes that the vCenter told and rates that earlier runs measured."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import Any

from hyperflow.plans.plan import Plan, PlannedVm
from hyperflow.plans.survey import Survey
from hyperflow.plans.times import next_opening, opening_at
from hyperflow.plans.wave import Wave, fires

STARTS_LOOKED_AT = 3  # of a wave's schedule, for other waves beside it


@dataclass(frozen=True)
class Rates:
    """What earlier runs measured.

    :param bytes_per_second: exported bytes by the seconds of the whole migration
    :param runs: of how many runs
    """

    bytes_per_second: float
    runs: int


@dataclass(frozen=True)
class WaveEstimate:
    """How long a wave is expected to take.

    :param minutes: by slug, of the VMs whose duration can be told
    :param unknown: slugs of the others
    :param total: minutes of the whole wave with its order and its limit; None when some VM is unknown
    :param bytes: what is to be exported, as far as sizes are known
    """

    minutes: Mapping[str, float]
    unknown: tuple[str, ...]
    total: float | None
    bytes: int

    def sentence(self, rates: Rates | None = None) -> str:
        """Say it to a person.

        :param rates: what it was computed with
        """
        size = f"{self.bytes / 2**30:.1f} GiB to copy" if self.bytes else "sizes not known (./hyperflow wave survey)"
        if self.total is not None:
            source = f", at {rates.bytes_per_second / 1e6:.0f} MB/s as {rates.runs} run(s) measured" if rates else ""
            counted = "by order and max_in_flight; pools and bandwidth limits may make it longer"
            return f"{size}; expected to take {minutes_text(self.total)}{source}, {counted}"
        return f"{size}; duration not known of {len(self.unknown)} VM(s): no expected_minutes, and no measured rate"


def rates_of(summaries: Iterable[Mapping[str, Any]]) -> Rates | None:
    """Take the rate from runs that were measured: all their bytes by all their seconds.

    :param summaries: ``bytes`` and ``seconds`` of each run, as its wave tells
    """
    measured = [(one["bytes"], one["seconds"]) for one in summaries if one.get("bytes") and one.get("seconds")]
    if not measured:
        return None
    return Rates(sum(size for size, _ in measured) / sum(seconds for _, seconds in measured), len(measured))


def estimate_wave(plan: Plan, wave: Wave, survey: Survey, rates: Rates | None = None) -> WaveEstimate:
    """Estimate a wave.

    :param rates: None when no run has been measured
    """
    known: dict[str, float] = {}
    size = 0
    for slug in wave.members:
        seen = survey.vms.get(slug)
        volume = (seen.used_bytes if seen.used_bytes is not None else seen.capacity_bytes) if seen else None
        size += volume or 0
        minutes = estimate_vm(plan.vm(slug), volume, rates)
        if minutes is not None:
            known[slug] = minutes
    unknown = tuple(slug for slug in wave.members if slug not in known)
    return WaveEstimate(known, unknown, None if unknown else _makespan(wave, known), size)


def estimate_vm(vm: PlannedVm, volume: int | None, rates: Rates | None) -> float | None:
    """Minutes that a VM is expected to take: as the plan says, else by its size; None when neither tells."""
    if vm.settings.expected_minutes is not None:
        return float(vm.settings.expected_minutes)
    if volume is None or rates is None or rates.bytes_per_second <= 0:
        return None
    return volume / rates.bytes_per_second / 60


def starts_beside(plan: Plan, wave: Wave, now: datetime) -> dict[str, datetime]:
    """Tell which other waves of a plan start by themselves in a window of a wave, or at its very minute without one.

    :param now: with a zone; the next starts are looked at
    :return: by name, the first such start in UTC
    """
    found: dict[str, datetime] = {}
    for begin, end in _spans(wave, now):
        for other in plan.waves:
            after = max(begin - timedelta(minutes=1), now)
            moment = next(iter(fires(other, after, 1)), None) if other.name != wave.name else None
            if moment is not None and moment < end:
                found.setdefault(other.name, moment)
    return found


def _spans(wave: Wave, now: datetime) -> list[tuple[datetime, datetime]]:
    """List when a wave may start its VMs: its next windows, or the minutes of its next starts."""
    window, starts = wave.entry.window, fires(wave, now, STARTS_LOOKED_AT)
    if window is None:
        return [(moment, moment + timedelta(minutes=1)) for moment in starts]
    if wave.entry.schedule is None:
        openings = [opening_at(window, wave.zone, now) or next_opening(window, wave.zone, now)]
    else:
        openings = [found for moment in starts if (found := opening_at(window, wave.zone, moment)) is not None]
    return [(opening.start, opening.end) for opening in openings]


def _makespan(wave: Wave, minutes: Mapping[str, float]) -> float:
    """Play the wave: each VM starts when those before it are over and one of the places in flight is free."""
    waiting = {slug: {*wave.after.get(slug, ()), *wave.turns.get(slug, ())} for slug in wave.members}
    flying: list[tuple[float, str]] = []
    now = 0.0
    while waiting or flying:
        for slug in [slug for slug, before in waiting.items() if not before]:
            if len(flying) < wave.entry.max_in_flight:
                heapq.heappush(flying, (now + minutes[slug], slug))
                del waiting[slug]
        now, landed = heapq.heappop(flying)
        for before in waiting.values():
            before.discard(landed)
    return now


def minutes_text(minutes: float) -> str:
    """Write minutes as a person reads them: ``2 h 05 min``."""
    whole = max(0, ceil(minutes))
    return f"{whole // 60} h {whole % 60:02d} min" if whole >= 60 else f"{whole} min"
