"""How long a wave will take: from sizes that the vCenter told and rates that earlier runs measured."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from hyperflow.plans.plan import Plan, PlannedVm
from hyperflow.plans.survey import Survey
from hyperflow.plans.wave import Wave


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

    def sentence(self) -> str:
        """Say it to a person."""
        size = f"{self.bytes / 2**30:.1f} GiB to copy" if self.bytes else "sizes not known (./hyperflow wave survey)"
        if self.total is not None:
            return f"{size}; expected to take {minutes_text(self.total)}"
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
