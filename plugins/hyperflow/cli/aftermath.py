"""``./hyperflow rollback|finalize``: what a person does after a cutover, through Airflow."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from hyperflow.cli.__main__ import EXIT_FAILED, EXIT_UNAVAILABLE, EXIT_USAGE
from hyperflow.cli.airflow_api import AirflowApi, AirflowUnavailable, Refused
from hyperflow.cli.migrate import find_dag, words_of
from hyperflow.cli.started import run_to_its_end
from hyperflow.plans.plan import PlanError


def aftermath(what: str, plan: str, vm: str, *, target_is_off: bool, endpoint: Path | None) -> int:
    """Start the DAG of a rollback or a finalizing for one VM, and wait for its end.

    :param what: ``rollback`` or ``finalize``, which are also the names of the tasks
    :param target_is_off: of a rollback: a person says that the target runs nowhere
    :return: 0, 1 when it failed, 2 for a bad plan, 69 without Airflow
    """
    errors, console = Console(stderr=True, highlight=False), Console(highlight=False)
    dag_id = f"hyperflow_{what}"
    try:
        target = find_dag(plan, vm)
        api = AirflowApi(endpoint)
        asked = {"vm": target, **({"target_is_off": True} if target_is_off else {})}
        run_id, state = run_to_its_end(api, dag_id, asked)
        failure = api.xcom(dag_id, run_id, what, "failure")
    except (PlanError, KeyError) as fault:
        errors.print(words_of(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_USAGE
    except AirflowUnavailable as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_UNAVAILABLE
    except Refused as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_FAILED
    if state != "success":
        told = failure["message"] if isinstance(failure, dict) else f"run {run_id} of {dag_id} failed; see its log"
        errors.print(told, style="red", markup=False, soft_wrap=True)
        return EXIT_FAILED
    done = "rolled back: the source is as it was" if what == "rollback" else "final: the source is renamed and marked"
    console.print(f"{target}: {done}", markup=False, soft_wrap=True)
    return 0
