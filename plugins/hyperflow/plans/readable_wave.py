"""What of a wave can still be read when the models refuse a part of it, so that a person is told all faults at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hyperflow.manifest.faults import NO_KEYS, Location
from hyperflow.plans.wave_settings import WaveEntry


@dataclass(frozen=True)
class ReadableWave:
    """A wave without what the models refuse of it, so that its other faults are told in the same run.

    :param entry: what is good of it; without name or members where these are refused
    :param schedule: keys that its schedule is written with, refused or not
    :param refused: places in the wave of what is left out
    :param kept: place in ``entry`` of a list that lacks something -> where its elements are written
    """

    entry: WaveEntry
    schedule: frozenset[str]
    refused: frozenset[Location]
    kept: Mapping[Location, Sequence[int]]

    def place(self, where: Location) -> Location:
        """Tell where something of ``entry`` is written."""
        return tuple(
            self.kept[where[:depth]][part] if isinstance(part, int) and where[:depth] in self.kept else part
            for depth, part in enumerate(where)
        )

    def lacks(self, *places: Location) -> bool:
        """Tell whether one of these places, or something in it, is left out."""
        return any(one[: len(place)] == place for place in places for one in self.refused)


def what_holds(item: dict[str, Any]) -> ReadableWave:
    """Read a wave without what the models refuse of it."""
    schedule = item.get("schedule")
    refused: set[Location] = set()
    kept: dict[Location, Sequence[int]] = {}
    held = item
    while True:
        needed = {"name": "none", "members": ["*"], **held}
        try:
            entry = WaveEntry.model_validate(needed)
            break
        except ValidationError as error:
            places = {_left_out_with(one["loc"]) for one in error.errors(include_url=False, include_input=False)}
        if refused:  # now the object lacks what it needs, and its indices are not those written
            places = {place[:1] for place in places}
        refused |= places
        held = _without(held, places, (), kept)
    empty: dict[str, Any] = {"name": "", "members": []}
    absent = {key: value for key, value in empty.items() if key not in held}
    keys = frozenset(schedule if isinstance(schedule, dict) else ())
    return ReadableWave(entry.model_copy(update=absent), keys, frozenset(refused), kept)


def _left_out_with(place: Location) -> Location:
    """Tell what cannot stand without a value that is refused: it would say something else."""
    place = (place[0], *(part for part in place[1:] if part not in NO_KEYS))
    if place[:2] == ("window", "days"):
        return place[:1]
    return place[:2] if place[0] == "members" else place


def _without(value: Any, places: Iterable[Location], here: Location, kept: dict[Location, Sequence[int]]) -> Any:
    """Leave out of an object or a list what stands at some places, and what something is missing from.

    :param here: where the value is in what is left
    :param kept: where each element of a list that lacks something was; grows
    """
    below: dict[str | int, list[Location]] = {}
    for key, *deeper in places:
        below.setdefault(key, []).append(tuple(deeper))
    left: list[tuple[Any, Any]] = []
    for key, inner in enumerate(value) if isinstance(value, list) else value.items():
        wrong = below.get(key, [])
        there = (*here, len(left) if isinstance(value, list) else key)
        if not all(_holds(inner, place) for place in wrong):
            continue
        rest = _without(inner, wrong, there, kept) if wrong else inner
        if wrong and rest == []:
            kept.pop(there, None)
            continue
        left.append((key, rest))
    if not isinstance(value, list):
        return dict(left)
    if len(left) < len(value):
        kept[here] = [index for index, _ in left]
    return [rest for _, rest in left]


def _holds(value: Any, place: Location) -> bool:
    if not place:
        return False
    return place[0] in value if isinstance(value, dict) else isinstance(value, list)
