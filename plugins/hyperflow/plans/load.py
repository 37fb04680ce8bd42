"""Reads plans, or says everything that is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hyperflow.manifest.faults import Fault, place
from hyperflow.plans import rules
from hyperflow.plans.library import Library, folders_near
from hyperflow.plans.merge import merge
from hyperflow.plans.plan import Plan, PlanError, PlannedVm
from hyperflow.plans.reading import read, validate
from hyperflow.plans.settings import PlanFile, VmEntry
from hyperflow.plans.slug import Selector, slugs


def discover(folder: Path) -> list[Path]:
    """List the plan files of a folder, ``*.yaml`` and ``*.yml``, sorted by name; hidden ones are left out.

    :raises PlanError: there is no such folder
    """
    try:
        names = [path for path in folder.iterdir() if path.suffix in (".yaml", ".yml")]
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise PlanError(str(folder), [Fault("(folder)", found, "a folder of plans")]) from error
    return sorted((path for path in names if not path.name.startswith(".")), key=lambda path: path.name)


def load_plan(path: Path, profiles: Path | None = None, original: Path | None = None) -> Plan:
    """Read a plan and the profiles it names.

    :param path: the plan file, YAML
    :param profiles: folder of profiles; when None, ``profiles/`` beside the plan or beside its folder, then
        the project's own
    :param original: where the plan was, when ``path`` is a copy: it is this path that the plan then has
    :raises PlanError: with every fault, as ``path: found X, expected Y (line L, column C)``
    """
    document = read(path)
    written, faults = validate(PlanFile, document)
    library = Library([profiles] if profiles is not None else folders_near(original or path))
    faults += rules.faults(document.value, library)
    if faults or written is None:
        raise PlanError(str(path), place(faults, document.positions))
    return Plan(written.plan, original or path, written.vcenter, _plan_vms(written, library))


def _plan_vms(written: PlanFile, library: Library) -> tuple[PlannedVm, ...]:
    document = written.to_document()
    defaults = {key: value for key, value in document.items() if key not in ("plan", "vcenter", "vms")}
    selectors = [_selector(vm) for vm in document["vms"]]
    planned = []
    for vm, selector, slug in zip(document["vms"], selectors, slugs(selectors), strict=True):
        settings = VmEntry.model_validate(merge(defaults, vm))
        profile = library.profiles[str(settings.profile)]
        planned.append(PlannedVm(selector, slug, f"migrate.{written.plan}.{slug}", settings, profile))
    return tuple(planned)


def _selector(vm: dict[str, Any]) -> Selector:
    (kind,) = [kind for kind in rules.KINDS if kind in vm]
    return Selector(kind, vm[kind])  # type: ignore[arg-type]
