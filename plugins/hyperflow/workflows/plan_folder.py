"""Where the plans are, and which of them are good."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from airflow.configuration import conf

from hyperflow.hooks.records import safe
from hyperflow.notifications.classes import allowed_notifiers
from hyperflow.operators.kept_plan import kept_plans
from hyperflow.operators.preflight import plan_location
from hyperflow.plans.check import check_plans
from hyperflow.plans.load import discover, load_plan
from hyperflow.plans.migration import effective
from hyperflow.plans.notices import by_list
from hyperflow.plans.plan import Plan, PlanError

DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "include" / "plans"


class PlanFaults(Exception):
    """Some plans are bad; the message lists every fault of each."""


@dataclass(frozen=True)
class PlanFolder:
    """The plans of a folder.

    :param plans: those that are good; of those that were good when a run began, the VMs and waves whose runs still work
    :param faults: what is wrong with the others, as ``file: path: found X, expected Y``
    """

    plans: list[Plan]
    faults: list[str]


def read_plan_of(dag_id: str) -> PlanFolder:
    """Read what one DAG needs: its plan with its VM alone, for a task that starts and has no time for a thousand.

    Whatever is not plain about it, such as a plan that is not good any more, is left to :func:`read_plan_folder`.
    """
    folder = plans_folder()
    name = dag_id.split(".")[1] if dag_id.count(".") > 1 else ""
    mentions = re.compile(rf"""^plan:\s*["']?{re.escape(name)}["']?\s*(#.*)?$""", re.MULTILINE)
    try:
        paths = [path for path in discover(folder) if mentions.search(path.read_text(errors="replace"))]
        (plan,) = (load_plan(path, waves=False) for path in paths)  # waves are of no use to a task
        (vm,) = (vm for vm in plan.vms if vm.dag_id == dag_id)
        effective(plan, vm)
    except (PlanError, OSError, ValueError):
        return read_plan_folder()
    return PlanFolder([replace(plan, vms=(vm,))], [])


def read_plan_folder() -> PlanFolder:
    """Read the plans of Airflow's setting ``[hyperflow] plans_folder``, by default ``include/plans``.

    The setting may name an object store, as ``s3://bucket/plans``.

    Plans are judged together, because two of them must not claim one DAG id or one folder.
    """
    folder = plans_folder()
    checked = check_plans(discover(folder), notifiers=by_list(allowed_notifiers()))
    plans = [each.plan for each in checked if each.plan is not None and not each.faults]
    faults = [f"{each.path}: {fault}" for each in checked for fault in each.faults]
    # Of a DAG that stands here twice the later one counts: a VM's of its good plan, else of its own run's copy.
    return PlanFolder(_plans_of_waves(folder, plans) + plans + _plans_of_runs(folder, plans), faults)


def plans_folder() -> Path:
    """Airflow's setting ``[hyperflow] plans_folder``."""
    return plan_location(conf.get("hyperflow", "plans_folder", fallback=str(DEFAULT_FOLDER)))


def _plans_of_waves(folder: Path, plans: list[Plan]) -> list[Plan]:
    """Read the kept copies of plans that have a wave no more while a run of it works: that wave, and its VMs."""
    known = {safe(wave.dag_id) for plan in plans for wave in plan.waves}
    found = []
    for dag, plan in _kept(folder, "wave.", known):
        for wave in (wave for wave in plan.waves if safe(wave.dag_id) == dag):
            members = tuple(vm for vm in plan.vms if vm.slug in wave.members)
            found.append(replace(plan, vms=members, waves=(wave,)))
            known.add(dag)
    return found


def _plans_of_runs(folder: Path, plans: list[Plan]) -> list[Plan]:
    """Read the kept copies of plans that have a VM no more while a run of it works: that VM, and no wave.

    A wave needs all its members, and whether it may still start is not for a copy to say.
    """
    known = {safe(vm.dag_id) for plan in plans for vm in plan.vms}
    found = []
    for dag, plan in _kept(folder, "migrate.", known):
        for vm in (vm for vm in plan.vms if safe(vm.dag_id) == dag):
            found.append(replace(plan, vms=(vm,), waves=()))
            known.add(dag)
    return found


def _kept(folder: Path, kind: str, known: set[str]) -> Iterator[tuple[str, Plan]]:
    """Read the kept copies, each with the DAG whose run keeps it.

    :param kind: how the ids of these DAGs begin
    :param known: DAGs, as paths write them, whose copies are left alone; it may grow meanwhile
    """
    for kept in kept_plans(folder):
        if kept.dag in known or not kept.dag.startswith(kind):
            continue
        try:
            waves = kind == "wave."  # a VM's run needs none, so nothing that is wrong with them takes its DAG away
            yield kept.dag, load_plan(kept.copy, original=kept.original, survey_copy=kept.survey, waves=waves)
        except PlanError:  # its profile is gone as well, or the copy was half-written
            continue
