"""Checks plan files, each by itself and against the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from hyperflow.manifest.faults import Fault, show
from hyperflow.manifest.shown import some
from hyperflow.plans.load import discover, is_plan_file, load_plan
from hyperflow.plans.migration import domain_name, effective
from hyperflow.plans.notices import Judge
from hyperflow.plans.plan import Plan, PlanError
from hyperflow.plans.rules import other_name
from hyperflow.plans.slug import Selector


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


@dataclass
class _Taken:
    """What the plans that were looked at have taken; grows.

    :ivar names: of plans -> the plan's file
    :ivar folders: of VMs, connection and path -> the plan's file
    :ivar domains: connection and name -> the plan's file, and the VM
    :ivar waves: VMs, as :func:`_waves_against` keys them -> the wave
    """

    names: dict[str, Path] = field(default_factory=dict)
    folders: dict[tuple[str, str], Path] = field(default_factory=dict)
    domains: dict[tuple[str, str], tuple[Path, Selector]] = field(default_factory=dict)
    waves: dict[tuple[str, str, str], str] = field(default_factory=dict)


def check_plans(
    paths: Iterable[Path],
    profiles: Path | None = None,
    notifiers: Judge | None = None,
    beside: Iterable[Path] = (),
) -> list[Checked]:
    """Check plan files: each by itself, then that no two share a name, a VM's folder or domain, or a VM of their waves.

    :param profiles: as of :func:`hyperflow.plans.load.load_plan`, and so ``notifiers``
    :param beside: other plans that Airflow reads with these; they are held against them, and what is wrong with the
        others themselves is not told
    :return: one result a path, in the order given
    """
    others = [_check(path, profiles, None) for path in beside]
    return _judged(others, [_check(path, profiles, notifiers) for path in paths])


def check_beside(paths: Collection[Path], notifiers: Judge | None = None) -> tuple[list[Checked], list[Checked]]:
    """Check plan files against each other and the others in their folders; their results, and those of the others."""
    others = [_check(path, None, None) for path in plans_beside(paths)]
    return _judged(others, [_check(path, None, notifiers) for path in paths]), others


def not_compared(others: Iterable[Checked]) -> list[str]:
    """Say of which plans beside those that were checked nothing is known, or not all: a line each."""
    return [
        f"{each.path.name} beside it has faults and was "
        + ("not compared" if each.draft is None else "compared as far as it could be read; its pools were not")
        for each in others
        if each.plan is None
    ]


def in_no_wave(plan: Plan) -> str | None:
    """Name the VMs of a plan with waves that are in none, which may be meant so; None where there are no such."""
    members = {slug for wave in plan.waves for slug in wave.members}
    left = [vm.slug for vm in plan.vms if vm.slug not in members]
    if not plan.waves or not left:
        return None
    return f"{len(left)} of {len(plan.vms)} VMs {'is' if len(left) == 1 else 'are'} in no wave: {some(left)}"


def _judged(others: list[Checked], results: list[Checked]) -> list[Checked]:
    taken = _Taken()
    judged = [_waves_against(_against(result, taken), taken.waves) for result in (*others, *results)]
    return judged[len(others) :]


def plans_beside(paths: Iterable[Path]) -> list[Path]:
    """List the other plans in the folders of plans: Airflow reads a folder as a whole."""
    known = {path.parent.resolve() / path.name for path in paths}
    return [one for folder in sorted({path.parent for path in known}) for one in _plans_in(folder) if one not in known]


def plans_of(paths: Iterable[Path]) -> tuple[list[Plan], list[str]]:
    """Read plans whose faults somebody else is told of; and say of those that have any that they were left out."""
    plans, left_out = [], []
    for path in paths:
        try:
            plans.append(load_plan(path))
        except PlanError:
            left_out.append(f"{path.name} beside it has faults and its pools were not compared")
    return plans, left_out


def _plans_in(folder: Path) -> list[Path]:
    try:
        return discover(folder)
    except PlanError:  # there is no such folder, which the plan's own path is told of
        return []


def _check(path: Path, profiles: Path | None, notifiers: Judge | None) -> Checked:
    try:
        plan = load_plan(path, profiles, notifiers=notifiers)
    except PlanError as error:
        return Checked(path, None, (*_unread(path), *error.faults), error.draft)
    faults = _unread(path)
    for index, vm in enumerate(plan.vms):
        try:
            effective(plan, vm)
        except PlanError as error:
            faults.extend(replace(fault, path=f"vms[{index}].{fault.path}") for fault in error.faults)
    return Checked(path, plan, tuple(faults), plan)


def _unread(path: Path) -> list[Fault]:
    """Say that Airflow does not read a file, because of its name."""
    if is_plan_file(path) or not path.is_file():
        return []
    expected = "a name that ends in .yaml or .yml and begins with no dot: Airflow reads no other file as a plan"
    return [Fault("(file)", show(path.name), expected)]


def _against(result: Checked, taken: _Taken) -> Checked:
    plan = result.draft
    if plan is None:
        return result
    faults = list(result.faults)
    if plan.name in taken.names:
        faults.append(Fault("plan", f"the name of {taken.names[plan.name]} again", "a name for each plan"))
    taken.names.setdefault(plan.name, result.path)
    for index, vm in enumerate(plan.vms):
        host = vm.settings.host
        if host is None:
            continue
        for key in ("staging_directory", "output_directory"):
            folder = (str(host.connection), f"{getattr(host, key)}/{vm.slug}")
            user = taken.folders.setdefault(folder, result.path)
            if user != result.path:
                found = f"{folder[1]} of {folder[0]}, which {user} uses"
                faults.append(Fault(f"vms[{index}].host.{key}", found, "a folder for each VM"))
        domain = (str(host.connection), domain_name(vm))
        user, other = taken.domains.setdefault(domain, (result.path, vm.selector))
        if user != result.path and not _may_be_one(vm.selector, other):
            found = f"{show(domain[1])}, the domain name on {domain[0]} of VM {show(other.value)} in {user}"
            faults.append(Fault(f"vms[{index}].target.name", found, "a name for each domain of a host"))
    return replace(result, faults=tuple(faults))


def _may_be_one(vm: Selector, other: Selector) -> bool:
    """Tell whether two plans may mean one VM, which may have one domain: by one word, or by its name and its path."""
    names = {each.value.rpartition("/")[2] for each in (vm, other)}
    return vm == other or ({vm.kind, other.kind} == {"name", "inventory_path"} and len(names) == 1)


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
