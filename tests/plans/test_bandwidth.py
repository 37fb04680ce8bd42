"""Bandwidth limits in a plan: what may be written, what is refused at once, and which rate holds at which moment."""

from __future__ import annotations

import json
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hyperflow.manifest.faults import from_validation
from hyperflow.plans.bandwidth import HORIZON, DayPlan, bytes_per_second, overlaps, rates_from
from hyperflow.plans.load import load_plan
from hyperflow.plans.migration import Migration, effective
from hyperflow.plans.plan import PlanError
from hyperflow.plans.schema import plan_schema
from hyperflow.plans.settings import Limits
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from pydantic import TypeAdapter, ValidationError

PROFILES = Path(__file__).parents[2] / "include" / "profiles"
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
GOOD = """\
plan: web
vcenter: {connection: vcenter}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /staging, output_directory: /images}
limits: {bandwidth: 50 MB/s}
vms:
  - name: web01
  - name: web02
    limits: {bandwidth: unlimited}
  - name: web03
    limits:
      bandwidth:
        time_zone: Europe/Berlin
        default: 200 MB/s
        hours:
          - {from: "08:00", to: "18:00", days: [mon, tue, wed, thu, fri], rate: 50 MB/s}
          - {from: 22:00, to: 05:00, rate: unlimited}
"""


def said(bandwidth: Any) -> list[str]:
    """The faults of a limit by itself."""
    with pytest.raises(ValidationError) as refused:
        Limits.model_validate({"bandwidth": bandwidth})
    return [str(fault) for _, fault in from_validation(refused.value, Limits)]


def day_plan(*hours: tuple[str, str, list[str], str], zone: str = "UTC", default: str = "unlimited") -> DayPlan:
    written = [{"from": start, "to": end, "days": days, "rate": rate} for start, end, days, rate in hours]
    return DayPlan.model_validate({"time_zone": zone, "default": default, "hours": written})


def rate_at(rates: list[tuple[float, int | None]], moment: datetime) -> int | None:
    """The rate as the host finds it."""
    return rates[bisect_right([start for start, _ in rates], moment.timestamp()) - 1][1]


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        ("50 MB/s", 50_000_000),
        ("50MB/s", 50_000_000),
        ("50 MiB/s", 52_428_800),
        ("400 Mbit/s", 50_000_000),
        ("1 Gbit/s", 125_000_000),
        ("2.5 Gbit/s", 312_500_000),
        ("1 MB/s", 1_000_000),
        ("400 Gbit/s", 50_000_000_000),
        ("unlimited", None),
    ],
)
def test_a_rate_is_bytes_a_second_of_the_unit_that_is_named(rate: str, expected: int | None) -> None:
    assert Limits.model_validate({"bandwidth": rate}).bandwidth == rate
    assert bytes_per_second(rate) == expected


@pytest.mark.parametrize(
    "rate", ["50", "50 mb/s", "50 Mb/s", "50 MB", "50  MB/s", "1e3 MB/s", "-5 MB/s", "", "fast", "nan MB/s"]
)
def test_what_is_no_rate_is_refused_and_the_units_are_named(rate: str) -> None:
    (fault,) = said(rate)
    assert fault.startswith("bandwidth: found ")
    assert "expected a rate in MB/s, MiB/s, Mbit/s or Gbit/s" in fault


@pytest.mark.parametrize("rate", ["0 MB/s", "0.999 MB/s", "7.9 Mbit/s"])
def test_a_rate_that_no_disk_would_survive_is_refused_with_the_reason(rate: str) -> None:
    (fault,) = said(rate)
    assert "at least 1 MB/s: slower than that, a disk of 100 GB takes more than a day" in fault


def test_a_rate_that_no_host_has_is_refused() -> None:
    assert "at most 400 Gbit/s, or unlimited" in said("401 Gbit/s")[0]


@pytest.mark.parametrize("value", [50, 0, -1, 5.5, True, None, [], ["50 MB/s"]])
def test_what_is_neither_rate_nor_day_plan_is_refused_and_both_are_named(value: Any) -> None:
    (fault,) = said(value)
    assert "as 50 MB/s" in fault
    assert "with time_zone, default and hours" in fault


@pytest.mark.parametrize(
    "zone", ["Europe/Berlim", "Mars/Olympus", "Europe", "../../etc/passwd", "/etc/passwd", "", "+"]
)
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    (fault,) = said(
        {"time_zone": zone, "default": "50 MB/s", "hours": [{"from": "08:00", "to": "09:00", "rate": "1 MB/s"}]}
    )
    assert fault.startswith("bandwidth.time_zone: found ")
    assert "as Europe/Berlin" in fault


def test_a_zone_in_small_letters_or_without_its_continent_is_asked_after() -> None:
    plan = {"default": "50 MB/s", "hours": [{"from": "08:00", "to": "09:00", "rate": "1 MB/s"}]}
    for slip in ("berlin", "Berlin", "europe/berlin"):
        assert said({**plan, "time_zone": slip})[0].endswith("did you mean Europe/Berlin?")


def test_every_fault_of_a_day_plan_is_named_at_once_with_all_others_and_its_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    text = GOOD.replace("Europe/Berlin", "Berlin").replace("200 MB/s", "0 MB/s").replace("snapshots", "x")
    text = text.replace("name: web02", "name: 7").replace('"18:00", days: [mon, tue', '"18:60", days: [mon, mon')
    path.write_text(text)
    with pytest.raises(PlanError) as refused:
        load_plan(path, PROFILES)
    assert [(fault.path, fault.line) for fault in refused.value.faults] == [
        ("vms[1].name", 8),
        ("vms[2].limits.bandwidth.time_zone", 13),
        ("vms[2].limits.bandwidth.default", 14),
        ("vms[2].limits.bandwidth.hours[0].to", 16),
        ("vms[2].limits.bandwidth.hours[0].days", 16),
    ]


def test_hours_that_overlap_are_refused_where_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(GOOD.replace("to: 05:00", "to: 08:01").replace("name: web02", "name: 7"))
    with pytest.raises(PlanError) as refused:
        load_plan(path, PROFILES)
    assert [str(fault) for fault in refused.value.faults][1:] == [
        "vms[2].limits.bandwidth.hours[1]: found mon 08:00, which hours[0] has too, expected each hour of the week in "
        "one of them (line 17, column 13)"
    ]


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        (("08:00", "18:00", ["mon"]), ("18:00", "20:00", ["mon"]), False),
        (("08:00", "18:00", ["mon"]), ("17:59", "20:00", ["mon"]), True),
        (("08:00", "18:00", ["mon"]), ("08:00", "18:00", ["tue"]), False),
        (("22:00", "06:00", ["mon"]), ("00:00", "06:00", ["mon"]), False),
        (("22:00", "06:00", ["mon"]), ("05:59", "06:30", ["tue"]), True),
        (("22:00", "06:00", ["sun"]), ("05:00", "07:00", ["mon"]), True),
        (("00:00", "00:00", ["wed"]), ("12:00", "12:01", ["wed"]), True),
        (("12:00", "12:00", ["wed"]), ("11:59", "12:00", ["thu"]), True),
        (("12:00", "12:00", ["wed"]), ("12:00", "13:00", ["thu"]), False),
    ],
)
def test_an_hour_is_in_one_span_also_over_midnight_and_the_end_of_the_week(
    first: tuple[str, str, list[str]], second: tuple[str, str, list[str]], meet: bool
) -> None:
    for order in ((first, second), (second, first)):
        hours = [{"from": start, "to": end, "days": days, "rate": "50 MB/s"} for start, end, days in order]
        assert [where for where, _, _ in overlaps({"hours": hours})] == ([("hours", 1)] if meet else [])


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["hours", "from", "to", "days", "rate", "default"]), inner)
        ),
    )
)
def test_whatever_stands_there_is_taken_or_refused_with_a_reason(value: Any) -> None:
    assert list(overlaps(value)) == []
    try:
        Limits.model_validate({"bandwidth": value})
    except ValidationError as error:
        assert all(str(fault) for _, fault in from_validation(error, Limits))


def test_the_plans_limit_holds_for_every_vm_but_one_that_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(GOOD)
    plan = load_plan(tmp_path / "plan.yaml", PROFILES)
    found = [effective(plan, vm).bandwidth for vm in plan.vms]
    assert found[:2] == ["50 MB/s", "unlimited"]
    assert isinstance(found[2], DayPlan)
    assert found[2].to_document()["hours"][1] == {"from": "22:00", "to": "05:00", "rate": "unlimited"}


def test_a_run_keeps_its_limit_on_the_way_through_airflow(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(GOOD)
    plan = load_plan(tmp_path / "plan.yaml", PROFILES)
    for vm in plan.vms:
        migration = effective(plan, vm)
        carried = json.dumps(migration.model_dump(mode="json"))
        assert Migration.model_validate_json(carried) == migration
        assert TypeAdapter(Migration | dict).validate_json(carried) == migration


def test_a_plan_without_a_limit_has_none(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(GOOD.replace("limits: {bandwidth: 50 MB/s}\n", ""))
    plan = load_plan(tmp_path / "plan.yaml", PROFILES)
    assert effective(plan, plan.vms[0]).bandwidth is None


@pytest.mark.parametrize(
    ("bandwidth", "valid"),
    [
        ("50 MB/s", True),
        ("50", False),
        (50, False),
        (
            {"time_zone": "UTC", "default": "1 MB/s", "hours": [{"from": "08:00", "to": "09:00", "rate": "unlimited"}]},
            True,
        ),
        ({"time_zone": "UTC", "default": "1 MB/s", "hours": []}, False),
        ({"time_zone": "UTC", "default": "1 MB/s"}, False),
    ],
)
def test_the_schema_for_editors_says_the_same(bandwidth: Any, valid: bool) -> None:
    limits = {"$ref": "#/definitions/Limits", "definitions": plan_schema()["definitions"]}
    assert Draft7Validator(limits).is_valid({"bandwidth": bandwidth}) is valid


def test_one_rate_holds_always() -> None:
    now = datetime.now(UTC)
    assert rates_from("50 MB/s", now) == [(0.0, 50_000_000)]
    assert rates_from("unlimited", now) == [(0.0, None)]


def test_office_hours_are_those_of_the_plans_zone_in_winter_and_in_summer() -> None:
    plan = day_plan(("08:00", "18:00", DAYS[:5], "50 MB/s"), zone="Europe/Berlin", default="200 MB/s")
    rates = rates_from(plan, datetime(2027, 3, 24, 12, tzinfo=UTC))
    for day, first_hour in ((26, 7), (29, 6)):  # the Friday before, and the Monday after, clocks go on
        start = datetime(2027, 3, day, first_hour, tzinfo=UTC)
        assert [rate_at(rates, start + timedelta(minutes=minute)) for minute in (-1, 0, 599, 600)] == [
            200_000_000,
            50_000_000,
            50_000_000,
            200_000_000,
        ]
    assert rate_at(rates, datetime(2027, 3, 28, 12, tzinfo=UTC)) == 200_000_000  # a Sunday


def test_an_hour_that_clocks_skip_is_left_out_and_one_that_they_show_twice_counts_twice() -> None:
    plan = day_plan(("02:00", "03:00", DAYS, "50 MB/s"), zone="Europe/Berlin")

    def hours_limited(first: datetime) -> int:
        rates = rates_from(plan, first)
        return sum(rate_at(rates, first + timedelta(minutes=minute)) is not None for minute in range(24 * 60))

    assert hours_limited(datetime(2027, 3, 26, 23, tzinfo=UTC)) == 60
    assert hours_limited(datetime(2027, 3, 27, 23, tzinfo=UTC)) == 0
    assert hours_limited(datetime(2027, 10, 30, 22, tzinfo=UTC)) == 120


def test_after_thirty_days_the_lowest_rate_of_the_plan_holds() -> None:
    plan = day_plan(("08:00", "18:00", ["sun"], "20 MB/s"), ("18:00", "19:00", ["sun"], "unlimited"), default="70 MB/s")
    now = datetime(2027, 3, 24, 12, tzinfo=UTC)
    assert rate_at(rates_from(plan, now), now + HORIZON + timedelta(days=400)) == 20_000_000


CLOCKS = st.integers(0, 24 * 60 - 1).map(lambda minute: f"{minute // 60:02d}:{minute % 60:02d}")
SPANS = st.tuples(
    CLOCKS,
    CLOCKS,
    st.lists(st.sampled_from(DAYS), min_size=1, max_size=7, unique=True),
    st.sampled_from(["1 MB/s", "50 MB/s", "1 Gbit/s", "unlimited"]),
)
ZONES = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "America/Santiago",
        "Pacific/Apia",
    ]
)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def apart(spans: list[tuple[str, str, list[str], str]]) -> list[tuple[str, str, list[str], str]]:
    """Those that meet none before them."""
    kept: list[tuple[str, str, list[str], str]] = []
    for span in spans:
        if not list(overlaps(day_plan(*kept, span).to_document())):
            kept.append(span)
    return kept


def covers(span: tuple[str, str, list[str], str], local: datetime) -> bool:
    """By the words of the documentation, and not as the plan computes it."""
    start, end, days, _ = span
    clock, today, yesterday = f"{local:%H:%M}", DAYS[local.weekday()], DAYS[local.weekday() - 1]
    if start < end:
        return today in days and start <= clock < end
    return (today in days and clock >= start) or (yesterday in days and clock < end)


@settings(max_examples=150)
@given(
    st.lists(SPANS, min_size=1, max_size=5),
    ZONES,
    st.integers(0, 5 * 365 * 24 * 60),
    st.lists(st.integers(0, 30 * 24 * 60 - 1), min_size=1, max_size=40),
)
def test_each_minute_of_any_day_plan_has_exactly_one_rate_and_the_host_is_told_that_one(
    spans: list[tuple[str, str, list[str], str]], zone: str, start: int, minutes: list[int]
) -> None:
    plan = day_plan(*(spans := apart(spans)), zone=zone, default="70 MB/s")
    assert len(plan.week()) == 7 * 24 * 60
    now = FIRST + timedelta(minutes=start)
    rates = rates_from(plan, now)
    starts = [each for each, _ in rates]
    assert starts == sorted(set(starts))
    assert starts[0] <= now.timestamp()
    for minute in minutes:
        moment = now + timedelta(minutes=minute)
        local = moment.astimezone(ZoneInfo(zone))
        here = [span[3] for span in spans if covers(span, local)] or ["70 MB/s"]
        assert len(here) == 1
        assert rate_at(rates, moment) == bytes_per_second(here[0])


@settings(max_examples=60)
@given(ZONES, st.integers(0, 5 * 365), CLOCKS, CLOCKS)
def test_on_the_days_when_clocks_change_every_minute_has_the_rate_that_clocks_show(
    zone: str, day: int, start: str, end: str
) -> None:
    where = ZoneInfo(zone)
    hour = FIRST + timedelta(days=day)
    change = next(
        (
            each
            for ahead in range(366 * 24)
            if (each := hour + timedelta(hours=ahead)).astimezone(where).utcoffset()
            != (each + timedelta(hours=1)).astimezone(where).utcoffset()
        ),
        hour,
    )
    span = (start, end, DAYS, "50 MB/s")
    rates = rates_from(day_plan(span, zone=zone), change - timedelta(days=1))
    for minute in range(-180, 240):
        moment = change + timedelta(minutes=minute)
        limited = covers(span, moment.astimezone(where))
        assert rate_at(rates, moment) == (50_000_000 if limited else None)
