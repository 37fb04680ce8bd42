"""Reads plans, or says everything that is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hyperflow.manifest.faults import Fault, place
from hyperflow.plans import rules
from hyperflow.plans.library import Library, folders_near
from hyperflow.plans.merge import merge
from hyperflow.plans.notices import Judge
from hyperflow.plans.plan import Plan, PlanError, PlannedVm
from hyperflow.plans.reading import read, validate
from hyperflow.plans.settings import PlanFile, PoolSizes, Settings, VmEntry
from hyperflow.plans.slug import Selector, slugs
from hyperflow.plans.survey import NOTHING, Survey, read_survey
from hyperflow.plans.wave import Candidate, Wave, approver, resolve_waves


def discover(folder: Path) -> list[Path]:
    """List the plan files of a folder, ``*.yaml`` and ``*.yml``, sorted by name; hidden ones are left out.

    :raises PlanError: there is no such folder
    """
    try:
        found = [path for path in folder.iterdir() if is_plan_file(path)]
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise PlanError(str(folder), [Fault("(folder)", why, "a folder of plans")]) from error
    return sorted(found, key=lambda path: path.name)


def is_plan_file(path: Path) -> bool:
    """Tell whether a file of a folder of plans is one, by its name."""
    return path.suffix in (".yaml", ".yml") and not path.name.startswith(".")


def load_plan(
    path: Path,
    profiles: Path | None = None,
    original: Path | None = None,
    *,
    survey_copy: Path | None = None,
    waves: bool = True,
    notifiers: Judge | None = None,
) -> Plan:
    """Read a plan and the profiles it names.

    :param path: the plan file, YAML
    :param profiles: folder of profiles; when None, ``profiles/`` beside the plan or beside its folder, then
        the project's own
    :param original: where the plan was, when ``path`` is a copy: it is this path that the plan then has
    :param survey_copy: the survey that was kept with such a copy; when None, the one beside the plan
    :param waves: resolve the waves too; not for who makes the survey that they may need
    :param notifiers: who tells whether the notifiers that the plan names can be used; nobody is asked when None
    :raises PlanError: with every fault, as ``path: found X, expected Y (line L, column C)``
    """
    document = read(path)
    written, faults = validate(PlanFile, document)
    library = Library([profiles] if profiles is not None else folders_near(original or path))
    faults += rules.faults(document.value, library, notifiers)
    survey, damaged = _survey(document.value, original or path, survey_copy)
    resolved: tuple[Wave, ...] = ()
    if waves and not damaged:
        resolved, wrong = resolve_waves(document.value, _candidates(document.value, survey))
        faults += wrong
    if not waves:  # a survey that is made anew cannot be wanted for it
        damaged = []
    if faults or damaged or written is None:
        refused = PlanError(str(path), [*damaged, *place(faults, document.positions)])
        refused.draft = _draft(written, library, original or path, resolved, survey)
        raise refused
    return _plan(written, library, original or path, resolved, survey)


def _survey(plan: Any, path: Path, kept: Path | None) -> tuple[Survey, list[Fault]]:
    """Read the survey of a plan file's plain data, where anything asks it; and what is wrong with it."""
    if not isinstance(plan, dict):
        return NOTHING, []
    pools = plan.get("pools")
    if not plan.get("waves") and not (isinstance(pools, dict) and pools.get("nfc_streams_per_esxi")):
        return NOTHING, []
    try:
        return read_survey(path, str(plan.get("plan")), kept), []
    except PlanError as error:
        return NOTHING, error.faults


def _draft(
    written: PlanFile | None, library: Library, path: Path, waves: tuple[Wave, ...], survey: Survey
) -> Plan | None:
    try:
        return None if written is None else _plan(written, library, path, waves, survey)
    except (KeyError, ValueError):  # a profile or person that is not there, a VM with two names: the faults say so
        return None


def _plan(written: PlanFile, library: Library, path: Path, waves: tuple[Wave, ...], survey: Survey) -> Plan:
    pools = written.pools or PoolSizes()
    return Plan(
        name=written.plan,
        path=path,
        vcenter=written.vcenter,
        vms=_plan_vms(written, library),
        waves=waves,
        pools=pools,
        notify=tuple(written.notify or ()),
        esxi_hosts={slug: vm.host for slug, vm in survey.vms.items() if vm.host and pools.nfc_streams_per_esxi},
    )


def _plan_vms(written: PlanFile, library: Library) -> tuple[PlannedVm, ...]:
    document = written.to_document()
    defaults = {key: value for key, value in document.items() if key in Settings.model_fields}
    selectors = [rules.selector_of(vm) for vm in document["vms"]]
    people = written.people or {}
    planned = []
    for vm, selector, slug in zip(document["vms"], selectors, slugs(selectors), strict=True):
        settings = VmEntry.model_validate(merge(defaults, vm))
        profile = library.profiles[str(settings.profile)]
        approval = settings.cutover.approval if settings.cutover else None
        asked = tuple(approver(key, people[key]) for key in (approval.by if approval else None) or ())
        planned.append(PlannedVm(selector, slug, f"migrate.{written.plan}.{slug}", settings, profile, asked))
    return tuple(planned)


def _candidates(plan: Any, survey: Survey) -> list[Candidate]:
    """Give the VMs of a plan file's plain data that waves can choose from: those that say which VM they are."""
    if not isinstance(plan, dict) or not plan.get("waves") or not isinstance(plan.get("vms"), list):
        return []
    named = [(index, vm) for index, vm in enumerate(plan["vms"]) if isinstance(vm, dict) and rules.names_one(vm)]
    selectors = [rules.selector_of(vm) for _, vm in named]
    return [
        _candidate(index, {**plan, **vm}, selector, slug, survey)
        for (index, vm), selector, slug in zip(named, selectors, slugs(selectors), strict=True)
    ]


def _candidate(index: int, settings: dict[str, Any], selector: Selector, slug: str, survey: Survey) -> Candidate:
    seen = survey.vms.get(slug)
    labels, expected = settings.get("labels"), settings.get("expected_minutes")
    path = selector.value if selector.kind == "inventory_path" else (seen.inventory_path if seen else None)
    return Candidate(
        index=index,
        slug=slug,
        name=seen.name if seen else selector.value.rpartition("/")[2],
        value=selector.value,
        path=path,
        labels=frozenset(label for label in labels if isinstance(label, str))
        if isinstance(labels, list)
        else frozenset(),
        tags=frozenset(seen.tags) if seen else frozenset(),
        host=seen.host if seen else None,
        surveyed=seen is not None or slug in survey.missing,
        expected_minutes=expected if type(expected) is int else None,
    )
