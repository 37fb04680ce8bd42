"""Checks plan files, each by itself and against the others."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hyperflow.manifest.faults import Fault
from hyperflow.plans.load import discover, load_plan
from hyperflow.plans.migration import effective
from hyperflow.plans.notices import Judge
from hyperflow.plans.plan import Plan, PlanError
from hyperflow.plans.rules import other_name


@dataclass(frozen=True)
class Checked:
    """What came of checking one plan file.

    :param path: the file
    :param plan: the plan, None when it cannot be read
    :param faults: everything wrong with it
    :param draft: the plan, or as much of it as its faults let be read; None when that is too little
    """

    path: Path
    plan: Plan | None
    faults: tuple[Fault, ...]
    draft: Plan | None


def check_plans(
    paths: Iterable[Path],
    profiles: Path | None = None,
    notifiers: Judge | None = None,
    beside: Iterable[Path] = (),
) -> list[Checked]:
    """Check plan files: each by itself, then that no two share a name, a VM's staging folder or a VM of their waves.

    :param profiles: as of :func:`hyperflow.plans.load.load_plan`, and so ``notifiers``
    :param beside: other plans that Airflow reads with these; they are held against them, and what is wrong with the
        others themselves is not told
    :return: one result a path, in the order given
    """
    others = [_check(path, profiles, None) for path in beside]
    results = [_check(path, profiles, notifiers) for path in paths]
    names: dict[str, Path] = {}
    folders: dict[tuple[str, str], Path] = {}
    waves: dict[tuple[str, str, str], str] = {}
    judged = [_waves_against(_against(result, names, folders), waves) for result in (*others, *results)]
    return judged[len(others) :]


def plans_beside(paths: Iterable[Path]) -> list[Path]:
    """List the other plans in the folders of plans: Airflow reads a folder as a whole."""
    known = {path.parent.resolve() / path.name for path in paths}
    return [one for folder in sorted({path.parent for path in known}) for one in _plans_in(folder) if one not in known]


def plans_of(paths: Iterable[Path]) -> list[Plan]:
    """Read plans whose faults somebody else is told of; those that cannot be read are left out."""
    plans = []
    for path in paths:
        with suppress(PlanError):
            plans.append(load_plan(path))
    return plans


def _plans_in(folder: Path) -> list[Path]:
    try:
        return discover(folder)
    except PlanError:  # there is no such folder, which the plan's own path is told of
        return []


def _check(path: Path, profiles: Path | None, notifiers: Judge | None) -> Checked:
    try:
        plan = load_plan(path, profiles, notifiers=notifiers)
    except PlanError as error:
        return Checked(path, None, tuple(error.faults), error.draft)
    faults: list[Fault] = []
    for index, vm in enumerate(plan.vms):
        try:
            effective(plan, vm)
        except PlanError as error:
            faults.extend(replace(fault, path=f"vms[{index}].{fault.path}") for fault in error.faults)
    return Checked(path, plan, tuple(faults), plan)


def _against(result: Checked, names: dict[str, Path], folders: dict[tuple[str, str], Path]) -> Checked:
    plan = result.draft
    if plan is None:
        return result
    faults = list(result.faults)
    if plan.name in names:
        faults.append(Fault("plan", f"the name of {names[plan.name]} again", "a name for each plan"))
    names.setdefault(plan.name, result.path)
    for index, vm in enumerate(plan.vms):
        host = vm.settings.host
        if host is None:
            continue
        folder = (str(host.connection), f"{host.staging_directory}/{vm.slug}")
        if folders.get(folder, result.path) != result.path:
            found = f"{folder[1]} of {folder[0]}, which {folders[folder]} uses"
            faults.append(Fault(f"vms[{index}].host.staging_directory", found, "a folder for each VM"))
        folders.setdefault(folder, result.path)
    return replace(result, faults=tuple(faults))


def _waves_against(result: Checked, waves: dict[tuple[str, str, str], str]) -> Checked:
    """Find VMs that waves of two plans would move; two waves of one plan are the plan's own affair."""
    plan = result.draft
    if plan is None:
        return result
    faults = []
    mine: dict[tuple[str, str, str], str] = {}
    selectors = {vm.slug: vm.selector for vm in plan.vms}
    vcenter = plan.vcenter.connection
    for index, wave in enumerate(plan.waves):
        for slug in wave.members:
            kind, value = selectors[slug].kind, selectors[slug].value
            keys = [(vcenter, kind, value), (vcenter, *other_name(kind, value, plan.vcenter.datacenter))]
            if taken := [waves[key] for key in keys if key in waves]:
                found = f"{slug}, which is in {taken[0]} already"
                faults.append(Fault(f"waves[{index}].members", found, "each VM in one wave"))
            mine[keys[0]] = f"wave {wave.name} of plan {plan.name}"
            if kind == "inventory_path":
                mine[(vcenter, "path to", value.rpartition("/")[2])] = mine[keys[0]]
    waves |= mine
    return replace(result, faults=(*result.faults, *faults))
