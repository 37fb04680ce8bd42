"""The DAG of one wave."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, CronTriggerTimetable, Param, TaskGroup, TriggerRule
from airflow.timetables.events import EventsTimetable  # airflow.sdk's own cannot be serialized in 3.3.2

from hyperflow.hooks.records import state_of
from hyperflow.manifest.shown import shown, shown_in_markdown
from hyperflow.notifications.planned import told_of
from hyperflow.operators.approval import ApproveWaveOperator
from hyperflow.operators.wave import APPROVE, CHECK, GROUP, REPORT
from hyperflow.operators.wave_check import CheckWaveOperator
from hyperflow.operators.wave_report import WriteWaveReportOperator
from hyperflow.operators.wave_vm import MigrateVmOperator
from hyperflow.plans.pools import wave_pool
from hyperflow.plans.subject import subject_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hyperflow.plans.notices import Notice
    from hyperflow.plans.plan import Plan
    from hyperflow.plans.wave import Wave

RETRIES = 3  # of a worker that died: a try after it goes on with the VM's run
RETRY_DELAY = timedelta(seconds=20)


def build_wave(plan: Plan, wave: Wave) -> DAG:
    """Build the DAG of a wave: it looks, asks, starts each VM's own DAG in order, and reports.

    Made of the plan alone, but for the tag of its state. Created paused: whoever un-pauses it wants its
    schedule to count.
    """
    with DAG(
        wave.dag_id,
        dag_display_name=shown(f"{plan.name}: wave {wave.name}"),
        description=shown(wave.entry.description or f"Move {len(wave.members)} VMs of plan {plan.name}"),
        doc_md=describe(plan, wave),
        schedule=timetable(wave),
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=True,
        default_args={"retries": RETRIES, "retry_delay": RETRY_DELAY},
        tags=["hyperflow", f"plan:{plan.name}", f"wave:{wave.name}", f"state:{state_of(wave.dag_id)}"],
        params=form(),
    ) as dag:
        add_tasks(plan, wave)
    return dag


def form() -> dict[str, Param]:
    """Make the trigger form of a wave."""
    asked = {
        "again": ("Migrate again", "Also the VMs that are migrated and proven already"),
        "dry_run": ("Rehearsal", "Preflight of every VM only: nothing is exported or written"),
        "skip_boot": ("Skip the boot proof", "The VMs end unproven, and the report says so"),
    }
    return {
        name: Param(default=False, type="boolean", title=title, description=description)
        for name, (title, description) in asked.items()
    }


def add_tasks(plan: Plan, wave: Wave) -> None:
    """Put the tasks of a wave into the DAG that is being built."""
    common = {"plan_file": str(plan.path), "wave": wave.name}
    first: Any = CheckWaveOperator(task_id=CHECK, **common)
    approval = wave.entry.approval
    told = told_of(notices(plan, wave), "wave", plan.name, f"wave {wave.name}")
    if approval is not None:
        asking = ApproveWaveOperator(
            task_id=APPROVE,
            subject=f"May wave {wave.name} of plan {plan.name} begin?",
            defaults=ApprovalOperator.APPROVE if approval.on_timeout == "approve" else ApprovalOperator.REJECT,
            response_timeout=timedelta(minutes=approval.timeout_minutes),
            assigned_users=list(wave.approvers) or None,
            notifiers=told_of(notices(plan, wave), "question", plan.name, f"wave {wave.name}"),
        )
        first >> asking
        first = asking
    tasks: dict[str, MigrateVmOperator] = {}
    places = {slug: place for place, slug in enumerate(slug for step in wave.steps() for slug in step)}
    with TaskGroup(GROUP):
        for slug in wave.members:
            tasks[slug] = migrate(plan, wave, slug, places[slug])
    # A teardown, as in a migration: it runs also when a person sets the state of the whole run.
    report = WriteWaveReportOperator(
        task_id=REPORT, on_success_callback=told, on_failure_callback=told, **common
    ).as_teardown(on_failure_fail_dagrun=True)
    for slug, task in tasks.items():
        before = [tasks[each] for each in (*wave.after.get(slug, ()), *wave.turns.get(slug, ()))]
        (before or first) >> task
        task >> report


def notices(plan: Plan, wave: Wave) -> Sequence[Notice]:
    """Who is told of the wave's own events: as the wave says, else as its plan does."""
    return plan.notify if wave.entry.notify is None else wave.entry.notify


def migrate(plan: Plan, wave: Wave, slug: str, place: int) -> MigrateVmOperator:
    """Make the task that starts one VM's DAG.

    :param place: where the VM stands in the wave's order, from 0
    """
    vm = plan.vm(slug)
    is_behind = bool(wave.turns.get(slug) or wave.after.get(slug))
    approval = wave.entry.approval
    return MigrateVmOperator(
        task_id=slug,
        plan_file=str(plan.path),
        wave=wave.name,
        slug=slug,
        vm_dag=vm.dag_id,
        needs=list(wave.after.get(slug, ())),
        apart=[plan.vm(one).dag_id for one in wave.apart.get(slug, ())],
        approved_by_people=approval is not None,
        on_failure=wave.entry.on_failure,
        approvers=list(wave.approvers),
        answer_minutes=approval.timeout_minutes if approval else 60,
        strategy=vm.strategy,
        subject=subject_of(plan, vm),
        expected_minutes=vm.settings.expected_minutes,
        start_over=vm.settings.drift == "start-over",
        notifiers=told_of(notices(plan, wave), "question", plan.name, f"wave {wave.name}"),
        pool=wave_pool(plan.name, wave.name),
        # A slot is needed for the end of a VM's run too: who came first must not wait behind those that are to come.
        priority_weight=len(wave.members) - place,
        weight_rule="absolute",
        # Who may not be at work with another one waits for that one's end, however it ended. Who comes after another
        # does too, and says itself why it is not started then: a rehearsal goes on without those that failed.
        trigger_rule=TriggerRule.ALL_DONE if is_behind else TriggerRule.ALL_SUCCESS,
    )


def timetable(wave: Wave) -> Any:
    """When the wave starts by itself; None when only people start it.

    Without a start date and not immediately: what was due before somebody looked is not made up for.
    """
    schedule = wave.entry.schedule
    if schedule is None:
        return None
    if schedule.cron is not None:
        return CronTriggerTimetable(schedule.cron, timezone=str(wave.zone), run_immediately=False)
    zone = pendulum.timezone(str(wave.zone))
    dates = (datetime.fromisoformat(at.replace(" ", "T")) for at in schedule.at or ())
    return EventsTimetable([pendulum.instance(date, zone) for date in dates])


def describe(plan: Plan, wave: Wave) -> str:
    """Write the DAG's page from the plan."""
    entry = wave.entry
    lines = [shown_in_markdown(entry.description)] if entry.description else []
    lines.append(
        f"Moves {len(wave.members)} VM(s) of plan {shown_in_markdown(str(plan.path))}, at most {entry.max_in_flight} "
        f"at once; after a failure: {entry.on_failure}."
    )
    if entry.window is not None:
        latest = f", no VM is started after {entry.window.latest_start}" if entry.window.latest_start else ""
        days = ", ".join(entry.window.days)
        lines.append(f"Only on {days}, {entry.window.start} to {entry.window.end} {wave.time_zone}{latest}.")
    if entry.approval is not None:
        asked = ", ".join(shown_in_markdown(one["name"]) for one in wave.approvers) or "somebody who may run this DAG"
        lines.append(f"Begins when {asked} has approved.")
    lines.append("\n".join(f"{step}. {', '.join(slugs)}" for step, slugs in enumerate(wave.steps(), 1)))
    return "\n\n".join(lines)
