"""Waves: who is in them, in which order, when; and every fault of them at once."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml
from hyperflow.plans import times
from hyperflow.plans.check import check_plans, in_no_wave, plans_beside
from hyperflow.plans.estimate import Rates, estimate_wave, minutes_text, rates_of, starts_beside
from hyperflow.plans.load import load_plan
from hyperflow.plans.plan import PlanError
from hyperflow.plans.schema import plan_schema
from hyperflow.plans.survey import Survey, SurveyedVm, not_found, survey_path, write_survey
from hyperflow.plans.wave import fires
from hyperflow.plans.wave_settings import Window
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

PROFILES = Path(__file__).parents[2] / "include" / "profiles"
BERLIN = ZoneInfo("Europe/Berlin")
VMS = ["db01", "db02", {"name": "web01", "labels": ["gold"]}, {"name": "web02", "labels": ["gold", "test"]}, "mail01"]


def document(*waves, vms=VMS, **top):
    return {
        "plan": "move",
        "vcenter": {"connection": "vcenter"},
        "profile": "kvm-migration",
        "host": {"connection": "kvm01", "staging_directory": "/staging", "output_directory": "/images"},
        "time_zone": "Europe/Berlin",
        "people": {"alice": {"name": "Alice Adams"}, "bob": {"id": "7"}},
        "vms": [vm if isinstance(vm, dict) else {"name": vm} for vm in vms],
        "waves": list(waves),
        **top,
    }


def load(tmp_path, *waves, **top):
    path = tmp_path / "move.yaml"
    path.write_text(yaml.safe_dump(document(*waves, **top), sort_keys=False))
    return load_plan(path, PROFILES)


def faults(tmp_path, *waves, **top):
    with pytest.raises(PlanError) as refused:
        load(tmp_path, *waves, **top)
    return [str(fault) for fault in refused.value.faults]


def members(tmp_path, *chosen, **top):
    return load(tmp_path, {"name": "one", "members": list(chosen)}, **top).wave("one").members


def test_members_are_named_matched_or_chosen_by_what_they_are_and_stand_in_the_plans_order(tmp_path):
    assert members(tmp_path, "web02", "db01") == ("db01", "web02")
    assert members(tmp_path, "web*", "web01") == ("web01", "web02")
    assert members(tmp_path, {"label": "gold", "name": "*02"}) == ("web02",)


def test_members_are_chosen_by_folder_and_all_below_it(tmp_path):
    vms = [{"inventory_path": f"/DC/vm/{path}"} for path in ("Prod/a", "Prod/Blue/b", "Production/c")]
    assert members(tmp_path, {"folder": "/DC/vm/Prod"}, vms=vms) == ("a", "b")
    assert members(tmp_path, {"folder": "/DC/vm/Prod*"}, vms=vms) == ("a", "b", "c")


def surveyed(name, host="esx01", size=0, tags=()):
    return SurveyedVm(
        name=name,
        inventory_path=f"/DC/vm/Prod/{name}",
        host=host,
        power_state="poweredOn",
        tags=list(tags),
        capacity_bytes=size,
        used_bytes=size or None,
    )


def test_host_and_tag_need_a_survey_of_all_vms_and_count_by_it(tmp_path):
    (said,) = faults(tmp_path, {"name": "one", "members": [{"host": "esx01"}]})
    assert "not known of db01 and 4 more" in said
    assert "wave survey" in said
    names = ("db01", "db02", "web01", "web02", "mail01")
    seen = {
        name: surveyed(name, host="esx02" if name == "mail01" else "esx01", tags=["t1"] * (name == "db02"))
        for name in names
    }
    write_survey(tmp_path / "move.yaml", "move", Survey(asked="2026-11-24T00:00:00Z", vms=seen))
    assert members(tmp_path, {"host": "esx02"}) == ("mail01",)
    assert members(tmp_path, {"tag": "t?"}) == ("db02",)
    assert members(tmp_path, {"folder": "/DC/vm/Prod", "name": "db*"}) == ("db01", "db02")


def test_a_folder_needs_a_survey_of_vms_that_are_not_given_by_their_path(tmp_path):
    vms = [{"inventory_path": "/DC/vm/Prod/a"}, "db01", "db02"]
    (said,) = faults(tmp_path, {"name": "one", "members": [{"folder": "/DC/vm/Prod"}]}, vms=vms)
    assert "waves[0].members[0]: found a rule on folder, which is not known of db01 and 1 more" in said
    seen = {"db01": surveyed("db01"), "db02": surveyed("db02")}
    write_survey(tmp_path / "move.yaml", "move", Survey(asked="2026-11-24T00:00:00Z", vms=seen))
    assert members(tmp_path, {"folder": "/DC/vm/Prod"}, vms=vms) == ("a", "db01", "db02")


@pytest.mark.parametrize("rule", [{"tag": "t1"}, {"folder": "/DC/vm/Prod"}])
def test_a_vm_that_a_survey_did_not_find_takes_no_wave_away_and_is_chosen_by_what_is_known_of_it(tmp_path, rule):
    seen = {name: surveyed(name, tags=["t1"]) for name in ("db01", "db02")}
    asked = Survey(vms=seen, missing={"db02": "not found", "web01": "not found"})
    write_survey(tmp_path / "move.yaml", "move", asked)
    assert members(tmp_path, rule, vms=["db01", "db02", "web01"]) == ("db01", "db02")
    assert not_found(asked) == [
        "db02: not found; rules go by what an earlier survey knew of it",
        "web01: not found; no rule on tag, host or folder fits it",
    ]


@pytest.mark.parametrize(
    ("content", "said"), [('{"vms": {"db01": {"name": 7}}}', "damaged"), ("", "damaged"), (None, "Is a directory")]
)
@pytest.mark.parametrize("top", [{}, {"pools": {"nfc_streams_per_esxi": 8}}])
def test_a_damaged_survey_is_one_fault_beside_the_plans_others_and_keeps_nobody_from_a_new_one(
    tmp_path, content, said, top
):
    where = survey_path(tmp_path / "move.yaml", "move")
    where.parent.mkdir()
    where.mkdir() if content is None else where.write_text(content)
    wave = {"name": "one", "members": [{"tag": "gold"}]}
    damaged = f"survey: found {where}: {said}, expected what was written there: run ./hyperflow wave survey again"
    assert faults(tmp_path, wave, **top) == [damaged]
    assert len(faults(tmp_path, wave, drift="stpo", **top)) == 2
    (tmp_path / "move.yaml").write_text(yaml.safe_dump(document(wave, **top)))
    assert load_plan(tmp_path / "move.yaml", PROFILES, waves=False).name == "move"


def test_a_survey_that_nothing_asks_is_not_read(tmp_path):
    survey_path(tmp_path / "move.yaml", "move").parent.mkdir()
    survey_path(tmp_path / "move.yaml", "move").write_text("damaged")
    assert load(tmp_path).waves == ()


def test_vms_that_are_in_no_wave_are_named_of_many_the_first(tmp_path):
    assert in_no_wave(load(tmp_path, {"name": "one", "members": ["*"]})) is None
    assert in_no_wave(load(tmp_path)) is None
    vms = ["a", *(f"b{number:02}" for number in range(14))]
    first = ", ".join(vms[1:11])
    assert in_no_wave(load(tmp_path, {"name": "one", "members": ["a"]}, vms=vms)) == (
        f"14 of 15 VMs are in no wave: {first} and 4 more"
    )


def test_a_wave_whose_name_was_mistyped_is_named(tmp_path):
    plan = load(tmp_path, {"name": "friday", "members": ["db01"]}, {"name": "saturday", "members": ["db02"]})
    with pytest.raises(KeyError, match=r"in plan move, expected saturday \(did you mean that\?\), or one of friday"):
        plan.wave("satruday")
    with pytest.raises(KeyError, match="expected none: the plan has no waves"):
        load(tmp_path).wave("saturday")


def test_the_order_joins_dependencies_of_groups_with_turns_of_those_that_may_not_run_together(tmp_path):
    wave = load(
        tmp_path,
        {
            "name": "one",
            "members": ["*"],
            "groups": {"databases": ["db*"], "application": ["web*"]},
            "after": {"application": ["databases"], "mail01": ["web01"]},
            "apart": [["web02", "web01"]],
        },
    ).wave("one")
    assert wave.after == {"web01": ("db01", "db02"), "web02": ("db01", "db02"), "mail01": ("web01",)}
    assert wave.turns == {"web02": ("web01",)}
    assert wave.steps() == [["db01", "db02"], ["web01"], ["web02", "mail01"]]


def test_a_group_of_two_can_be_kept_apart_by_its_name_and_one_vm_cannot(tmp_path):
    wave = {"name": "one", "members": ["*"], "groups": {"databases": ["db*"]}, "apart": [["databases"]]}
    assert load(tmp_path, wave).wave("one").turns == {"db02": ("db01",)}
    assert Draft7Validator(plan_schema()).is_valid(document(wave))
    (said,) = faults(tmp_path, {**wave, "apart": [["db01"]]})
    assert said.startswith('waves[0].apart[0]: found "db01" alone, expected two VMs or more of the wave')


def test_those_kept_apart_take_turns_in_the_order_of_their_dependencies_so_that_no_ring_comes_of_it(tmp_path):
    wave = load(
        tmp_path,
        {"name": "one", "members": ["db*"], "after": {"db01": ["db02"]}, "apart": [["db01", "db02"]]},
    ).wave("one")
    assert wave.steps() == [["db02"], ["db01"]]


def test_approvers_are_those_of_the_plans_people(tmp_path):
    wave = load(tmp_path, {"name": "one", "members": ["db01"], "approval": {"by": ["alice", "bob"]}}).wave("one")
    assert wave.approvers == ({"id": "alice", "name": "Alice Adams"}, {"id": "7", "name": "bob"})


@pytest.mark.parametrize(
    ("wave", "said"),
    [
        (
            {"members": ["web9"]},
            'waves[0].members[0]: found "web9", expected web02 (did you mean that?), or one of db01,',
        ),
        ({"members": ["x*"]}, 'waves[0].members[0]: found "x*"'),
        ({"members": [{"label": "silver"}]}, "found a rule that no VM of the plan fits"),
        ({"members": [{}]}, "found a rule without any key"),
        (
            {"members": [{"labl": "x"}]},
            "members[0].labl: found an unknown key, expected label (did you mean that?), or one of name, folder",
        ),
        ({"members": [["db01"]]}, "waves[0].members[0]: found a list of 1, expected a string"),
        (
            {"members": ["db*"], "after": {"db01": ["db02"], "db02": ["db01"]}},
            "found a ring: db01 after db02 after db01",
        ),
        ({"members": ["db*"], "after": {"web01": ["db01"]}}, 'waves[0].after.web01: found "web01"'),
        ({"members": ["db*"], "groups": {"a": ["web01"]}}, "waves[0].groups.a[0]"),
        (
            {"members": ["db*"], "approval": {"by": ["carol"]}},
            'waves[0].approval.by[0]: found "carol", expected one of',
        ),
        ({"members": ["db*"], "schedule": {}}, "found neither cron nor at"),
        ({"members": ["db*"], "schedule": {"cron": "0 0 30 2 *"}}, "which no day ever matches"),
        ({"members": ["db*"], "schedule": {"cron": "0 0 * *"}}, "4 field(s)"),
        ({"members": ["db*"], "schedule": {"cron": "61 0 * * *"}}, "waves[0].schedule.cron"),
        ({"members": ["db*"], "schedule": {"cron": "R 22 * * sat"}}, "waves[0].schedule.cron"),  # croniter's dice
        ({"members": ["db*"], "schedule": {"at": ["9999-12-31T23:59"]}}, "waves[0].schedule.at[0]"),
        ({"members": ["db*"], "schedule": {"at": ["0001-01-01T00:00"]}}, "waves[0].schedule.at[0]"),
        (
            {"members": ["db*"], "schedule": {"cron": "30 2 * * sun"}},
            "2026-03-29 02:30, when clocks in Europe/Berlin go",
        ),
        ({"members": ["db*"], "schedule": {"at": ["2027-03-28T02:30"]}}, "when clocks in Europe/Berlin skip that time"),
        ({"members": ["db*"], "schedule": {"at": ["2027-02-30T02:30"]}}, "expected a day of the calendar"),
        (
            {"members": ["db*"], "window": {"start": "22:00", "end": "02:00", "latest_start": "03:00"}},
            "expected a time between 22:00 and 02:00",
        ),
        (
            {
                "members": ["db*"],
                "schedule": {"cron": "0 12 * * sat"},
                "window": {"days": ["sat"], "start": "22:00", "end": "02:00"},
            },
            "when the window does not let VMs start",
        ),
        (
            {"members": ["db*"], "window": {"days": ["sun"], "start": "02:30", "end": "06:00"}},
            "waves[0].window.start: found 2026-03-29 02:30, when clocks in Europe/Berlin go from 02:00 to 03:00",
        ),
        (
            {"members": ["db*"], "window": {"days": ["sat"], "start": "22:00", "end": "02:30"}},
            "waves[0].window.end: found 2026-03-29 02:30",
        ),
        (
            {"members": ["db*"], "groups": {"db01": ["db02"]}},
            'waves[0].groups.db01: found "db01", which is a VM of the wave as well',
        ),
        ({"members": ["db*"], "groups": {"a": ["db01"]}, "apart": [["a", "db01"]]}, 'apart[0]: found "db01" alone'),
        (
            {"members": ["db*"], "after": {"db01": ["web01"]}},
            'waves[0].after.db01[0]: found "web01", which is no member of this wave',
        ),
        ({"members": ["db*"], "max_in_flight": 0}, "waves[0].max_in_flight"),
        ({"members": ["db*"], "on_failure": "panic"}, "waves[0].on_failure"),
    ],
)
def test_a_fault_of_a_wave_is_named_with_its_place(tmp_path, wave, said):
    (found,) = faults(tmp_path, {"name": "one", **wave})
    assert said in found


def test_all_faults_of_all_waves_are_named_at_once_with_those_of_the_plan(tmp_path):
    said = faults(
        tmp_path,
        {"name": "one", "members": ["db01", "web9"], "after": {"db01": ["db01"]}},
        {"name": "one", "members": ["db01"], "approval": {"by": ["x"]}},
        profile="nothing",
    )
    places = [line.split(": ")[0] for line in said]
    expected = [
        "profile",
        "waves[0].members[1]",
        "waves[0].after",
        "waves[1].name",
        "waves[1].members",
        "waves[1].approval.by[0]",
    ]
    assert sorted(places) == sorted(expected)


def test_what_one_key_of_a_wave_has_wrong_hides_no_fault_of_its_other_keys(tmp_path):
    said = faults(
        tmp_path,
        {
            "name": "one",
            "members": ["db*", "zz"],
            "max_in_flight": 0,
            "after": {"db01": ["db02"], "db02": ["db01"]},
            "approval": {"by": ["carol"], "timeout_minutes": "long"},
            "window": {"days": ["sat"], "start": "22:00", "end": "23:00", "unknown": 1},
            "schedule": {"cron": "0 12 * * sat"},
        },
        {"name": "two", "members": [7], "schedule": {"cron": "0 0 30 2 *"}},
    )
    assert [line.partition(": ")[0] for line in said] == [
        "waves[0].members[1]",
        "waves[0].max_in_flight",
        "waves[0].after",
        "waves[0].approval.by[0]",
        "waves[0].approval.timeout_minutes",
        "waves[0].window.unknown",
        "waves[0].schedule.cron",
        "waves[1].members[0]",
        "waves[1].schedule.cron",
    ]


@pytest.mark.parametrize(
    ("wave", "said"),
    [
        ({"schedule": {"cron": "@weekly"}}, ['waves[0].schedule.cron: found "@weekly"']),
        ({"schedule": {"cron": None}}, ["waves[0].schedule.cron: found null"]),
        (
            {"schedule": {"at": ["2026-03-29T02:30", "x", "2026-02-30T10:00"]}},
            [
                'waves[0].schedule.at[0]: found "2026-03-29T02:30", when clocks',
                'waves[0].schedule.at[1]: found "x"',
                'waves[0].schedule.at[2]: found "2026-02-30T10:00", expected a day',
            ],
        ),
        (
            {"schedule": {"cron": "@weekly", "at": ["x"]}},
            [
                "waves[0].schedule: found both cron and at",
                'waves[0].schedule.cron: found "@weekly"',
                'waves[0].schedule.at[0]: found "x"',
            ],
        ),
        (
            {"members": ["web9", 7, {"labl": "gold"}, "db*", "mail9"], "after": {"web01": ["db01"], "zz": ["db01"]}},
            [
                'waves[0].members[0]: found "web9"',
                "waves[0].members[1]: found 7",
                "waves[0].members[2].labl: found an unknown key",
                'waves[0].members[4]: found "mail9"',
                'waves[0].after.zz: found "zz"',
            ],
        ),
        (
            {"apart": [[7], ["db01", 7, "zz"], [7, "db01", "db02"], ["yy", "db01"]]},
            [
                "waves[0].apart[0][0]: found 7",
                "waves[0].apart[1][1]: found 7",
                'waves[0].apart[1][2]: found "zz"',
                "waves[0].apart[2][0]: found 7",
                'waves[0].apart[3][0]: found "yy"',
            ],
        ),
        (
            {"groups": {"a": [7], "b": ["yy", 7]}, "after": {"a": ["b"], "zz": ["a"]}, "apart": [["a", "db01"]]},
            [
                "waves[0].groups.a[0]: found 7",
                'waves[0].groups.b[0]: found "yy"',
                "waves[0].groups.b[1]: found 7",
                'waves[0].after.zz: found "zz"',
            ],
        ),
        (
            {"schedule": {"cron": "0 12 * * sat"}, "window": {"days": ["sta"], "start": "22:00", "end": "23:00"}},
            ['waves[0].window.days[0]: found "sta"'],
        ),
        (
            {"schedule": {"cron": "0 0 30 2 *"}, "window": {"start": 22, "end": "23:00"}},
            ["waves[0].schedule.cron: found '0 0 30 2 *'", "waves[0].window.start: found 22"],
        ),
        ({"[key]": 1, "after": {"zz": ["db01"]}}, ["waves[0]: found an unknown key", 'waves[0].after.zz: found "zz"']),
        (
            {"name": "-", "approval": {"by": ["carol", 7, "dave"]}},
            [
                'waves[0].name: found "-"',
                'waves[0].approval.by[0]: found "carol"',
                "waves[0].approval.by[1]: found 7",
                'waves[0].approval.by[2]: found "dave"',
            ],
        ),
    ],
)
def test_what_the_models_refuse_in_a_wave_hides_and_causes_no_other_fault(tmp_path, wave, said):
    told = faults(tmp_path, {"name": "one", "members": ["db*"], **wave})
    assert len(told) == len(said), told
    for line in said:
        assert any(each.startswith(line) for each in told), told


def test_a_wave_without_a_good_member_still_has_its_name(tmp_path):
    said = faults(tmp_path, {"name": "one", "members": [7]}, {"name": "one", "members": []}, {"name": "one"})
    assert [line.partition(", expected")[0] for line in said] == [
        "waves[0].members[0]: found 7",
        "waves[1].name: found the name of waves[0] again",
        "waves[1].members: found a list of 0",
        "waves[2].members: found nothing",
        "waves[2].name: found the name of waves[0] again",
    ]


def test_a_window_that_closes_when_the_clocks_go_on_is_no_fault(tmp_path):
    window = {"days": ["sat"], "start": "22:00", "end": "03:00", "latest_start": "02:00"}
    assert load(tmp_path, {"name": "one", "members": ["db*"], "window": window}).waves


def test_a_window_is_an_hour_longer_on_the_night_that_has_an_hour_twice():
    saturday = window(days=["sat"], start="22:00", end="04:00")
    opening = times.opening_at(saturday, BERLIN, berlin("2026-10-24T23:00"))
    assert opening.end - opening.start == timedelta(hours=7)
    shorter = times.opening_at(saturday, BERLIN, berlin("2027-03-27T23:00"))
    assert shorter.end - shorter.start == timedelta(hours=5)


@pytest.mark.parametrize("settings", [{}, {"cutover": {"strategy": "cold", "approval": {"by": ["carol"]}}}])
def test_an_unknown_approver_of_a_cutover_is_named_as_one_of_a_wave_is(tmp_path, settings):
    vms = ["db01", {"name": "db02", "cutover": {"strategy": "cold", "approval": {"by": ["alise"]}}}]
    said = faults(tmp_path, {"name": "one", "members": ["*"]}, vms=vms, **settings)
    assert 'vms[1].cutover.approval.by[0]: found "alise", expected alice (did you mean that?), or one of bob' in said[0]
    assert len(said) == 1 + len(settings)


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ([], "vms[0].cutover.approval.at: found a list of 0, expected at least 1"),
        (["start", "start"], "vms[0].cutover.approval.at: found a list of 2, expected each step once"),
        (["export"], "vms[0].cutover.approval.at[0]: found \"export\", expected 'shutdown' or 'start'"),
        ("start", 'vms[0].cutover.approval.at: found "start", expected a list'),
        (None, "vms[0].cutover.approval.at: found null, expected a list"),
    ],
)
def test_a_cutover_is_approved_before_steps_that_there_are_each_named_once(tmp_path, at, said):
    vms = [{"name": "db01", "cutover": {"strategy": "cold", "approval": {"at": at}}}]
    (found,) = faults(tmp_path, vms=vms)
    assert found.startswith(said)
    approval = {"$ref": "#/definitions/CutoverApproval", "definitions": plan_schema()["definitions"]}
    assert not Draft7Validator(approval).is_valid({"at": at})


def test_a_wave_is_approved_before_it_begins_and_at_no_step(tmp_path):
    (said,) = faults(tmp_path, {"name": "one", "members": ["db01"], "approval": {"at": ["start"]}})
    assert said.startswith("waves[0].approval.at: found an unknown key, expected one of by, timeout_minutes")


def test_two_people_are_not_one_user_of_airflow(tmp_path):
    people = {"alice": {"id": "7"}, "bob": {"id": "7"}, "7": {}}
    said = faults(tmp_path, {"name": "one", "members": ["*"]}, people=people)
    assert [line.partition(", expected")[0] for line in said] == [
        'people.bob.id: found "7", the id of people.alice again',
        'people.7: found "7", the id of people.alice again',
    ]


def test_one_vm_is_not_named_twice_by_its_name_and_its_path(tmp_path):
    vms = [
        "db01",
        {"inventory_path": "/DC/vm/x/db01"},
        {"inventory_path": "/DC/vm/web"},
        {"inventory_path": "/DC/vm/y/web"},
    ]
    (said,) = faults(tmp_path, vms=vms)
    assert said.startswith("vms[1].inventory_path: found the VM of vms[0] again")
    elsewhere = {"connection": "vcenter", "datacenter": "Other"}
    assert load(tmp_path, vms=vms, vcenter=elsewhere).vms


def test_a_window_is_held_to_the_longest_vm(tmp_path):
    window = {"start": "22:00", "end": "02:00"}
    vms = ["db01", {"name": "db02", "expected_minutes": 241}]
    (said,) = faults(tmp_path, {"name": "one", "members": ["*"], "window": window}, vms=vms)
    assert said.startswith("waves[0].window: found 240 minutes, less than the 241 that db02 is expected to take")


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (
            {"cron": "55 23 * * *"},
            "waves[0].schedule.cron: found Thu 2026-01-01 23:55, 15 minutes before the window closes, "
            "expected times that leave db02 the 60 minutes it is expected to take",
        ),
        (
            {"at": ["2026-12-05T23:10", "2026-12-06T23:11", "2026-12-07T21:00"]},
            "waves[0].schedule.at[1]: found Sun 2026-12-06 23:11, 59 minutes before the window closes",
        ),
    ],
)
def test_a_start_is_held_to_the_longest_vm(tmp_path, schedule, said):
    window = {"start": "22:00", "end": "00:10"}
    vms = ["db01", {"name": "db02", "expected_minutes": 60}, {"name": "db03", "expected_minutes": 20}]
    told = faults(tmp_path, {"name": "one", "members": ["*"], "window": window, "schedule": schedule}, vms=vms)
    assert told[0].startswith(said)
    assert [line.partition(", when the window")[0] for line in told[1:]] == (
        ["waves[0].schedule.at[2]: found Mon 2026-12-07 21:00"] if "at" in schedule else []
    )
    fitting = {"name": "one", "members": ["*"], "window": window, "schedule": {"cron": "10 23 * * *"}}
    assert load(tmp_path, fitting, vms=vms).waves


def test_a_night_that_clocks_shorten_counts_for_its_date_and_not_for_a_cron(tmp_path):
    wave = {"name": "one", "members": ["*"], "window": {"days": ["sat"], "start": "22:00", "end": "04:00"}}
    vms = [{"name": "db01", "expected_minutes": 301}]
    assert load(tmp_path, {**wave, "schedule": {"cron": "0 22 * * sat"}}, vms=vms).waves
    assert load(tmp_path, {**wave, "schedule": {"at": ["2027-03-20T22:00"]}}, vms=vms).waves
    (said,) = faults(tmp_path, {**wave, "schedule": {"at": ["2027-03-27T22:00"]}}, vms=vms)
    assert said.startswith("waves[0].schedule.at[0]: found Sat 2027-03-27 22:00, 300 minutes before the window closes")


def test_a_time_needs_a_time_zone_that_exists(tmp_path):
    wave = {"name": "one", "members": ["db01"], "schedule": {"cron": "0 22 * * sat"}}
    (said,) = faults(tmp_path, wave, time_zone="Europe/Berln")
    assert said.startswith('time_zone: found "Europe/Berln"')
    bare = document(wave)
    del bare["time_zone"]
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(bare))
    with pytest.raises(PlanError, match=r"time_zone: found nothing, and waves\[0\] has a schedule"):
        load_plan(tmp_path / "bare.yaml", PROFILES)


@pytest.mark.parametrize("again", ["db01", {"inventory_path": "/DC/vm/db01"}])
def test_two_plans_may_not_move_one_vm_in_their_waves(tmp_path, again):
    paths = []
    for name, vm in (("first", "db01"), ("second", again)):
        written = document({"name": "one", "members": ["db01"]}, vms=[vm])
        folders = {"staging_directory": f"/staging/{name}", "output_directory": f"/images/{name}"}
        written |= {"plan": name, "host": {**written["host"], **folders}}
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(written))
    first, second = check_plans(paths, PROFILES)
    assert first.faults == ()
    (fault,) = second.faults
    assert fault.found == "db01, which is in wave one of plan first already"
    (alone,) = check_plans(paths[1:], PROFILES, beside=plans_beside(paths[1:]))
    assert alone.faults == second.faults


def test_what_is_wrong_with_the_plans_beside_it_is_not_told_of_a_plan(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(document({"name": "one", "members": ["db01"]})))
    (tmp_path / "broken.yaml").write_text("plan: [")
    (checked,) = check_plans([path], PROFILES, beside=plans_beside([path]))
    assert checked.faults == ()


# Time


def window(**settings):
    return Window.model_validate(settings)


def berlin(text):
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


def test_a_window_over_midnight_is_open_on_the_next_morning_and_belongs_to_the_day_it_opened_on():
    saturday = window(days=["sat"], start="22:00", end="04:00", latest_start="02:00")
    opening = times.opening_at(saturday, BERLIN, berlin("2026-11-29T03:59"))
    assert opening.start == berlin("2026-11-28T22:00")
    assert (opening.latest_start, opening.end) == (berlin("2026-11-29T02:00"), berlin("2026-11-29T04:00"))
    for closed in ("2026-11-28T21:59", "2026-11-29T04:00", "2026-11-29T22:30"):
        assert times.opening_at(saturday, BERLIN, berlin(closed)) is None
    assert times.next_opening(saturday, BERLIN, berlin("2026-11-29T04:00")).start == berlin("2026-12-05T22:00")


@given(st.integers(0, 24 * 60 - 1), st.integers(0, 24 * 60 - 1), st.integers(0, 366 * 24 * 60))
def test_every_moment_is_in_a_window_or_in_its_complement(start, end, minute):
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    clock = "{:02d}:{:02d}".format
    if start == end:
        return
    here = times.opening_at(window(start=clock(*divmod(start, 60)), end=clock(*divmod(end, 60))), UTC_ZONE, moment)
    there = times.opening_at(window(start=clock(*divmod(end, 60)), end=clock(*divmod(start, 60))), UTC_ZONE, moment)
    assert (here is None) != (there is None)


UTC_ZONE = ZoneInfo("UTC")


def test_what_clocks_skip_is_found_for_each_spring_of_the_years_looked_at():
    gaps = times.skipped("Europe/Berlin")
    assert gaps[0] == (datetime(2026, 3, 29, 2), datetime(2026, 3, 29, 3))
    assert len(gaps) == times.LAST_YEAR - times.FIRST_YEAR + 1
    assert times.skipped("UTC") == ()
    assert times.skipped("Australia/Lord_Howe")[0] == (datetime(2026, 10, 4, 2), datetime(2026, 10, 4, 2, 30))


def test_dates_of_a_schedule_are_the_plans_local_time(tmp_path):
    wave = load(tmp_path, {"name": "one", "members": ["db01"], "schedule": {"cron": "0 22 * * sat"}}).wave("one")
    found = fires(wave, datetime(2026, 10, 20, tzinfo=UTC), 2)
    assert found == [datetime(2026, 10, 24, 20, tzinfo=UTC), datetime(2026, 10, 31, 21, tzinfo=UTC)]
    dated = load(tmp_path, {"name": "one", "members": ["db01"], "schedule": {"at": ["2026-12-05T22:00"]}}).wave("one")
    assert fires(dated, datetime(2026, 10, 20, tzinfo=UTC), 5) == [datetime(2026, 12, 5, 21, tzinfo=UTC)]
    assert fires(dated, datetime(2026, 12, 6, tzinfo=UTC), 5) == []


@pytest.mark.parametrize(
    ("cron", "hours"),
    [("0 1 * * *", [6]), ("0 1 * * sun", [6]), ("0 */2 * 11 *", [4, 7]), ("0 * * 11 *", [4, 5, 6, 7])],
)
def test_of_an_hour_that_clocks_show_twice_a_cron_fires_at_the_second_as_airflow_does(tmp_path, cron, hours):
    wave = {"name": "one", "members": ["db01"], "schedule": {"cron": cron}}
    loaded = load(tmp_path, wave, time_zone="America/New_York").wave("one")
    found = fires(loaded, datetime(2026, 11, 1, 3, 30, tzinfo=UTC), len(hours))
    assert found == [datetime(2026, 11, 1, hour, tzinfo=UTC) for hour in hours]


def test_a_cron_is_held_to_the_window_on_each_night_on_which_clocks_are_set_back(tmp_path):
    night = {"start": "01:00", "end": "05:00", "latest_start": "01:30"}
    wave = {"name": "one", "members": ["db01"], "schedule": {"cron": "0 1 * * *"}, "window": night}
    assert load(tmp_path, wave, time_zone="Asia/Kolkata").waves
    (said,) = faults(tmp_path, wave, time_zone="America/New_York")
    assert said.startswith("waves[0].schedule.cron: found Sun 2026-11-01 01:00, when the window does not let VMs start")
    weekdays = {**wave, "schedule": {"cron": "0 1 * * mon-fri"}}
    assert load(tmp_path, weekdays, time_zone="America/New_York").waves


# How long


def test_a_wave_takes_as_long_as_its_order_and_its_limit_make_it(tmp_path):
    vms = [{"name": f"vm{i}", "expected_minutes": 10} for i in range(4)] + [{"name": "last", "expected_minutes": 60}]
    wave = {"name": "one", "members": ["*"], "max_in_flight": 2, "after": {"last": ["vm0"]}}
    plan = load(tmp_path, wave, vms=vms)
    estimate = estimate_wave(plan, plan.wave("one"), Survey())
    assert estimate.total == 80  # vm0 and vm1, then vm2 and vm3 (last waits for a place), then last
    assert estimate.sentence().endswith(
        "expected to take 1 h 20 min, by order and max_in_flight; pools and bandwidth limits may make it longer"
    )
    assert "1 h 20 min, at 100 MB/s as 2 run(s) measured, by order" in estimate.sentence(Rates(1e8, 2))


def test_sizes_and_measured_rates_tell_what_the_plan_does_not(tmp_path):
    plan = load(tmp_path, {"name": "one", "members": ["db01", "db02"], "max_in_flight": 1})
    seen = Survey(vms={"db01": surveyed("db01", size=60 * 10**9), "db02": surveyed("db02", size=30 * 10**9)})
    rates = rates_of([{"bytes": 10**9, "seconds": 10.0}, {"bytes": 3 * 10**9, "seconds": 30.0}, {"outcome": "failed"}])
    assert rates == Rates(10**8, 2)
    assert estimate_wave(plan, plan.wave("one"), seen, rates).total == 15
    blind = estimate_wave(plan, plan.wave("one"), seen)
    assert blind.total is None
    assert blind.unknown == ("db01", "db02")
    assert "duration not known of 2 VM(s)" in blind.sentence()


def test_other_waves_that_start_in_a_waves_window_or_at_its_minute_are_found(tmp_path):
    night = {"days": ["sat"], "start": "22:00", "end": "04:00"}
    plan = load(
        tmp_path,
        {"name": "one", "members": ["db01"], "window": night, "schedule": {"cron": "0 22 * * sat"}},
        {"name": "later", "members": ["db02"], "schedule": {"at": ["2026-11-29T03:59", "2026-11-29T04:00"]}},
        {"name": "too-late", "members": ["web01"], "schedule": {"at": ["2026-11-29T04:00"]}},
        {"name": "same", "members": ["web02"], "schedule": {"cron": "0 4 * * sun"}},
        {"name": "by-hand", "members": ["mail01"], "window": dict(night, days=["sat"])},
    )
    now = datetime(2026, 11, 27, tzinfo=UTC)

    def beside(name, at=now):
        return {other: f"{when:%d %H:%M}" for other, when in starts_beside(plan, plan.wave(name), at).items()}

    assert beside("one") == {"later": "29 02:59"}
    assert beside("too-late") == {"later": "29 03:00", "same": "29 03:00"}
    assert beside("by-hand") == {"one": "28 21:00", "later": "29 02:59"}
    assert beside("by-hand", berlin("2026-11-28 23:00")) == {"later": "29 02:59"}


def test_minutes_are_written_as_people_read_them():
    assert [minutes_text(minutes) for minutes in (-3, 0.2, 59.2, 125)] == ["0 min", "1 min", "1 h 00 min", "2 h 05 min"]


COLD, LIVE = {"strategy": "cold"}, {"strategy": "live-copy"}
ASKED = {"approval": {}, "health": {"ports": [22]}}


@pytest.mark.parametrize(
    ("top", "vm", "place"),
    [
        (ASKED, {}, "cutover"),
        (LIVE | ASKED, LIVE, "cutover"),
        ({}, ASKED, "vms[1].cutover"),
        (COLD, LIVE | ASKED, "vms[1].cutover"),
    ],
)
def test_what_only_a_cold_cutover_reads_is_refused_of_a_live_copy(tmp_path, top, vm, place):
    (said,) = faults(tmp_path, vms=["db01", {"name": "db02", "cutover": vm}], cutover=top)
    assert said.startswith(f"{place}: found approval, health, which the strategy live-copy does not read, expected ")


@pytest.mark.parametrize(
    ("top", "vm"), [(COLD | ASKED, LIVE), (ASKED, COLD), (LIVE | ASKED, COLD), ({}, COLD | ASKED), (COLD, ASKED)]
)
def test_what_a_plan_says_of_cold_cutovers_may_stand_beside_live_copies(tmp_path, top, vm):
    assert load(tmp_path, vms=["db01", {"name": "db02", "cutover": vm}], cutover=top)


def test_ports_that_no_address_is_asked_on_are_found_before_anything_is_shut_down(tmp_path):
    vms = ["db01", {"name": "db02", "cutover": {"strategy": "cold", "health": {"addresses": []}}}]
    said = faults(tmp_path, vms=vms, cutover={"strategy": "cold", "health": {"ports": [443]}})
    assert said[0].startswith("vms[1].cutover.health: found ports a list of 1 and no address to ask them on")
    assert len(said) == 1
