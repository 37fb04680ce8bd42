"""The waves of a plan, resolved: which VMs, in which order, when; or everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from itertools import chain, islice, pairwise, takewhile
from typing import Any
from zoneinfo import ZoneInfo

from croniter import croniter
from pydantic import ValidationError

from hyperflow.manifest.faults import Location, did_you_mean, render, show
from hyperflow.plans import times
from hyperflow.plans.readable_wave import ReadableWave, what_holds
from hyperflow.plans.reading import PlacedFault, fault
from hyperflow.plans.wave_settings import Approval, MemberRule, Person, Schedule, WaveEntry

FIRES_LOOKED_AT = 60  # of a cron schedule, held to the window
SET_BACK_LOOKED_AT = 180  # minutes after clocks are set back, of which the same holds
PAUSE_AFTER = "pause_after"  # key of a run's conf: the wave's DAG was paused before, and is to be when the run is over


def wants_the_wave(run_type: Any, conf: Any) -> bool:
    """Whether a run that waits for a rehearsal to be over keeps the wave from being paused then: a person wants it.

    One that the schedule has made, while the wave was un-paused for its rehearsal, nobody wants.
    """
    return str(getattr(run_type, "value", run_type)) != "scheduled" and not (conf or {}).get(PAUSE_AFTER)


@dataclass(frozen=True)
class Candidate:
    """A VM of the plan as waves choose it.

    :param index: in the plan's ``vms``
    :param name: its name, the last part of an inventory path
    :param path: its inventory path, None where neither plan nor survey tells
    :param host: ESXi host it ran on when it was surveyed
    :param surveyed: a survey has looked for it, and may not have found it
    """

    index: int
    slug: str
    name: str
    value: str
    path: str | None = None
    labels: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    host: str | None = None
    surveyed: bool = False
    expected_minutes: int | None = None


@dataclass(frozen=True)
class Wave:
    """One wave of a plan.

    :param members: slugs, in the plan's order
    :param after: slug -> slugs of those that must have arrived before it starts
    :param turns: slug -> slugs of those that must be over, well or not, because two of them may not be at work at once
    :param apart: slug -> slugs of all with whom it may not be at work; ``turns`` tells only who comes next
    :param approvers: ``{"id", "name"}`` of those who may answer; empty for whoever may run the DAG
    """

    name: str
    dag_id: str
    entry: WaveEntry
    time_zone: str | None
    members: tuple[str, ...]
    after: Mapping[str, tuple[str, ...]]
    turns: Mapping[str, tuple[str, ...]]
    apart: Mapping[str, tuple[str, ...]]
    approvers: tuple[dict[str, str], ...] = field(default=())

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of schedule and window; UTC where the wave has neither."""
        return ZoneInfo(self.time_zone or "UTC")

    def steps(self) -> list[list[str]]:
        """The members in groups that may run together, each after the one before."""
        sorter = TopologicalSorter(
            {slug: (*self.after.get(slug, ()), *self.turns.get(slug, ())) for slug in self.members}
        )
        sorter.prepare()
        steps = []
        while sorter.is_active():
            ready = sorter.get_ready()
            steps.append(sorted(ready, key=self.members.index))
            sorter.done(*ready)
        return steps


def wave_dag_id(plan: str, wave: str) -> str:
    """Name a wave's DAG."""
    return f"wave.{plan}.{wave}"


def resolve_waves(plan: Any, candidates: Sequence[Candidate]) -> tuple[tuple[Wave, ...], list[PlacedFault]]:
    """Resolve the waves of a plan file's plain data, which may have any other fault as well.

    :param candidates: the plan's VMs, as far as they are good
    :return: the waves that are good, and what is wrong with the others; what the models refuse is not told again
    """
    written = plan.get("waves") if isinstance(plan, dict) else None
    if not isinstance(written, list):
        return (), []
    zone_name, faults = _time_zone(plan, written)
    people = _people(plan)
    waves: list[Wave] = []
    taken: dict[str, str] = {}
    names: dict[str, int] = {}
    for index, item in enumerate(written):
        at: Location = ("waves", index)
        if not isinstance(item, dict):
            continue
        readable = what_holds(item)
        name = readable.entry.name
        if name in names:
            faults.append(fault((*at, "name"), f"the name of waves[{names[name]}] again", "a name for each wave"))
        if name:
            names.setdefault(name, index)
        one = _Resolving(readable, at, candidates, zone_name)
        wave = one.wave(str(plan.get("plan")), people)
        for slug in wave.members:
            if slug in taken:
                found = f"{show(slug)}, which is in {taken[slug]} already"
                faults.append(fault((*at, "members"), found, "each VM in one wave"))
            taken.setdefault(slug, f"wave {name}" if name else render(at))
        faults += one.faults
        waves.append(wave)
    return tuple(waves), faults


def _time_zone(plan: dict[str, Any], waves: list[Any]) -> tuple[str | None, list[PlacedFault]]:
    name = plan.get("time_zone")
    if name is None:
        timed = [i for i, wave in enumerate(waves) if isinstance(wave, dict) and {"schedule", "window"} & wave.keys()]
        found = f"nothing, and waves[{timed[0]}] has a schedule or a window" if timed else ""
        return None, [fault(("time_zone",), found, "a time zone as Europe/Berlin")] if timed else []
    if not isinstance(name, str):
        return None, []
    if times.zone(name) is None:
        return None, [fault(("time_zone",), show(name), "a time zone that exists, as Europe/Berlin")]
    return name, []


def _people(plan: dict[str, Any]) -> dict[str, Person]:
    written = plan.get("people")
    people: dict[str, Person] = {}
    for key, value in (written if isinstance(written, dict) else {}).items():
        try:
            people[str(key)] = Person.model_validate(value if value is not None else {})
        except ValidationError:
            people[str(key)] = Person()  # the models say what is wrong with it; it is not an unknown one
    return people


class _Resolving:
    """One wave while it is resolved; ``faults`` grows."""

    def __init__(self, readable: ReadableWave, at: Location, candidates: Sequence[Candidate], zone: str | None) -> None:
        self.readable = readable
        self.entry = readable.entry
        self.at = at
        self.candidates = candidates
        self.zone = zone
        self.faults: list[PlacedFault] = []

    def wave(self, plan: str, people: Mapping[str, Person]) -> Wave:
        members = self.members()
        slugs = [one.slug for one in members]
        after = self.after(members)
        order = self.order(slugs, after)
        turns, apart = self.turns(members, order)
        self.schedule(members)
        self.window(members)
        return Wave(
            name=self.entry.name,
            dag_id=wave_dag_id(plan, self.entry.name),
            entry=self.entry,
            time_zone=self.zone,
            members=tuple(slugs),
            after={slug: tuple(sorted(after[slug], key=slugs.index)) for slug in slugs if after.get(slug)},
            turns=turns,
            apart=apart,
            approvers=tuple(self.approvers(self.entry.approval, people)),
        )

    def refuse(self, where: Location, found: str, expected: str) -> None:
        self.faults.append(fault((*self.at, *self.readable.place(where)), found, expected))

    def members(self) -> list[Candidate]:
        chosen: dict[str, Candidate] = {}
        for index, choice in enumerate(self.entry.members):
            if isinstance(choice, MemberRule):
                found = self.matching(("members", index), choice)
            else:
                found = self.called(("members", index), choice, self.candidates, {})
            chosen |= {one.slug: one for one in found}
        return sorted(chosen.values(), key=lambda one: one.index)

    def matching(self, where: Location, rule: MemberRule) -> list[Candidate]:
        if not rule.model_fields_set:
            self.refuse(where, "a rule without any key", "name, folder, label, tag or host")
            return []
        asked, unknown = self.unsurveyed(rule)
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            expected = "a survey of all VMs: ./hyperflow wave survey PLAN asks the vCenter"
            self.refuse(where, f"a rule on {asked} not known of {unknown[0]}{more}", expected)
            return []
        found = [one for one in self.candidates if _fits(rule, one)]
        if not found:
            self.refuse(where, "a rule that no VM of the plan fits", "a rule that some VM fits")
        return found

    def unsurveyed(self, rule: MemberRule) -> tuple[str, list[str]]:
        """Tell what a rule asks that only a survey knows, and of which VMs it is not known: they would be left out."""
        if rule.tag is not None or rule.host is not None:
            return "tag or host, which are", [one.slug for one in self.candidates if not one.surveyed]
        if rule.folder is not None:  # a VM that is given by its path says its folder itself
            return "folder, which is", [one.slug for one in self.candidates if one.path is None and not one.surveyed]
        return "", []

    def called(
        self, where: Location, word: str, among: Sequence[Candidate], groups: Mapping[str, list[Candidate]]
    ) -> list[Candidate]:
        if word in groups:
            return groups[word]
        found = _called(word, among)
        if len(found) > 1 and not _is_pattern(word):
            names = ", ".join(one.slug for one in found)
            self.refuse(where, f"{show(word)}, which is {names}", "one of them")
            return []
        if not found and not self.may_be_refused(word, among):
            known = sorted({*groups, *(one.slug for one in among)})
            outside = [one for one in self.candidates if one not in among and word in (one.slug, one.value, one.name)]
            found_words = f"{show(word)}, which is no member of this wave" if outside else show(word)
            self.refuse(where, found_words, did_you_mean(word, known))
        return found

    def may_be_refused(self, word: str, among: Sequence[Candidate]) -> bool:
        """Tell whether a word may mean what has a fault of its own: all VMs, a group, or a member."""
        if not among or self.readable.lacks(("groups", word)) or ("groups",) in self.readable.refused:
            return True
        return self.readable.lacks(("members",)) and bool(_called(word, self.candidates))

    def after(self, members: Sequence[Candidate]) -> dict[str, set[str]]:
        groups = {
            name: [
                one
                for index, word in enumerate(words)
                for one in self.called(("groups", name, index), word, members, {})
            ]
            for name, words in self.entry.groups.items()
        }
        self.groups = groups
        called = {word for one in members for word in (one.slug, one.name)}
        for name in groups:
            if name in called:
                self.refuse(("groups", name), f"{show(name)}, which is a VM of the wave as well", "another name")
        after: dict[str, set[str]] = {}
        for word, needed in self.entry.after.items():
            later = self.called(("after", word), word, members, groups)
            earlier = [
                one
                for index, need in enumerate(needed)
                for one in self.called(("after", word, index), need, members, groups)
            ]
            for one in later:
                after.setdefault(one.slug, set()).update(each.slug for each in earlier)
        return after

    def order(self, slugs: Sequence[str], after: Mapping[str, set[str]]) -> list[str]:
        sorter = TopologicalSorter({slug: sorted(after.get(slug, ()), key=slugs.index) for slug in slugs})
        try:
            return list(sorter.static_order())
        except CycleError as error:
            ring = " after ".join(reversed(error.args[1]))
            self.refuse(("after",), f"a ring: {ring}", "an order with a beginning")
            return list(slugs)

    def turns(
        self, members: Sequence[Candidate], order: Sequence[str]
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
        """Tell whom each VM waits for, and with whom it may not be at work."""
        turns: dict[str, list[str]] = {}
        apart: dict[str, list[str]] = {}
        for index, words in enumerate(self.entry.apart):
            found = [
                self.called(("apart", index, place), word, members, self.groups) for place, word in enumerate(words)
            ]
            chosen = {one.slug for each in found for one in each}
            queue = [slug for slug in order if slug in chosen]
            whole = all(found) and ("apart", index) not in self.readable.kept
            if len(queue) == 1 and whole and not self.readable.lacks(("members",), ("groups",)):
                self.refuse(("apart", index), f"{show(queue[0])} alone", "two VMs or more of the wave")
            for first, second in pairwise(queue):
                turns.setdefault(second, []).append(first)
            for slug in queue:
                apart.setdefault(slug, []).extend(other for other in queue if other != slug)
        return _without_repeats(turns), _without_repeats(apart)

    def schedule(self, members: Sequence[Candidate]) -> None:
        schedule = self.entry.schedule
        if schedule is None:
            return
        written = self.readable.schedule & {"cron", "at"}
        if len(written) != 1:
            found = "both cron and at" if written else "neither cron nor at"
            self.refuse(("schedule",), found, "exactly one of cron and at")
            return
        if schedule.cron is not None and (wrong := times.cron_fault(schedule.cron, self.zone)) is not None:
            self.refuse(("schedule", "cron"), *wrong)
            return
        if self.zone is None:
            return
        where = ZoneInfo(self.zone)
        for index, at in enumerate(schedule.at or ()):
            if self.date(("schedule", "at", index), at, where):
                self.in_window(("schedule", "at", index), [_moment(at, where)], where, members)
        if schedule.cron is not None:
            moments = chain(_fires(schedule, where), _fires_when_set_back(schedule, where))
            self.in_window(("schedule", "cron"), moments, where, members)

    def date(self, place: Location, written: str, where: ZoneInfo) -> bool:
        try:
            local = _local(written)
        except ValueError:
            self.refuse(place, show(written), "a day of the calendar")
            return False
        if not times.exists(local, where):
            self.refuse(place, f"{show(written)}, when clocks in {self.zone} skip that time", "a time that day has")
            return False
        return True

    def in_window(
        self, place: Location, moments: Iterable[datetime], where: ZoneInfo, members: Sequence[Candidate]
    ) -> None:
        """Find the first start at which the window lets no VM start, or is too short for the longest VM."""
        window = self.entry.window
        if window is None or not times.is_sound(window):
            return
        slug, expected_minutes = _longest(members)
        for moment in moments:
            told = f"{moment.astimezone(where):%a %Y-%m-%d %H:%M}"
            opening = times.opening_at(window, where, moment)
            if opening is None or moment >= opening.latest_start:
                expected = "times in the wave's window, before its latest start"
                self.refuse(place, f"{told}, when the window does not let VMs start", expected)
                return
            left = self.left(moment, opening.end, where)
            if left < expected_minutes <= times.minutes_open(window):
                expected = f"times that leave {slug} the {expected_minutes} minutes it is expected to take"
                self.refuse(place, f"{told}, {left} minutes before the window closes", expected)
                return

    def left(self, moment: datetime, end: datetime, where: ZoneInfo) -> int:
        """Tell how many minutes are left of a window; of a cron, which fires on many nights, as on most of them."""
        if self.entry.schedule is not None and self.entry.schedule.cron is not None:
            moment, end = (each.astimezone(where).replace(tzinfo=None) for each in (moment, end))
        return int((end - moment).total_seconds()) // 60

    def window(self, members: Sequence[Candidate]) -> None:
        window = self.entry.window
        if window is None:
            return
        length = times.minutes_open(window)
        if not times.is_sound(window):
            expected = f"a time between {window.start} and {window.end}"
            self.refuse(("window", "latest_start"), show(window.latest_start), expected)
        elif self.zone is not None:
            for key, found in times.skipped_by_window(window, self.zone):
                self.refuse(("window", key), found, "a time that every day has")
        slug, expected_minutes = _longest(members)
        if expected_minutes > length:
            found = f"{length} minutes, less than the {expected_minutes} that {slug} is expected to take"
            self.refuse(("window",), found, "a window in which its longest VM fits")

    def approvers(self, approval: Approval | None, people: Mapping[str, Person]) -> Iterator[dict[str, str]]:
        for index, key in enumerate((approval.by if approval else None) or ()):
            if key not in people:
                expected = did_you_mean(key, sorted(people)) if people else "a key of people, which the plan has not"
                self.refuse(("approval", "by", index), show(key), expected)
                continue
            yield approver(key, people[key])


def approver(key: str, person: Person) -> dict[str, str]:
    """Write a person as Airflow's questions name whom they ask."""
    return {"id": person.id or key, "name": person.name or key}


def fires(wave: Wave, after: datetime, count: int) -> list[datetime]:
    """List the next times at which a wave starts by itself, in UTC.

    :param after: with a zone
    """
    schedule = wave.entry.schedule
    if schedule is None:
        return []
    return list(_fires(schedule, wave.zone, after, count))


def _fires(
    schedule: Schedule, where: ZoneInfo, after: datetime | None = None, count: int = FIRES_LOOKED_AT
) -> Iterator[datetime]:
    if schedule.at is not None:
        moments = sorted(_moment(at, where) for at in schedule.at)
        yield from [moment for moment in moments if after is None or moment > after][:count]
        return
    if schedule.cron is None:
        return
    begin = after or datetime(times.FIRST_YEAR, 1, 1, tzinfo=UTC)
    following = croniter(schedule.cron, begin.astimezone(where), ret_type=datetime)
    # As Airflow does: of an hour that clocks show twice the second one counts, but for a cron of every hour.
    hourly = following.expanded[1] == ["*"]
    found = (moment.astimezone(UTC) for moment in following)
    yield from islice((moment for moment in found if hourly or not times.is_shown_again(moment, where)), count)


def _fires_when_set_back(schedule: Schedule, where: ZoneInfo) -> Iterator[datetime]:
    for change in times.set_back(where.key):
        end = change + timedelta(minutes=SET_BACK_LOOKED_AT)
        found = _fires(schedule, where, change - timedelta(minutes=1), SET_BACK_LOOKED_AT)
        yield from takewhile(lambda moment, end=end: moment < end, found)  # type: ignore[misc]


def _local(written: str) -> datetime:
    return datetime.fromisoformat(written.replace(" ", "T"))


def _moment(written: str, where: ZoneInfo) -> datetime:
    return times.instant(_local(written), where)


def _longest(members: Iterable[Candidate]) -> tuple[str, int]:
    """Find the VM that is expected to take longest: its slug and its minutes, 0 where none is known."""
    return max(((one.slug, one.expected_minutes or 0) for one in members), key=lambda one: one[1], default=("", 0))


def _without_repeats(lists: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    return {slug: tuple(dict.fromkeys(others)) for slug, others in lists.items()}


def _is_pattern(word: str) -> bool:
    return "*" in word or "?" in word


def _called(word: str, among: Iterable[Candidate]) -> list[Candidate]:
    """Find the VMs that a word means: those that a pattern fits, else the one of that slug, or those of that name."""
    among = list(among)
    if _is_pattern(word):
        return [one for one in among if fnmatchcase(one.name, word) or fnmatchcase(one.slug, word)]
    return [one for one in among if word == one.slug] or [one for one in among if word in (one.value, one.name)]


def _fits(rule: MemberRule, one: Candidate) -> bool:
    folder = one.path.rpartition("/")[0] if one.path else None
    below = rule.folder.rstrip("/") if rule.folder is not None else ""
    return (
        (rule.name is None or fnmatchcase(one.name, rule.name))
        and (rule.folder is None or (folder is not None and any(fnmatchcase(folder, p) for p in (below, below + "/*"))))
        and (rule.label is None or any(fnmatchcase(label, rule.label) for label in one.labels))
        and (rule.tag is None or any(fnmatchcase(tag, rule.tag) for tag in one.tags))
        and (rule.host is None or (one.host is not None and fnmatchcase(one.host, rule.host)))
    )
