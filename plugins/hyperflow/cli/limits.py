"""``./hyperflow limits apply|check``: the Airflow pools that hold what plans limit."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from hyperflow.cli.__main__ import EXIT_FAILED, EXIT_UNAVAILABLE, EXIT_USAGE
from hyperflow.cli.airflow_api import AirflowApi, AirflowUnavailable, Refused
from hyperflow.cli.in_airflow import pool_fault
from hyperflow.plans.check import check_plans, plans_beside, plans_of
from hyperflow.plans.pools import PREFIX, pools_beside


def limits(files: list[Path], *, apply: bool, endpoint: Path | None) -> int:
    """Compare the pools of Airflow with what plans need, and make them so.

    :param apply: make and change pools; else only say what is other
    :return: 0, 1 when something is other than it must be, 2 for a bad plan, 69 without Airflow
    """
    errors, console = Console(stderr=True, highlight=False), Console(highlight=False)
    checked = check_plans(files)
    faulty = [f"{each.path}: {fault}" for each in checked for fault in each.faults]
    if faulty:
        for line in faulty:
            errors.print(line, style="red", markup=False, soft_wrap=True)
        return EXIT_USAGE
    plans = [each.plan for each in checked if each.plan is not None]
    beside, left_out = plans_of(plans_beside(files))
    for line in left_out:
        errors.print(line, style="yellow", markup=False, soft_wrap=True)
    wanted = pools_beside(plans, beside)
    try:
        api = AirflowApi(endpoint)
        there = api.pools()
        for pool in wanted.values():
            found = there.get(pool.name)
            fault = pool_fault(pool, found)
            if fault is not None and apply:
                api.set_pool(pool.name, pool.slots, pool.description, exists=found is not None)
            word = "ok" if fault is None else ("made" if found is None else "changed") if apply else "wrong"
            style = "red" if word == "wrong" else "green"
            told = f"{pool.name}: {pool.slots} at once" + (f" ({fault})" if fault else "")
            console.print(f"[{style}]{word}[/{style}] {escape(told)}", soft_wrap=True)
    except AirflowUnavailable as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_UNAVAILABLE
    except Refused as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_FAILED
    if not wanted:
        console.print("these plans need no pools: they have no waves and no pools")
    for name in sorted(name for name in there.keys() - wanted.keys() if name.startswith(PREFIX)):
        console.print(f"[dim]not of these plans: {escape(name)}[/dim]", soft_wrap=True)
    wrong = [pool for pool in wanted.values() if pool_fault(pool, there.get(pool.name))]
    return EXIT_FAILED if wrong and not apply else 0
