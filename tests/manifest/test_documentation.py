"""The page about the manifest says what is so."""

import json
import re
import types
import typing
from pathlib import Path

import jsonschema
import yaml
from hyperflow.manifest.load import parse_manifest
from hyperflow.manifest.models import Manifest
from hyperflow.manifest.rules import concerns
from hyperflow.manifest.save import canonical
from hyperflow.manifest.schema import BEYOND_SCHEMA, manifest_schema
from hyperflow.plans.load import load_plan
from hyperflow.plans.overrides import Overrides
from hyperflow.plans.profile import ProfileSettings
from hyperflow.plans.settings import Settings
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "manifest.md").read_text()
PLAN_PAGE = (ROOT / "docs" / "plan.md").read_text()


def test_the_example_is_valid_canonical_and_of_no_concern():
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    manifest = parse_manifest(example)
    assert canonical(manifest) == example
    assert concerns(manifest) == []
    jsonschema.Draft7Validator(manifest_schema()).validate(json.loads(example))


def test_the_example_has_every_field_there_is():
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert [path for path in fields(Manifest) if path not in said(json.loads(example))] == []


def fields(model, prefix=""):
    """Yield the path of every field, as disks[].id; NAME stands for a key that a person chooses."""
    for name, field in model.model_fields.items():
        yield from inner(field.annotation, f"{prefix}{field.alias or name}")


def inner(annotation, path):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from fields(annotation, f"{path}.")
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated or origin in (types.UnionType, typing.Union):
        yield from inner(next(part for part in arguments if part is not type(None)), path)
    elif origin is list:
        yield from inner(arguments[0], f"{path}[]")
    elif origin is dict:
        yield from inner(arguments[1], f"{path}.NAME")
    else:
        yield path


def said(value, path="", known=("users", "interfaces", "hosts", "tags")):
    """Give the path of everything in a document, as :func:`fields` writes it."""
    if isinstance(value, list):
        return {found for item in value for found in said(item, f"{path}[]")}
    if not isinstance(value, dict):
        return {path}
    chosen = path.rpartition(".")[2] in known
    keys = ((f"{path}.NAME" if chosen else f"{path}.{key}" if path else key, item) for key, item in value.items())
    return {found for key, item in keys for found in said(item, key)}


def test_what_the_schema_cannot_state_is_listed_on_the_page():
    assert [sentence for sentence in BEYOND_SCHEMA if f"* {sentence}\n" not in PAGE] == []


def test_every_field_of_the_models_is_on_the_page():
    definitions = Manifest.model_json_schema()["$defs"].values()
    names = {name for definition in definitions for name in definition.get("properties", {})}
    assert [name for name in sorted(names) if not re.search(rf"[`.]{name}\b", PAGE)] == []


def test_every_setting_of_plans_profiles_and_runs_is_on_the_page():
    for model in (Settings, ProfileSettings, Overrides):
        assert [name for name in model.model_fields if not re.search(rf"`{name}\b", PLAN_PAGE)] == []


def test_the_plan_on_the_page_loads(tmp_path):
    example = re.findall(r"```yaml\n(.*?)```", PLAN_PAGE, re.DOTALL)[0]
    assert yaml.safe_load(example)
    (tmp_path / "plan.yaml").write_text(example)
    assert [vm.slug for vm in load_plan(tmp_path / "plan.yaml").vms] == ["web01", "db01"]
