"""``./hyperflow migrate``: starts one VM's DAG and shows how far it is."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hyperflow.cli.__main__ import EXIT_FAILED, EXIT_UNAVAILABLE, EXIT_USAGE
from hyperflow.cli.airflow_api import AirflowApi, AirflowUnavailable, Refused, TaskInstance
from hyperflow.cli.explain import advice
from hyperflow.cli.started import OVER, goes_on, refuse_paused, started
from hyperflow.cli.states import STATE_STYLES, count_line, urgent_first
from hyperflow.manifest.faults import Fault
from hyperflow.plans.load import load_plan
from hyperflow.plans.plan import PlanError
from hyperflow.plans.slug import Selector, slugs

if TYPE_CHECKING:
    from collections.abc import Iterable

POLL = 2.0  # seconds between two looks at a run
DAG_LIMIT = 300.0  # seconds that Airflow may need to see a plan that was just written; 120 in docker-compose.yaml
PROGRESS = "progress: "


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    :param state: success or failed
    :param tasks: its tasks, with their times
    """

    dag_id: str
    run_id: str
    state: str
    tasks: list[TaskInstance]


def migrate(plan: str, vm: str, *, overrides: list[str], wait: bool, endpoint: Path | None) -> int:
    """Start the migration of one VM; see the command line's help.

    :return: the exit status
    """
    errors, console = Console(stderr=True, highlight=False), Console(highlight=False)
    try:
        dag_id = find_dag(plan, vm)
        conf = read_overrides(overrides)
    except (PlanError, ValueError, KeyError) as fault:
        errors.print(words_of(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_USAGE
    try:
        api = AirflowApi(endpoint)
        wait_for_dag(api, dag_id, console)
        refuse_paused(api, dag_id)
        run_id = api.trigger(dag_id, conf)
        console.print(started(api, dag_id, run_id), markup=False, soft_wrap=True)
        if not wait:
            return 0
        with goes_on(dag_id, run_id):
            return show_to_the_end(api, dag_id, run_id, console)
    except Refused as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_USAGE
    except AirflowUnavailable as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_UNAVAILABLE


def show_to_the_end(api: AirflowApi, dag_id: str, run_id: str, console: Console) -> int:
    """Show a run until it ended, then its outcome; the exit status."""
    outcome = follow(api, dag_id, run_id, console)
    console.print(f"{outcome.state}: {report_path(api, outcome)}", markup=False, soft_wrap=True)
    for line in what_failed(api, outcome):
        console.print(line, style="red", markup=False, soft_wrap=True)
    return 0 if outcome.state == "success" else EXIT_FAILED


def find_dag(plan: str, vm: str) -> str:
    """Find the DAG of a VM: from a plan's file, or from its name and the VM's.

    :raises PlanError: the file has faults, or there is none and it can be no plan's name
    :raises KeyError: the file's plan has no such VM
    """
    path = Path(plan)
    if path.is_file():
        return load_plan(path).vm(vm).dag_id
    if "/" in plan or "." in plan:  # no name of a plan has one
        found = "a folder" if path.is_dir() else "no such file"
        raise PlanError(plan, [Fault("PLAN", found, "the file of a plan, or the name of one")])
    return f"migrate.{plan}.{slugs([Selector('name', vm)])[0]}"


def words_of(fault: Exception) -> str:
    """What an error says; Python writes a KeyError's words in quotes."""
    return str(fault.args[0]) if isinstance(fault, KeyError) and fault.args else str(fault)


def read_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` as a run's conf; true and false become booleans, the first task checks the rest.

    :raises ValueError: naming the setting that has no value
    """
    conf: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: expected NAME=VALUE")
        conf[name] = {"true": True, "false": False}.get(value, value)
    return conf


def wait_for_dag(api: AirflowApi, dag_id: str, console: Console) -> None:
    """Wait until Airflow has read the plan, and say so: who has mistyped a name sees it at once.

    :raises Refused: with Airflow's import errors, which tell what is wrong with it
    """
    limit = time.monotonic() + DAG_LIMIT
    said = False
    while not api.has_dag(dag_id):
        if not said:
            told = (
                f"Airflow has no DAG {dag_id} yet; waiting up to {DAG_LIMIT:.0f} s for it to read the plan, which "
                "it does as often as [dag_processor] min_file_process_interval says"
            )
            console.print(told, style="yellow", markup=False, soft_wrap=True)
            said = True
        if time.monotonic() > limit:
            faults = "\n".join(error.strip().splitlines()[-1] for error in api.import_errors())
            raise Refused(f"Airflow has no DAG {dag_id}; is the plan in its plans folder?\n{faults}".strip())
        time.sleep(1)


def follow(api: AirflowApi, dag_id: str, run_id: str, console: Console) -> Outcome:
    """Show a run until it ended: a live table on a terminal, whole at the end; a line per change elsewhere."""
    said: dict[str, str] = {}
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            state = api.run_state(dag_id, run_id)
            tasks = api.task_instances(dag_id, run_id)
            progress = {name_of(task): last_progress(api, dag_id, run_id, task) for task in tasks if is_working(task)}
            if console.is_terminal and state not in OVER:
                counted = count_line(task.state for task in tasks)
                urgent = urgent_first(_by_start(tasks), lambda task: task.state)
                live.update(Group(counted, table_of(urgent, progress)), refresh=True)
            elif console.is_terminal:
                live.update(table_of(_by_start(tasks), progress))  # whole: the last drawing is not cut to the terminal
            else:
                _print_changes(tasks, progress, said)
            if state in OVER:
                return Outcome(dag_id, run_id, state, tasks)
            time.sleep(POLL)


def table_of(tasks: list[TaskInstance], progress: dict[str, str]) -> Table:
    """Draw the tasks of a run: name, state, seconds, and how far the working ones are."""
    table = Table(box=None, pad_edge=False)
    for title in ("task", "state", "time", "progress"):
        table.add_column(title, justify="right" if title == "time" else "left", no_wrap=title != "progress")
    for task in tasks:
        state = task.state or "waiting"
        style = STATE_STYLES.get(state, "dim")
        name = name_of(task)  # escaped, as "[disk-0]" is markup to rich
        table.add_row(escape(name), f"[{style}]{state}[/{style}]", seconds_of(task), escape(progress.get(name, "")))
    return table


def name_of(task: TaskInstance) -> str:
    """A task's name as a person reads it: ``export [disk-0]``."""
    return f"{task.task_id} [{task.label or task.map_index}]" if task.map_index >= 0 else task.task_id


def seconds_of(task: TaskInstance) -> str:
    """How long a task has taken, up to now when it still works."""
    if task.seconds is not None and not is_working(task):
        return f"{task.seconds:.1f} s"
    if task.start and is_working(task):
        begun = datetime.fromisoformat(task.start)
        return f"{(datetime.now(UTC) - begun).total_seconds():.0f} s"
    return ""


def is_working(task: TaskInstance) -> bool:
    """Tell whether a task works now, in a worker or on a host."""
    return task.state in ("running", "deferred")


def last_progress(api: AirflowApi, dag_id: str, run_id: str, task: TaskInstance) -> str:
    """The last line of progress in a task's log, or its last line of any kind."""
    try:
        lines = api.log_lines(dag_id, run_id, task)
    except Refused:
        return ""  # the log is not there yet
    told = [line for line in lines if line.startswith(PROGRESS)]
    return told[-1].removeprefix(PROGRESS) if told else ""


def report_path(api: AirflowApi, outcome: Outcome) -> str:
    """Where the run's report lies, as its last task said; an empty text when it did not."""
    report = api.xcom(outcome.dag_id, outcome.run_id, "report", "report")
    return (
        f"report: {report['path']}" if isinstance(report, dict) else "no report was written; see the log of task report"
    )


def what_failed(api: AirflowApi, outcome: Outcome) -> list[str]:
    """Say of each failure what it means and what to do, as far as the run's last task could tell its code."""
    report = api.xcom(outcome.dag_id, outcome.run_id, "report", "report")
    failures = report.get("failures", []) if isinstance(report, dict) else []
    return [f"{each['stage']}: {advice(each['code'])}" for each in failures]


def _by_start(tasks: Iterable[TaskInstance]) -> list[TaskInstance]:
    return sorted(tasks, key=lambda each: (each.start or "9", each.map_index))


def _print_changes(tasks: list[TaskInstance], progress: dict[str, str], said: dict[str, str]) -> None:
    for task in _by_start(tasks):
        name = name_of(task)
        text = f"{name}: {task.state} {progress.get(name) or seconds_of(task)}".rstrip()
        key = f"{task.state} {progress.get(name, '')}"
        if task.state and said.get(name) != key:
            said[name] = key
            print(text, flush=True, file=sys.stdout)
