"""Every field of a profile does something, from the profile's file to the stage on the host that obeys it."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperflow.plans.load import load_plan
from hyperflow.plans.migration import Migration, effective
from hyperflow.plans.overrides import parse_overrides
from hyperflow.plans.plan import PlanError
from hyperflow.plans.profile import Profile, ProfileSettings
from hyperflow.workflows.migration import describe
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "plugins" / "hyperflow"
PLAN = """\
plan: web
vcenter: {{connection: vcenter}}
profile: p
profile_overrides: {overrides}
host: {{connection: kvm01, staging_directory: /staging, output_directory: /images}}
vms: [{{name: web01}}]
"""
# A field -> another value than the default; what else must be said for it to count.
OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "format": ("vmdk", {}),
    "compress": (True, {}),
    "verify_manifest": (False, {}),
    "manifest_checksum": (False, {"verify_manifest": False}),
    "manifest_target_format": ("raw", {}),
    "pipeline.inspect.collect_guest_info": (False, {}),
    "pipeline.fix.enabled": (False, {}),
    "pipeline.fix.backup": (False, {}),
    "pipeline.fix.update_grub": (False, {}),
    "pipeline.fix.regen_initramfs": (False, {}),
    "pipeline.fix.print_fstab": (True, {}),
    "pipeline.fix.remove_vmware_tools": (True, {}),
    "pipeline.fix.fstab_mode": ("noop", {}),
    "pipeline.convert.compress_level": (7, {"compress": True}),
    "pipeline.convert.compress_type": ("zlib", {"compress": True}),
    "pipeline.validate.enabled": (False, {}),
    "pipeline.validate.check_image_integrity": (False, {}),
}
# Switches that hyperexport's profiles have and a migration cannot do without: false is refused, and says why.
ALWAYS = ("generate_manifest", "pipeline.inspect.enabled", "pipeline.convert.enabled")
# What a field that is in no pipeline decides, and the one place that reads it.
DECIDES = {
    "format": ("descriptor", "plans/migration.py"),
    "verify_manifest": ("verify_manifest", "operators/conversion.py"),
    "manifest_checksum": ("manifest_checksum", "operators/manifest.py"),
    "manifest_target_format": ("output", "operators/manifest.py"),
}


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{path}.")
        else:
            yield path


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            whole[key] = merged(whole[key], value) if isinstance(value, dict) and key in whole else value
    return whole


def migration(folder: Path, profile: dict[str, Any], overrides: dict[str, Any], run: dict[str, Any]) -> Migration:
    """The run's settings, of a profile in a file, a plan in a file and the run's Params."""
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "profiles" / "p.json").write_text(json.dumps({"name": "p", **profile}))
    (folder / "plan.yaml").write_text(PLAN.format(overrides=json.dumps(overrides)))
    plan = load_plan(folder / "plan.yaml")
    return effective(plan, plan.vms[0], parse_overrides(run))


def written(settings: Migration) -> dict[str, Any]:
    """What reaches the manifest or decides over a task."""
    return {
        "pipeline": settings.pipeline.to_document(),
        "output": settings.output.to_document(),
        "descriptor": settings.descriptor,
        "verify_manifest": settings.verify_manifest,
        "manifest_checksum": settings.manifest_checksum,
    }


def names_read(file: Path) -> set[str]:
    """Attributes that a program reads."""
    loads = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute))
    return {node.attr for node in loads if isinstance(node.ctx, ast.Load)}


def test_every_field_of_a_profile_is_walked_here() -> None:
    assert sorted(fields(ProfileSettings)) == sorted([*OTHER, *ALWAYS])
    assert set(fields(Profile)) - set(fields(ProfileSettings)) == {"name", "description"}


@pytest.mark.parametrize("path", OTHER)
def test_a_field_of_a_profile_changes_what_the_manifest_or_a_task_says(tmp_path: Path, path: str) -> None:
    value, needed = OTHER[path]
    before = written(migration(tmp_path, needed, {}, {}))
    after = written(migration(tmp_path, merged(needed, nested(path, value)), {}, {}))
    if path == "compress":
        assert after["pipeline"]["convert"] == {"enabled": True, "compress": True, "compress_type": "zstd"}
    elif path.startswith("pipeline."):
        _, stage, name = path.split(".")
        assert after["pipeline"][stage][name] == value
        after["pipeline"][stage] = before["pipeline"][stage]
        assert after == before  # and nothing else
    else:
        decided, _ = DECIDES[path]
        assert after[decided] != before[decided]


@pytest.mark.parametrize("path", [path for path in OTHER if path.startswith("pipeline.") and "enabled" not in path])
def test_the_stage_on_the_host_reads_what_the_manifest_says(path: str) -> None:
    _, stage, name = path.split(".")
    assert name in names_read(PACKAGE / "kvmhost" / "stages" / f"{stage}.py")


@pytest.mark.parametrize("path", DECIDES)
def test_what_is_in_no_stage_is_read_by_a_task(path: str) -> None:
    decided, file = DECIDES[path]
    assert decided in names_read(PACKAGE / file)


@pytest.mark.parametrize("path", ALWAYS)
def test_a_switch_that_cannot_be_off_says_why(tmp_path: Path, path: str) -> None:
    with pytest.raises(PlanError, match=f"{path}: found false, expected true: "):
        migration(tmp_path, nested(path, False), {}, {})


@pytest.mark.parametrize("path", OTHER)
def test_a_plan_comes_before_the_profile(tmp_path: Path, path: str) -> None:
    value, needed = OTHER[path]
    in_the_profile = written(migration(tmp_path, merged(needed, nested(path, value)), {}, {}))
    assert written(migration(tmp_path, needed, nested(path, value), {})) == in_the_profile


def test_the_profiles_description_is_on_the_dags_page(tmp_path: Path) -> None:
    migration(tmp_path, {"description": "For `web` servers"}, {}, {})
    plan = load_plan(tmp_path / "plan.yaml")
    assert "with profile `p` (`` For `web` servers ``)." in describe(plan, plan.vms[0])


def test_the_runs_params_come_before_the_plan(tmp_path: Path) -> None:
    plan = {"compress": True, "manifest_target_format": "qcow2", "pipeline": {"convert": {"compress_level": 3}}}
    assert migration(tmp_path, {}, plan, {}).pipeline.to_document()["convert"]["compress_level"] == 3
    run = written(migration(tmp_path, {}, plan, {"compress": False, "output_format": "raw"}))
    assert run["pipeline"]["convert"] == {"enabled": True, "compress": False}
    assert run["output"]["format"] == "raw"
