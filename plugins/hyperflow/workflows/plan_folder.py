"""Where the plans are, and which of them are good."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from airflow.configuration import conf

from hyperflow.operators.preflight import plan_location
from hyperflow.plans.check import check_plans
from hyperflow.plans.load import discover
from hyperflow.plans.plan import Plan

DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "include" / "plans"


class PlanFaults(Exception):
    """Some plans are bad; the message lists every fault of each."""


@dataclass(frozen=True)
class PlanFolder:
    """The plans of a folder.

    :param plans: those that are good
    :param faults: what is wrong with the others, as ``file: path: found X, expected Y``
    """

    plans: list[Plan]
    faults: list[str]


def read_plan_folder() -> PlanFolder:
    """Read the plans of Airflow's setting ``[hyperflow] plans_folder``, by default ``include/plans``.

    The setting may name an object store, as ``s3://bucket/plans``.

    Plans are judged together, because two of them must not claim one DAG id or one folder.
    """
    folder = plan_location(conf.get("hyperflow", "plans_folder", fallback=str(DEFAULT_FOLDER)))
    checked = check_plans(discover(folder))
    plans = [each.plan for each in checked if each.plan is not None and not each.faults]
    return PlanFolder(plans, [f"{each.path}: {fault}" for each in checked for fault in each.faults])
