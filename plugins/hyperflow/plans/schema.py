"""Makes the JSON Schemas of plans and profiles; ``python -m hyperflow.plans.schema`` writes all there are."""

from __future__ import annotations

from typing import Any

from hyperflow.manifest.schema import SCHEMAS, draft7, manifest_schema, report_schema, wave_report_schema, write_schemas
from hyperflow.plans.profile import Profile
from hyperflow.plans.settings import PlanFile


def plan_schema() -> dict[str, Any]:
    """Make the schema of a plan file."""
    return draft7(PlanFile, "plan", "Hyperflow migration plan")


def profile_schema() -> dict[str, Any]:
    """Make the schema of a profile file."""
    return draft7(Profile, "profile", "Hyperflow profile")


def all_schemas() -> dict[str, dict[str, Any]]:
    """Make every schema of the project: name -> schema."""
    return {
        "artifact-manifest-v1.0": manifest_schema(),
        "report": report_schema(),
        "wave-report": wave_report_schema(),
        "plan": plan_schema(),
        "profile": profile_schema(),
    }


if __name__ == "__main__":
    for file in write_schemas(SCHEMAS, all_schemas()):
        print(file)
