"""What a wave starts, and what it asks, after a failure, without an answer, a second time, and within a window."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hyperflow.operators.wave_vm import GO_ON, STOP
from hyperflow.plans.overrides import parse_overrides

from tests.workflows import wave_runs
from tests.workflows.wave_runs import Story, Told

ZONE = ZoneInfo("Asia/Kolkata")
CLOSES = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(hours=3)
OPENS = CLOSES - timedelta(hours=4)
# Those that take turns start one after the other, however each ends; of a wave here the first fails.
PLAN = f"""
plan: autumn
time_zone: {ZONE}
vcenter: {{connection: vc}}
profile: kvm-migration
host: {{connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}}
networks: {{"*": default}}
people: {{alice: {{}}}}
vms: [{", ".join(f"{{name: {group}{number}}}" for group in "abcdefghijklm" for number in (1, 2, 3))}]
waves:
  - {{name: stop, members: ["a*"], apart: [[a1, a2, a3]], on_failure: stop}}
  - {{name: silent, members: ["b*"], apart: [[b1, b2, b3]]}}
  - name: goes-on
    members: ["c*"]
    apart: [[c1, c2, c3]]
    on_failure: ask
    description: "{{{{ 7 * 7 }}}} {{% raw %}}"
    approval: {{by: [alice], timeout_minutes: 9}}
  - {{name: stopped, members: ["d*"], apart: [[d1, d2, d3]], on_failure: ask}}
  - {{name: unanswered, members: ["e*"], apart: [[e1, e2, e3]], on_failure: ask}}
  - {{name: one-of-two, members: ["f*"], apart: [[f1, f2], [f1, f3]], on_failure: ask}}
  - {{name: meanwhile, members: ["g*"], apart: [[g1, g2], [g1, g3]], on_failure: ask}}
  - {{name: "yes", members: ["h*"], approval: {{on_timeout: approve}}}}
  - {{name: "no", members: ["i*"], approval: {{on_timeout: reject}}}}
  - {{name: again, members: ["j*"], after: {{j3: [j1, j2]}}}}
  - name: window
    members: ["k*"]
    window: {{start: "{OPENS.astimezone(ZONE):%H:%M}", end: "{CLOSES.astimezone(ZONE):%H:%M}"}}
  - {{name: hindered, members: ["m*"], apart: [[m1, m2, m3]]}}
  - name: rehearsed
    members: ["l*"]
    after: {{l2: [l1]}}
    apart: [[l1, l3]]
    on_failure: stop
    approval: {{by: [alice], on_timeout: reject}}
    window: {{start: "{CLOSES.astimezone(ZONE):%H:%M}", end: "{OPENS.astimezone(ZONE):%H:%M}"}}
"""
ONCE = ["stop", "silent", "goes-on", "stopped", "unanswered", "one-of-two", "meanwhile", "yes", "no", "window"]
ONCE += ["hindered", "again"]
STORY = Story(
    waves=[
        *((name, {}) for name in ONCE),
        ("again", {"again": True, "skip_boot": True}),
        ("rehearsed", {"dry_run": True}),
    ],
    ends={
        **{f"{group}1": ["failed"] for group in "abcdefgl"},
        "g3": ["failed"],
        "l2": ["rehearsed"],
        "l3": ["rehearsed"],
        "m1": ["deleted"],
    },
    answers={
        "goes-on.approve": ["Approve"],
        "goes-on.vms.c2": [GO_ON],
        "stopped.vms.d2": [STOP],
        "one-of-two.vms.f2": [STOP],
        "one-of-two.vms.f3": [GO_ON],
        "meanwhile.vms.g3": [GO_ON],
        "meanwhile.vms.g2": [GO_ON, STOP],
    },
    proven=["j1", "j2"],
    paused=["m2"],
)
NOBODY_BEGAN = {"1": "not started", "2": "not started", "3": "not started"}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """What came of each wave, and of the one that was run ``again``."""
    runs = wave_runs.run(tmp_path_factory.mktemp("airflow"), PLAN, STORY)
    return dict(zip([*ONCE[:-1], "left out", "again", "rehearsed"], runs, strict=True))


def outcomes(told: Told) -> dict[str, str]:
    """What became of the VMs of a wave, by their numbers."""
    return {slug[1:]: outcome for slug, outcome in told.outcomes().items()}


def decisions(told: Told) -> list[tuple[str, str, str | None]]:
    """What was decided, and by whom; None: nobody in time."""
    return [(one["question"], one["answer"], one.get("by")) for one in told.report["decisions"]]


def test_a_wave_that_stops_starts_no_vm_after_one_that_failed_and_asks_nobody(told: dict[str, Told]) -> None:
    wave = told["stop"]
    assert outcomes(wave) == {"1": "failed", "2": "not started", "3": "not started"}
    assert set(wave.runs) == {"a1"}
    assert wave.reason("a2") == wave.reason("a3") == "not started: a1 failed, and the wave stops at a failure"
    assert wave.questions == {}


def test_a_wave_of_which_nothing_is_said_goes_on_after_a_failure(told: dict[str, Told]) -> None:
    assert outcomes(told["silent"]) == {"1": "failed", "2": "migrated", "3": "migrated"}
    assert told["silent"].questions == {}


def test_a_wave_that_asks_goes_on_where_a_person_says_so_and_asks_no_more_about_that_failure(
    told: dict[str, Told],
) -> None:
    wave = told["goes-on"]
    assert outcomes(wave) == {"1": "failed", "2": "migrated", "3": "migrated"}
    assert set(wave.questions) == {"approve", "vms.c2"}
    assert decisions(wave)[1:] == [("c1 failed. Start c2 and those after it?", GO_ON, "alice")]


def test_who_approves_the_wave_is_asked_after_a_failure_and_sees_what_failed_and_what_silence_means(
    told: dict[str, Told],
) -> None:
    question = told["goes-on"].questions["vms.c2"]
    assert question["subject"] == "Wave goes-on: VMs have failed. Start c2 and those after it?"
    assert (question["options"], question["defaults"], question["of"]) == ([GO_ON, STOP], [STOP], ["alice"])
    assert "No answer within 9 minutes is a stop" in question["body"]
    assert told["stopped"].questions["vms.d2"]["of"] == []  # a wave without approval: whoever may run it


def test_a_wave_that_asks_stops_where_a_person_says_so_and_nobody_is_asked_again(told: dict[str, Told]) -> None:
    wave = told["stopped"]
    assert outcomes(wave) == {"1": "failed", "2": "not started", "3": "not started"}
    assert set(wave.runs) == {"d1"}
    assert set(wave.questions) == {"vms.d2"}
    assert wave.reason("d2") == wave.reason("d3") == "not started: d1 failed, and it was decided to stop"
    assert decisions(wave) == [("d1 failed. Start d2 and those after it?", STOP, "alice")]


def test_nobodys_answer_after_a_failure_is_a_stop(told: dict[str, Told]) -> None:
    wave = told["unanswered"]
    assert outcomes(wave) == {"1": "failed", "2": "not started", "3": "not started"}
    assert set(wave.runs) == {"e1"}
    assert decisions(wave) == [("e1 failed. Start e2 and those after it?", STOP, None)]


def test_of_two_open_questions_one_answer_to_stop_is_for_both(told: dict[str, Told]) -> None:
    wave = told["one-of-two"]
    assert set(wave.questions) == {"vms.f2", "vms.f3"}
    assert [answer for _, answer, _ in decisions(wave)] == [STOP, GO_ON]
    assert outcomes(wave) == {"1": "failed", "2": "not started", "3": "not started"}
    assert set(wave.runs) == {"f1"}


def test_what_failed_while_a_question_was_open_is_asked_about_too(told: dict[str, Told]) -> None:
    wave = told["meanwhile"]
    assert set(wave.runs) == {"g1", "g3"}
    assert wave.reason("g2") == "not started: g1, g3 failed, and it was decided to stop"
    assert [one for one in decisions(wave) if "Start g2" in one[0]] == [
        ("g1 failed. Start g2 and those after it?", GO_ON, "alice"),
        ("g1, g3 failed. Start g2 and those after it?", STOP, "alice"),
    ], "both are told, in their order"


def test_a_wave_that_nobody_approves_in_time_begins_or_does_not_as_its_plan_says(told: dict[str, Told]) -> None:
    assert (told["yes"].questions["approve"]["defaults"], outcomes(told["yes"])["1"]) == (["Approve"], "migrated")
    assert told["no"].questions["approve"]["defaults"] == ["Reject"]
    assert (outcomes(told["no"]), told["no"].runs) == (NOBODY_BEGAN, {})
    assert told["no"].reason("i1") == "nobody approved it in time"


def test_a_wave_that_is_run_again_leaves_out_what_is_proven_and_starts_what_comes_after_it(
    told: dict[str, Told],
) -> None:
    wave = told["left out"]
    assert outcomes(wave) == {"1": "already done", "2": "already done", "3": "migrated"}
    assert set(wave.runs) == {"j3"}


def test_a_wave_that_is_run_for_all_again_migrates_what_is_proven_too_and_hands_on_what_its_vms_know(
    told: dict[str, Told],
) -> None:
    wave = told["again"]
    assert set(outcomes(wave).values()) == {"migrated"}
    assert wave.report["overrides"] == {"again": True, "skip_boot": True}
    assert wave.runs == {slug: [{"skip_boot": True}] for slug in ("j1", "j2", "j3")}


def test_a_vm_of_a_wave_with_a_window_is_told_when_it_closes_and_one_of_another_is_not(told: dict[str, Told]) -> None:
    for slug in ("k1", "k2", "k3"):
        (conf,) = told["window"].runs[slug]
        assert list(conf) == ["not_after"]
        assert datetime.fromisoformat(str(parse_overrides(conf).not_after)) == CLOSES
    assert told["silent"].runs["b2"] == [{}]


def test_a_question_tells_what_is_written_and_obeys_none_of_it(told: dict[str, Told]) -> None:
    assert "{{ 7 * 7 }} {% raw %}" in told["goes-on"].questions["approve"]["body"]


def test_a_rehearsal_is_every_vms_preflight_outside_of_the_window_asks_nobody_and_goes_on_after_a_failure(
    told: dict[str, Told],
) -> None:
    wave = told["rehearsed"]
    assert outcomes(wave) == {"1": "failed", "2": "rehearsed", "3": "rehearsed"}
    assert wave.runs == {slug: [{"dry_run": True}] for slug in ("l1", "l2", "l3")}
    assert wave.questions == {}
    assert "window_end" not in wave.report
    assert "reason" not in wave.report


def test_a_run_that_is_deleted_and_a_dag_that_is_paused_are_failures_and_not_waited_for(told: dict[str, Told]) -> None:
    wave = told["hindered"]
    assert outcomes(wave) == {"1": "failed", "2": "failed", "3": "migrated"}
    assert "of migrate.autumn.m1 is not there any more: somebody has deleted it" in wave.reason("m1")
    assert "migrate.autumn.m2 is paused in Airflow" in wave.reason("m2")
    assert set(wave.runs) == {"m3"}
