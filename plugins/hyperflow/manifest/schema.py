"""Makes the JSON Schemas, Draft 7, of the models; ``python -m hyperflow.manifest.schema`` writes its two."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hyperflow.manifest.models import Manifest
from hyperflow.manifest.report import Report
from hyperflow.manifest.rules import RUNNABLE
from hyperflow.manifest.wave_report import WaveReport

SCHEMAS = Path(__file__).resolve().parents[3] / "include" / "schemas"
DRAFT = "http://json-schema.org/draft-07/schema#"

# What a schema cannot state; the models and the loader do.
BEYOND_SCHEMA = (
    "the ids of the disks differ from each other, and so do their files",
    "a date is a day of the calendar (30 February is none)",
    "output.filename is not the name another disk's image has of itself",
    "an IP address is one (not 999.1.1.1)",
    "a unit of configuration.services is in one of its lists only",
    "an interface of configuration.network has either dhcp or addresses, and gateway and dns with addresses only",
    "no two keys of one object are the same",
    "the document has at most 8 MiB, 32 levels and 50,000 values",
    "strings hold no half of a surrogate pair, numbers are finite",
)


def manifest_schema() -> dict[str, Any]:
    """Make the schema of the Artifact Manifest v1.0."""
    return draft7(Manifest, "artifact-manifest-v1.0", "Artifact Manifest v1.0", refuse_runnable=True)


def report_schema() -> dict[str, Any]:
    """Make the schema of report.json."""
    return draft7(Report, "report", "Hyperflow migration report")


def wave_report_schema() -> dict[str, Any]:
    """Make the schema of wave-report.json."""
    return draft7(WaveReport, "wave-report", "Hyperflow wave report")


def draft7(model: type[BaseModel], name: str, title: str, *, refuse_runnable: bool = False) -> dict[str, Any]:
    """Make the Draft 7 schema of a model.

    :param name: the schema's file is ``<name>.schema.json``, and this is its ``$id``
    :param refuse_runnable: objects with unknown keys refuse those that ask to be run (rules.RUNNABLE)
    """
    written = model.model_json_schema(ref_template="#/definitions/{model}", by_alias=True)
    definitions = written.pop("$defs", {})
    schema = {
        "$schema": DRAFT,
        "$id": f"{name}.schema.json",
        **_rewrite(written, refuse_runnable),
        "title": title,
        "definitions": {key: _rewrite(value, refuse_runnable) for key, value in sorted(definitions.items())},
    }
    if "JsonValue" in schema["definitions"]:
        schema["definitions"]["JsonValue"] = _any_json(refuse_runnable)
    return schema


def write_schemas(folder: Path, schemas: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """Write schemas as ``<name>.schema.json``.

    :param schemas: name -> schema
    :return: the files
    """
    files = []
    for name, schema in schemas.items():
        file = folder / f"{name}.schema.json"
        file.write_text(schema_text(schema), encoding="utf-8")
        files.append(file)
    return files


def schema_text(schema: Mapping[str, Any]) -> str:
    """Write a schema as the text of its file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _any_json(refuse_runnable: bool) -> dict[str, Any]:
    if not refuse_runnable:
        return {"description": "Any JSON value"}
    return {
        "description": "Any JSON value that does not ask to be run",
        "propertyNames": {"not": {"pattern": RUNNABLE}},
        "additionalProperties": {"$ref": "#/definitions/JsonValue"},
        "items": {"$ref": "#/definitions/JsonValue"},
    }


def _rewrite(node: Any, refuse_runnable: bool) -> Any:
    """Turn pydantic's dialect (2020-12) into Draft 7."""
    if isinstance(node, list):
        return [_rewrite(item, refuse_runnable) for item in node]
    if not isinstance(node, dict):
        return node
    written = {key: _rewrite(value, refuse_runnable) for key, value in node.items() if key != "title"}
    if isinstance(node.get("properties"), dict):  # a field may be called "title": keep every property
        written["properties"] = {key: _rewrite(value, refuse_runnable) for key, value in node["properties"].items()}
    # A field that may be absent has no null: None is how Python says "absent".
    if "default" in written and written["default"] is None:
        del written["default"]
    if "$ref" in written and len(written) > 1:  # Draft 7 ignores what stands beside $ref
        written = {"allOf": [{"$ref": written.pop("$ref")}], **written}
    if (
        refuse_runnable
        and isinstance(node.get("additionalProperties"), dict)
        and "$ref" in node["additionalProperties"]
    ):
        written["propertyNames"] = {"not": {"pattern": RUNNABLE}}
    return written


if __name__ == "__main__":
    for path in write_schemas(SCHEMAS, {"artifact-manifest-v1.0": manifest_schema(), "report": report_schema()}):
        print(path)
