"""Imports what tasks need, in a process that starts them by forking: they find it imported.

Airflow runs each task in a process of its own, forked from one that has never seen a DAG. Without this, each imports
Hyperflow, pydantic's models of it, SSH and pyVmomi anew: most of what its start costs.
"""

from __future__ import annotations

import importlib
import pkgutil

import hyperflow

# kvmhost runs on hosts, the command line and the pages by themselves; libvirt's and QEMU's modules are not there here.
ELSEWHERE = ("hyperflow.kvmhost", "hyperflow.cli", "hyperflow.ui")


def import_ahead() -> None:
    """Import all modules that DAGs, tasks and triggers may import later."""
    for name in modules():
        importlib.import_module(name)


def modules() -> list[str]:
    """List them."""
    found = []
    for package in pkgutil.iter_modules(hyperflow.__path__, "hyperflow."):
        if package.name in ELSEWHERE:
            continue
        found.append(package.name)
        if package.ispkg:
            folder = importlib.import_module(package.name).__path__
            found += [module.name for module in pkgutil.walk_packages(folder, f"{package.name}.")]
    return [name for name in found if not name.endswith("__main__")]
