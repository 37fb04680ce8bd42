"""What the tasks of a wave share: their names, what they leave each other, and what a wave's run was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from hyperflow.operators.base import keep_failure
from hyperflow.operators.preflight import plan_location

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.plans.plan import Plan
    from hyperflow.plans.wave import Wave

CHECK, APPROVE, REPORT, GROUP = "check", "approve", "report", "vms"  # ids of the tasks of a wave
SKIPPED_KEY = "skipped"  # XCom: why a task was skipped
QUESTION_KEY = "question"  # XCom: what a person must know to approve, Markdown
RUN_KEY = "trigger_run_id"  # XCom, as Airflow calls it: the run of the VM that the task started
OPENING_KEY = "opening"  # XCom: {"start", "end", "latest_start"}, ISO 8601; None where the wave has no window
EXPECTED_KEY = "expected"  # XCom: slug -> minutes, of those of which the plan does not say it; only with an opening


def task_of(slug: str) -> str:
    """Id of the wave's task that moves a VM."""
    return f"{GROUP}.{slug}"


def load_wave(plan_file: str, name: str) -> tuple[Plan, Wave]:
    """Read a wave of a plan.

    :raises AirflowFailException: with every fault
    """
    from hyperflow.plans.load import load_plan
    from hyperflow.plans.plan import PlanError

    try:
        plan = load_plan(plan_location(plan_file))
        return plan, plan.wave(name)
    except (PlanError, KeyError) as fault:
        raise AirflowFailException(str(fault)) from fault


class WaveOperator(BaseOperator):
    """A task that is about a whole wave.

    :param plan_file: path of the plan
    :param wave: the wave's name
    """

    ui_color = "#e8f1fa"

    def __init__(self, *, plan_file: str, wave: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan_file = plan_file
        self.wave = wave


def telling(context: Context, function: Any, *arguments: Any) -> Any:
    """Call a function, and keep why it failed or skipped for the wave's report."""
    try:
        return function(*arguments)
    except AirflowSkipException as skip:
        context["ti"].xcom_push(key=SKIPPED_KEY, value=str(skip))
        raise
    except Exception as fault:
        keep_failure(context, context["ti"].task_id, fault)
        raise


def asked_again(context: Context) -> bool:
    """Whether this run of the wave migrates also what is migrated and proven already."""
    return bool((context["dag_run"].conf or {}).get("again"))


def is_rehearsal(context: Context) -> bool:
    """Whether this run of the wave is every VM's preflight and nothing else."""
    return bool((context["dag_run"].conf or {}).get("dry_run"))
