"""``./hyperflow wave``: what a wave will do, its start, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hyperflow.cli.__main__ import EXIT_FAILED, EXIT_UNAVAILABLE, EXIT_USAGE
from hyperflow.cli.airflow_api import AirflowApi, AirflowUnavailable, Refused, TaskInstance
from hyperflow.cli.in_airflow import connection_faults, faults_in_airflow
from hyperflow.cli.interrupted import ended_in_order
from hyperflow.cli.janitor import shown
from hyperflow.cli.migrate import (
    POLL,
    is_working,
    last_progress,
    name_of,
    seconds_of,
    wait_for_dag,
)
from hyperflow.cli.started import OVER, goes_on, run_to_its_end, started
from hyperflow.cli.states import STATE_STYLES, count_line, urgent_first
from hyperflow.manifest.shown import some
from hyperflow.plans.check import check_plans, in_no_wave, plans_beside, plans_of
from hyperflow.plans.estimate import Rates, WaveEstimate, estimate_wave, minutes_text, rates_of, starts_beside
from hyperflow.plans.plan import Plan
from hyperflow.plans.pools import pools_of_vm, wave_pool
from hyperflow.plans.subject import otherwise, subject_of
from hyperflow.plans.survey import Survey, not_found, read_survey
from hyperflow.plans.times import MISSED_AFTER, minutes_open, next_opening, opening_at
from hyperflow.plans.wave import PAUSE_AFTER, Wave, fires, wants_the_wave

SURVEY_DAG = "hyperflow_survey"
PROVEN_VARIABLE = "hyperflow_proven_"
DATES_SHOWN = 3
READ_LIMIT = 300.0  # seconds until Airflow must have read a changed plan and its survey; 120 in docker-compose.yaml
END_LIMIT = 30.0  # seconds until a rehearsal that was set to failed must be over; less than the minute before a start
GROUP = "vms."


class BadPlan(Exception):
    """The plan has faults, or has not the wave; the message lists them."""


EXITS = {BadPlan: EXIT_USAGE, AirflowUnavailable: EXIT_UNAVAILABLE, Refused: EXIT_FAILED}


def find_wave(file: Path, name: str) -> tuple[Plan, Wave]:
    """Read a wave of a plan file.

    :raises BadPlan: every fault, a line each
    """
    (checked,) = check_plans([file], beside=plans_beside([file]))
    if checked.plan is None or checked.faults:
        raise BadPlan("\n".join(f"{file}: {fault}" for fault in checked.faults))
    try:
        return checked.plan, checked.plan.wave(name)
    except KeyError as fault:
        raise BadPlan(f"{file}: {fault.args[0]}") from fault


def wave(action: str, file: Path, name: str | None, *, asked: set[str], wait: bool, endpoint: Path | None) -> int:
    """Run ``./hyperflow wave check|start|status|survey``.

    :return: 0; 1 when the check found something, or the wave failed; 2 for a bad plan; 69 without Airflow
    """
    errors, console = Console(stderr=True, highlight=False), Console(highlight=False)
    try:
        if not file.is_file():
            raise BadPlan(f"{file}: found no such file, expected the file of a plan")
        if action == "survey":
            return survey(file, AirflowApi(endpoint), console)
        plan, chosen = find_wave(file, str(name))
        if action == "check":
            return check(plan, chosen, endpoint, console)
        api = AirflowApi(endpoint)
        if action == "start":
            return start(api, plan, chosen, console, asked=asked, wait=wait)
        return status(api, chosen, console)
    except (BadPlan, AirflowUnavailable, Refused) as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return next(code for kind, code in EXITS.items() if isinstance(fault, kind))


def check(plan: Plan, wave: Wave, endpoint: Path | None, console: Console) -> int:
    """Show what a wave will do: its order, its dates, how long it takes against its window, and what is missing.

    :return: 0; 1 when something is wrong, also where Airflow could not be asked; 69 when only Airflow is missing
    """
    try:
        api = AirflowApi(endpoint)
        done = proven_of(api, plan)
        wrong, unseen = missing_in_airflow(api, plan, wave)
        no_airflow = False
    except AirflowUnavailable as fault:
        done, wrong, no_airflow = {}, [], True
        unseen = [f"pools, connections, approvers and measured rates were not looked at: {fault}"]
    rates = rates_of(done.values())
    seen = read_survey(plan.path, plan.name)
    estimate = estimate_wave(plan, wave, seen, rates)
    console.print(
        f"[bold]{escape(wave.name)}[/bold]: {len(wave.members)} VM(s), at most {wave.entry.max_in_flight} at once"
    )
    console.print(order_table(wave, estimate, done))
    found = [*show_time(wave, estimate, rates, console), *wrong]
    if others := starts_beside(plan, wave, datetime.now(UTC)):
        names = some([f"{name} ({_local(moment, wave)})" for name, moment in others.items()])
        where = "in the same window" if wave.entry.window is not None else "at the same minute"
        console.print(
            f"other waves of the plan start {where}, and share hosts and pools with it: {names}",
            markup=False,
            soft_wrap=True,
        )
    for line in found:
        console.print(line, style="red", markup=False, soft_wrap=True)
    for line in (*unseen, *not_found(seen), *filter(None, [in_no_wave(plan)])):
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    if found:
        return EXIT_FAILED
    return EXIT_UNAVAILABLE if no_airflow else 0


def order_table(wave: Wave, estimate: WaveEstimate, done: Mapping[str, Any]) -> Table:
    """Draw the order: those that may run together stand in one step."""
    table = Table(box=None, pad_edge=False)
    for title in ("step", "VM", "expected", "after", ""):
        table.add_column(title)
    for number, slugs in enumerate(wave.steps(), 1):
        for place, slug in enumerate(slugs):
            minutes = estimate.minutes.get(slug)
            before = [*wave.after.get(slug, ()), *(f"{one} is over" for one in wave.turns.get(slug, ()))]
            table.add_row(
                str(number) if place == 0 else "",
                escape(slug),
                minutes_text(minutes) if minutes is not None else "not known",
                escape(", ".join(before)),
                "[green]migrated already[/green]" if slug in done else "",
            )
    return table


def show_time(wave: Wave, estimate: WaveEstimate, rates: Rates | None, console: Console) -> list[str]:
    """Tell dates, window and duration; what is wrong with them is returned."""
    now, zone = datetime.now(UTC), wave.zone
    wrong = []
    console.print(escape(estimate.sentence(rates)), soft_wrap=True)
    dates = [_local(moment, wave) for moment in fires(wave, now, DATES_SHOWN)]
    if wave.entry.schedule is not None:
        console.print(f"starts by itself: {', '.join(dates) or 'never again: its dates are over'}", soft_wrap=True)
        if not dates:
            wrong.append("schedule: found dates that are over, expected one to come")
    window = wave.entry.window
    if window is not None:
        opening = opening_at(window, zone, now)
        following = next_opening(window, zone, now)
        told = (
            f"open until {opening.end.astimezone(zone):%a %H:%M %Z}"
            if opening
            else f"opens {_local(following.start, wave)}"
        )
        console.print(f"window: {minutes_text(minutes_open(window))}, {told}", soft_wrap=True)
        if estimate.total is not None and estimate.total > minutes_open(window):
            wrong.append(
                f"window: found {minutes_text(minutes_open(window))}, expected at least the "
                f"{minutes_text(estimate.total)} that the wave takes"
            )
    return wrong


def missing_in_airflow(api: AirflowApi, plan: Plan, wave: Wave) -> tuple[list[str], list[str]]:
    """Say which pools and connections of a wave's tasks, and which people who are asked, Airflow has not; and what it
    does not tell.
    """
    others = {wave_pool(plan.name, one.name) for one in plan.waves if one.name != wave.name}
    beside, left_out = plans_of(plans_beside([plan.path]))
    faults, unseen = faults_in_airflow(api, plan, beside, without=others)
    connections, untold = connection_faults(api, plan, wave.members)
    return [str(fault) for fault in (*connections, *faults)], [*unseen, *untold, *left_out]


def start(api: AirflowApi, plan: Plan, wave: Wave, console: Console, *, asked: set[str], wait: bool) -> int:
    """Start a wave, when its pools are as they must be, Airflow knows its connections and whom it asks, and no VM's DAG
    is paused.

    :param asked: ``again``, ``dry_run``
    """
    wrong, _ = missing_in_airflow(api, plan, wave)
    if wrong:
        raise Refused("\n".join(wrong))
    wait_for_dag(api, wave.dag_id, console)
    refuse_beside_rehearsal(api, wave)
    wait_for_pools(api, plan, wave, console)
    refuse_paused(api, plan, wave)
    is_rehearsal = "dry_run" in asked
    if is_rehearsal and api.is_paused(wave.dag_id):
        with ended_in_order():
            return rehearse_paused(api, wave, console, asked)
    api.unpause(wave.dag_id)
    run_id = trigger(api, wave, console, asked)
    if wave.entry.schedule is not None and not is_rehearsal:
        dates = fires(wave, datetime.now(UTC), 1)
        following = f"it starts again at {_local(dates[0], wave)}" if dates else "its dates are over"
        console.print(f"the schedule of {wave.dag_id} counts from now on: {following}", soft_wrap=True)
    if not wait:
        return 0
    with goes_on(wave.dag_id, run_id):
        return follow_wave(api, wave, run_id, console)


def refuse_beside_rehearsal(api: AirflowApi, wave: Wave) -> None:
    """Name a rehearsal for which the wave was un-paused: a run that waited behind it could find the wave paused.

    :raises Refused: there is one
    """
    for run in api.runs_at_work(wave.dag_id):
        if (run.get("conf") or {}).get(PAUSE_AFTER):
            raise Refused(
                f"{wave.dag_id}: its rehearsal {run['dag_run_id']} is not over, and pauses the wave at its end. Start "
                "it after that, or set that run to failed in Airflow, un-pause the wave, and wait for the run's end"
            )


def trigger(api: AirflowApi, wave: Wave, console: Console, asked: set[str]) -> str:
    """Trigger a run of a wave and say so; the run's id."""
    run_id = api.trigger(wave.dag_id, dict.fromkeys(sorted(asked), True))
    console.print(started(api, wave.dag_id, run_id), soft_wrap=True)
    return run_id


def refuse_paused(api: AirflowApi, plan: Plan, wave: Wave) -> None:
    """Name the VMs whose DAGs somebody has paused: their runs would wait for ever, and the wave for them.

    :raises Refused: there are such
    """
    paused = api.paused_dags(f"migrate.{plan.name}.")
    found = [dag_id for slug in wave.members if (dag_id := plan.vm(slug).dag_id) in paused]
    if found:
        raise Refused(f"{', '.join(found)}: paused in Airflow, so a run would wait without a word: un-pause first")


def rehearse_paused(api: AirflowApi, wave: Wave, console: Console, asked: set[str]) -> int:
    """Rehearse a wave whose DAG is paused, which it is again afterwards: its schedule must not count for a rehearsal.

    A DAG has to be un-paused for its runs to work, and then its schedule starts it in earnest. So there is no rehearsal
    while a start is due. Where this program has gone away, the scheduler pauses it (listeners/rehearsal.py).

    :raises Refused: a run of the wave is not over, a start of the schedule is due, or has come while the rehearsal was
        at work
    """
    if left := [str(run["dag_run_id"]) for run in api.runs_at_work(wave.dag_id)]:
        raise Refused(
            f"{wave.dag_id} is paused, and its run {left[0]} is not over: un-paused for a rehearsal, it would go on in "
            "earnest. Un-pause the wave and let that run end, or set it to failed in Airflow, and rehearse then"
        )
    due = next(iter(fires(wave, datetime.now(UTC) - MISSED_AFTER, 1)), None)
    if due is not None and due < datetime.now(UTC) + MISSED_AFTER:
        raise Refused(
            f"{wave.dag_id} is paused, and has to be un-paused for its rehearsal: its start of {_local(due, wave)} "
            f"would then be in earnest. Rehearse it {minutes_text(MISSED_AFTER.total_seconds() / 60)} after that, or "
            "take the date out of the plan"
        )
    run_id = trigger(api, wave, console, asked | {PAUSE_AFTER})
    try:
        api.unpause(wave.dag_id)
        return follow_wave(api, wave, run_id, console, before=due)
    finally:
        try:
            end_run(api, wave, run_id, console)
        finally:
            pause_again(api, wave, console)


def end_run(api: AirflowApi, wave: Wave, run_id: str, console: Console) -> None:
    """End a rehearsal before its wave is paused: else it goes on when somebody un-pauses that, and pauses it again."""
    left = f"run {run_id} is not over: it goes on when somebody un-pauses {wave.dag_id}, and pauses that at its end"
    told = f"run {run_id} was ended"
    try:
        if api.run_state(wave.dag_id, run_id) in OVER:
            return
        api.fail_run(wave.dag_id, run_id)
        limit = time.monotonic() + END_LIMIT
        while api.run_state(wave.dag_id, run_id) not in OVER:
            if time.monotonic() > limit:
                told = left
                break
            time.sleep(POLL)
    except (AirflowUnavailable, Refused) as fault:
        told = f"{left}. {fault}"
    console.print(told, markup=False, soft_wrap=True)


def pause_again(api: AirflowApi, wave: Wave, console: Console) -> None:
    """Pause a wave after its rehearsal, unless somebody has started it meanwhile.

    :raises AirflowUnavailable: it cannot be paused
    """
    try:
        for run in api.runs_at_work(wave.dag_id):
            if wants_the_wave(run.get("run_type"), run.get("conf")):
                told = f"{wave.dag_id} is not paused again: run {run['dag_run_id']} waits. Its schedule counts"
                console.print(told, markup=False, soft_wrap=True)
                return
        api.pause(wave.dag_id)
    except (AirflowUnavailable, Refused) as fault:
        raise AirflowUnavailable(
            f"{wave.dag_id} could not be paused again, so its schedule counts: pause it in Airflow. {fault}"
        ) from fault
    console.print(f"{wave.dag_id} is paused again", soft_wrap=True)


def wait_for_pools(api: AirflowApi, plan: Plan, wave: Wave, console: Console) -> None:
    """Wait until Airflow has read the survey too, which tells the ESXi host, and so the pool, of each export.

    A task of an older reading would wait without a word for a pool that may not be there.

    :raises Refused: it does not
    """
    limit = time.monotonic() + READ_LIMIT
    for vm in (plan.vm(slug) for slug in wave.members):
        wait_for_dag(api, vm.dag_id, console)
        expected = pools_of_vm(plan, vm).stream
        while (found := api.pool_of(vm.dag_id, "export")) != expected:
            if time.monotonic() > limit:
                raise Refused(
                    f"{vm.dag_id}: found its export in pool {found}, expected {expected}: Airflow has not read the "
                    f"survey or the limits of {plan.path} as they are here"
                )
            time.sleep(POLL)


def status(api: AirflowApi, wave: Wave, console: Console) -> int:
    """Show the wave's last run, live while it works."""
    run_id = api.last_run(wave.dag_id)
    if run_id is None:
        raise Refused(f"wave {wave.name} was never started")
    return follow_wave(api, wave, run_id, console)


def follow_wave(api: AirflowApi, wave: Wave, run_id: str, console: Console, *, before: datetime | None = None) -> int:
    """Show a run of a wave until it is over; a table that is drawn anew on a terminal, a line per change elsewhere.

    The table is cut to the terminal's height while the wave works, and whole and in the plan's order at the end.

    :param before: when the wave's schedule starts it next, for a run that must be over by then
    :raises Refused: it is not, a minute before
    """
    said: dict[str, str] = {}
    with Live(console=console, auto_refresh=False) as live:
        while True:
            state = api.run_state(wave.dag_id, run_id)
            rows = wave_rows(api, wave, run_id)
            if console.is_terminal and state not in OVER:
                live.update(
                    Group(vm_counts(rows), status_table(urgent_first(rows, lambda row: row["state"]))), refresh=True
                )
            elif console.is_terminal:
                live.update(Group(status_table(rows), vm_counts(rows)))
            else:
                for row in rows:
                    line = f"{row['vm']}: {row['state']} {row['now']}".rstrip()
                    if said.get(row["vm"]) != line:
                        said[row["vm"]] = line
                        console.print(line, markup=False, soft_wrap=True)
            if state in OVER:
                break
            if before is not None and datetime.now(UTC) > before - timedelta(minutes=1):
                raise Refused(
                    f"run {run_id} of {wave.dag_id} was ended (set to failed): the schedule starts the wave at "
                    f"{_local(before, wave)}, in earnest. Rehearse it after that"
                )
            time.sleep(POLL)
    report = api.xcom(wave.dag_id, run_id, "report", "report")
    told = f"report: {report['path']}" if isinstance(report, dict) else "no report was written; see its tasks"
    outcome = report["outcome"] if isinstance(report, dict) else state
    console.print(f"{outcome}: {told}", markup=False, soft_wrap=True)
    return 0 if state == "success" else EXIT_FAILED


def wave_rows(api: AirflowApi, wave: Wave, run_id: str) -> list[dict[str, str]]:
    """What each VM of a wave does now: ``vm``, ``task``, ``state``, ``time``, ``now``."""
    tasks = {task.task_id: task for task in api.task_instances(wave.dag_id, run_id)}
    rows = []
    for task_id in ("check", "approve"):
        if task_id in tasks:
            rows.append(_row(task_id, tasks[task_id], ""))
    for slug in wave.members:
        task = tasks.get(GROUP + slug)
        if task is None:
            continue
        rows.append(_row(slug, task, vm_progress(api, wave.dag_id, run_id, task) if is_working(task) else ""))
    return rows


def vm_counts(rows: list[dict[str, str]]) -> str:
    """Count the VMs of a wave by what became of them."""
    return count_line(row["state"] for row in rows if row["task"].startswith(GROUP))


def vm_progress(api: AirflowApi, dag_id: str, run_id: str, task: TaskInstance) -> str:
    """Which task of a VM's own run works, and how far it is."""
    started = api.xcom(dag_id, run_id, task.task_id, "trigger_run_id")
    if not isinstance(started, str):
        return ""
    vm_dag = f"migrate.{dag_id.split('.')[1]}.{task.task_id.removeprefix(GROUP)}"
    try:
        working = [one for one in api.task_instances(vm_dag, started) if is_working(one)]
    except Refused:
        return ""
    return "; ".join(f"{name_of(one)} {last_progress(api, vm_dag, started, one)}".strip() for one in working[:2])


def status_table(rows: list[dict[str, str]]) -> Table:
    """Draw the rows."""
    table = Table(box=None, pad_edge=False)
    for title in ("VM", "state", "time", "now"):
        table.add_column(title, justify="right" if title == "time" else "left", no_wrap=title != "now")
    for row in rows:
        style = STATE_STYLES.get(row["state"], "dim")
        table.add_row(escape(row["vm"]), f"[{style}]{row['state']}[/{style}]", row["time"], escape(shown(row["now"])))
    return table


def proven_of(api: AirflowApi, plan: Plan) -> dict[str, dict[str, Any]]:
    """Which VMs of a plan are migrated and proven: slug -> what their wave tells of them.

    A copy that was proven does not make one done that is to be cut over cold, nor does the proof of another VM.
    """
    found = api.variables(f"{PROVEN_VARIABLE}migrate.{plan.name}.")
    done = {}
    for vm in plan.vms:
        value = found.get(f"{PROVEN_VARIABLE}{vm.dag_id}")
        if not isinstance(value, dict) or (vm.strategy == "cold" and value.get("strategy") != "cold"):
            continue
        meant = subject_of(plan, vm)
        if vm.strategy == "cold":
            del meant["host"]  # it is where it was cut over to
        if isinstance(value.get("summary"), dict) and otherwise(value.get("subject"), meant) is None:
            done[vm.slug] = value["summary"]
    return done


def survey(file: Path, api: AirflowApi, console: Console) -> int:
    """Have the vCenter asked what the plan's VMs are, and show it."""
    (checked,) = check_plans([file])
    # Its waves may be refused until there is a survey, so a draft is enough to be asked about.
    name = checked.draft.name if checked.draft is not None else file.stem
    run_id, state = run_to_its_end(api, SURVEY_DAG, {"plan": name})
    failure = api.xcom(SURVEY_DAG, run_id, "survey", "failure")
    found = api.xcom(SURVEY_DAG, run_id, "survey")
    if state != "success" or not isinstance(found, dict):
        raise Refused(failure["message"] if isinstance(failure, dict) else f"run {run_id} of {SURVEY_DAG} failed")
    table = Table(box=None, pad_edge=False)
    for title in ("VM", "ESXi host", "size", "used", "power", "folder"):
        table.add_column(title)
    there = {slug: vm for slug, vm in found["vms"].items() if slug not in found["missing"]}
    for slug, vm in sorted(there.items()):
        used = f"{vm['used_bytes'] / 2**30:.1f} GiB" if vm.get("used_bytes") is not None else "-"
        cells = (slug, vm["host"] or "-", f"{vm['capacity_bytes'] / 2**30:.1f} GiB", used, vm["power_state"])
        table.add_row(*(escape(shown(cell)) for cell in (*cells, vm["inventory_path"].rpartition("/")[0])))
    console.print(table)
    for line in not_found(Survey.model_validate(found)):
        console.print(shown(line), style="red", markup=False, soft_wrap=True)
    return EXIT_FAILED if found["missing"] else 0


def _local(moment: datetime, wave: Wave) -> str:
    return f"{moment.astimezone(wave.zone):%a %Y-%m-%d %H:%M %Z}"


def _row(name: str, task: TaskInstance, now: str) -> dict[str, str]:
    return {"vm": name, "task": task.task_id, "state": task.state or "waiting", "time": seconds_of(task), "now": now}
