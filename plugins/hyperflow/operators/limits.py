"""Whether Airflow has the pools that hold a plan's limits: a task that names a missing one waits without a word."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.exceptions import AirflowFailException

from hyperflow.hooks.records import pools_since

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.plans.plan import Plan

log = logging.getLogger(__name__)


def heed_limits(context: Context, plan: Plan, names: Iterable[str]) -> list[str]:
    """Look whether the pools that a run's tasks name are there and limit what the plan wants.

    A smaller one is no fault: another plan may share it, and whoever wants less work at once may say so in Airflow.

    :param names: pools of the tasks; those that are none of the plan's are Airflow's own
    :return: warnings
    :raises AirflowFailException: when one is missing, or does not count deferred tasks; naming all of them
    """
    from hyperflow.plans.pools import lacks, pools_of

    there = pools_since(cast("Any", context["dag_run"]).start_date)
    if there is None:
        log.warning("the pools were not looked at: Airflow's scheduler has not told of them since the run began")
        return []
    planned, faults, warnings = pools_of([plan]), [], []
    for pool in (planned[name] for name in sorted(set(names)) if name in planned):
        found = there.get(pool.name)
        if (fault := lacks(pool, found)) is not None:
            wanted = f"{pool.slots} slots that count deferred tasks"
            faults.append(
                f"pool {pool.name}: found {fault}, expected {wanted}: run ./hyperflow limits apply {plan.path}"
            )
        elif found is not None and not 0 < found["slots"] <= pool.slots:
            wait = "its tasks wait until it has some" if found["slots"] == 0 else "more than the plan wants at once"
            warnings.append(f"pool {pool.name} has {found['slots']} slots in Airflow, {pool.slots} in the plan: {wait}")
    if faults:
        raise AirflowFailException("; ".join(faults))
    for warning in warnings:
        log.warning("%s", warning)
    return warnings
