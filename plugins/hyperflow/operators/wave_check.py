"""The first task of a wave: whether now is the time, and what a person must know to approve."""

from __future__ import annotations

from datetime import UTC, datetime
from math import ceil
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from hyperflow.hooks.audit import audit_start
from hyperflow.manifest.shown import shown_in_markdown
from hyperflow.operators.base import run_key
from hyperflow.operators.kept_plan import keep_plan
from hyperflow.operators.limits import heed_limits
from hyperflow.operators.preflight import plan_location
from hyperflow.operators.proven import proven_run
from hyperflow.operators.wave import (
    EXPECTED_KEY,
    OPENING_KEY,
    QUESTION_KEY,
    WaveOperator,
    asked_again,
    is_rehearsal,
    load_wave,
    telling,
)
from hyperflow.plans.cutover import COLD
from hyperflow.plans.pools import pools_of_vm, wave_pool
from hyperflow.plans.subject import subject_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context

    from hyperflow.plans.estimate import WaveEstimate
    from hyperflow.plans.plan import Plan
    from hyperflow.plans.times import Opening
    from hyperflow.plans.wave import Wave

RATES_OF_OTHERS = 20  # VMs outside of the wave whose measured rates are looked up


class CheckWaveOperator(WaveOperator):
    """The first task of a wave: whether now is the time, and what a person must know to approve.

    A scheduled start that was missed skips the wave; a start by a person outside of the window fails it, and says when
    the window opens. A rehearsal belongs to no opening. The plan is kept for as long as the run works.

    Pushes the XComs ``opening``, ``expected`` and ``question``; returns the members.
    """

    def execute(self, context: Context) -> list[str]:
        """Check the time; nothing is started here."""
        return cast("list[str]", telling(context, self.check, context))

    def check(self, context: Context) -> list[str]:
        """Do so."""
        from hyperflow.plans.survey import survey_path

        asked = read_asked(context)
        plan, wave = load_wave(self.plan_file, self.wave)
        keep_plan(plan_location(self.plan_file), run_key(context), survey_path(plan.path, plan.name))
        audit_start(context, f"wave {wave.name}", {"plan": plan.name, "members": list(wave.members), **asked})
        opening = None if is_rehearsal(context) else self.opening(context, wave, datetime.now(UTC))
        limits = heed_limits(context, plan, pools_of_wave(plan, wave))
        ti = context["ti"]
        ti.xcom_push(key=OPENING_KEY, value=_written(opening))
        proven, passed_over = proven_of(plan, wave)
        estimate = self.estimate(plan, wave, proven)
        ti.xcom_push(key=EXPECTED_KEY, value=by_size(plan, estimate) if opening is not None else {})
        done = [] if asked_again(context) else [s for s in wave.members if is_done(plan, s, proven, passed_over)]
        notes = [*limits, *(f"{slug} counts as not migrated: {why}" for slug, why in passed_over.items())]
        question = self.question(plan, wave, opening, estimate, done=done, notes=notes)
        ti.xcom_push(key=QUESTION_KEY, value=question)
        for line in question.splitlines():
            self.log.info("%s", line)
        return list(wave.members)

    def opening(self, context: Context, wave: Wave, now: datetime) -> Opening | None:
        """Find the opening of the window that this run belongs to.

        :raises AirflowSkipException: a scheduled start that was missed
        :raises AirflowFailException: the window is closed
        """
        from hyperflow.plans.times import MISSED_AFTER, next_opening, opening_at

        window, zone = wave.entry.window, wave.zone
        opening = opening_at(window, zone, now) if window is not None else None
        slot = _slot(context)
        if slot is not None:
            other = window is not None and opening_at(window, zone, slot) != opening
            if other or now - slot > MISSED_AFTER:
                raise AirflowSkipException(
                    f"wave {wave.name} was to start at {slot:%Y-%m-%d %H:%M} UTC, and that time is over: nothing is "
                    "started. Start the wave by hand within its window, or wait for its next date"
                )
        if window is not None and (opening is None or now >= opening.latest_start):
            following = next_opening(window, zone, now)
            raise AirflowFailException(
                f"wave {wave.name}: its window is closed at {now.astimezone(zone):%a %Y-%m-%d %H:%M %Z}, and opens at "
                f"{following.start.astimezone(zone):%a %Y-%m-%d %H:%M %Z}. Start it then, or change waves.window of "
                f"{self.plan_file}"
            )
        return opening

    def estimate(self, plan: Plan, wave: Wave, proven: Mapping[str, Mapping[str, Any]]) -> WaveEstimate:
        """How long the wave's VMs are expected to take, by the plan, or by the survey and what runs have measured.

        :param proven: what those tell that were proven, by slug
        """
        from hyperflow.plans.estimate import estimate_wave, rates_of
        from hyperflow.plans.survey import read_survey

        return estimate_wave(plan, wave, read_survey(plan.path, plan.name), rates_of(proven.values()))

    def question(
        self,
        plan: Plan,
        wave: Wave,
        opening: Opening | None,
        estimate: WaveEstimate,
        *,
        done: Sequence[str],
        notes: Sequence[str],
    ) -> str:
        """Write what a person must know to approve, as Markdown.

        :param done: slugs of the members that are left out
        :param notes: what is other about the pools than the plan says, and which earlier proofs do not count
        """
        from hyperflow.plans.estimate import minutes_text

        name, of = shown_in_markdown(wave.name), shown_in_markdown(plan.name)
        lines = [f"Wave **{name}** of plan {of}: {len(wave.members)} VM(s)."]
        if wave.entry.description:
            lines.append(shown_in_markdown(wave.entry.description))
        if done:
            lines.append(f"* already migrated and proven, so left out: {', '.join(done)}")
        lines.append(f"* at most {wave.entry.max_in_flight} at once; after a failure: {wave.entry.on_failure}")
        lines += [f"* {shown_in_markdown(note)}" for note in notes]
        if opening is not None:
            left = (opening.end - datetime.now(UTC)).total_seconds() / 60
            closes = f"{opening.end.astimezone(wave.zone):%a %H:%M %Z}"
            lines.append(f"* the window closes at {closes}, in {minutes_text(left)}")
        lines.append(f"* {estimate.sentence()}")
        lines += [f"* {step}. {', '.join(slugs)}" for step, slugs in enumerate(wave.steps(), 1)]
        return "\n".join(lines)


def read_asked(context: Context) -> dict[str, Any]:
    """What the run was asked for, as the audit tells it: ``asked``, or nothing.

    :raises AirflowFailException: with every fault of the run's conf
    """
    from hyperflow.plans.overrides import parse_wave_overrides
    from hyperflow.plans.plan import PlanError

    try:
        asked = parse_wave_overrides(context["dag_run"].conf or {}).model_dump(exclude_defaults=True)
    except PlanError as fault:
        raise AirflowFailException(str(fault)) from fault
    return {"asked": sorted(asked)} if asked else {}


def proven_of(plan: Plan, wave: Wave) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What the last runs tell that proved the wave's VMs, and some others whose rates count too, by slug; and why of
    members such a run does not count, by slug.
    """
    others = [vm.slug for vm in plan.vms if vm.slug not in wave.members]
    proven, passed_over = {}, {}
    for slug in (*wave.members, *others[:RATES_OF_OTHERS]):
        vm = plan.vm(slug)
        run, why = proven_run(vm.dag_id, subject=subject_of(plan, vm))
        if run is not None:
            proven[slug] = run["summary"]
        elif why and slug in wave.members:
            passed_over[slug] = why
    return proven, passed_over


def is_done(plan: Plan, slug: str, proven: Mapping[str, Any], passed_over: dict[str, str]) -> bool:
    """Whether a VM is where its plan wants it.

    :param proven: of those that were proven, by slug
    :param passed_over: why a run does not count, by slug; grows
    """
    vm = plan.vm(slug)
    if vm.strategy != COLD:
        return slug in proven
    run, why = proven_run(vm.dag_id, COLD, subject_of(plan, vm))
    if run is not None:
        passed_over.pop(slug, None)  # its copy was for another host; it is cut over
    elif why:
        passed_over[slug] = why
    return run is not None


def pools_of_wave(plan: Plan, wave: Wave) -> list[str]:
    """Name the pools that the wave's own tasks wait for, and those of its VMs."""
    of_vms = [name for slug in wave.members for name in pools_of_vm(plan, plan.vm(slug)).names()]
    return [wave_pool(plan.name, wave.name), *dict.fromkeys(of_vms)]


def by_size(plan: Plan, estimate: WaveEstimate) -> dict[str, int]:
    """Minutes that VMs are expected to take of which the plan does not say it, by slug."""
    return {
        slug: ceil(minutes)
        for slug, minutes in estimate.minutes.items()
        if plan.vm(slug).settings.expected_minutes is None
    }


def _slot(context: Context) -> datetime | None:
    """When the schedule meant this run to start; None when a person started it."""
    dag_run = cast("Any", context["dag_run"])
    if str(getattr(dag_run.run_type, "value", dag_run.run_type)) != "scheduled":
        return None
    return cast("datetime | None", dag_run.logical_date or dag_run.run_after)


def _written(opening: Opening | None) -> dict[str, str] | None:
    if opening is None:
        return None
    return {name: getattr(opening, name).isoformat() for name in ("start", "end", "latest_start")}
