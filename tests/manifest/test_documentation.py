"""The page about the manifest says what is so."""

import re
from pathlib import Path

import yaml
from hyperflow.manifest.load import parse_manifest
from hyperflow.manifest.models import Manifest
from hyperflow.manifest.rules import concerns
from hyperflow.manifest.save import canonical
from hyperflow.plans.load import load_plan
from hyperflow.plans.overrides import Overrides
from hyperflow.plans.profile import ProfileSettings
from hyperflow.plans.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "manifest.md").read_text()
PLAN_PAGE = (ROOT / "docs" / "plan.md").read_text()


def test_the_example_is_valid_canonical_and_of_no_concern():
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    manifest = parse_manifest(example)
    assert canonical(manifest) == example
    assert concerns(manifest) == []


def test_every_field_of_the_models_is_on_the_page():
    definitions = Manifest.model_json_schema()["$defs"].values()
    names = {name for definition in definitions for name in definition.get("properties", {})}
    assert [name for name in sorted(names) if not re.search(rf"[`.]{name}\b", PAGE)] == []


def test_every_setting_of_plans_profiles_and_runs_is_on_the_page():
    for model in (Settings, ProfileSettings, Overrides):
        assert [name for name in model.model_fields if not re.search(rf"`{name}\b", PLAN_PAGE)] == []


def test_the_plan_on_the_page_loads(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", PLAN_PAGE, re.DOTALL)
    assert yaml.safe_load(example)
    (tmp_path / "plan.yaml").write_text(example)
    assert [vm.slug for vm in load_plan(tmp_path / "plan.yaml").vms] == ["web01", "db01"]
