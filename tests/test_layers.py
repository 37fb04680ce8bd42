"""Imports point one way, so that each part can be read, tested and changed without those above it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
PACKAGE = PLUGINS / "hyperflow"
# What each package may import of Hyperflow; itself is always allowed.
ALLOWED: dict[str, set[str]] = {
    "audit": set(),
    "errors": set(),
    "manifest": set(),
    "plans": {"manifest"},
    "vsphere": set(),
    "kvmhost": set(),
    "hooks": {"vsphere", "manifest", "audit"},
    "triggers": {"hooks", "vsphere", "manifest"},
    "listeners": {"hooks", "plans"},
    "links": set(),
    "operators": {"triggers", "hooks", "vsphere", "plans", "manifest", "errors", "links", "audit"},
    "notifications": {"operators", "plans", "manifest", "links"},
    "ui": {"hooks", "operators", "manifest", "audit"},
    "workflows": {"notifications", "operators", "hooks", "plans", "manifest"},
    "cli": {"plans", "manifest", "errors", "audit"},
}
WITHOUT_AIRFLOW = ("audit", "errors", "manifest", "plans", "vsphere", "kvmhost", "cli")
HOSTS_OWN = {"guestfs", "nbd"}  # Python packages of the host's distribution


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def imported(package: str) -> Iterator[tuple[Path, str]]:
    files = list((PACKAGE / package).rglob("*.py"))
    assert files, f"{package} has no files"
    for path in files:
        for module in imports(path):
            yield path.relative_to(PLUGINS), module


def test_every_package_has_its_rule() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert packages == set(ALLOWED)


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    wrong = [
        (str(path), module)
        for path, module in imported(package)
        if module.startswith("hyperflow.") and module.split(".")[1] not in {package, *ALLOWED[package]}
    ]
    assert wrong == []


@pytest.mark.parametrize("package", WITHOUT_AIRFLOW)
def test_libraries_know_no_airflow(package: str) -> None:
    assert [(str(path), module) for path, module in imported(package) if module.split(".")[0] == "airflow"] == []


def test_only_vsphere_imports_pyvmomi() -> None:
    users = {
        package
        for package in ALLOWED
        for _, module in imported(package)
        if module.split(".")[0] in ("pyVmomi", "pyVim", "vmware")
    }
    assert users == {"vsphere"}


def test_the_data_plane_needs_the_standard_library_and_the_hosts_own_packages_only() -> None:
    known = {*sys.stdlib_module_names, *HOSTS_OWN, "hyperflow"}
    assert [(str(p), module) for p, module in imported("kvmhost") if module.split(".")[0] not in known] == []
