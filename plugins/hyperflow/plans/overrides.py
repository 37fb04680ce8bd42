"""What a person may set for one run: the DAG run's conf, the trigger form's fields."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hyperflow.manifest.faults import from_validation, place
from hyperflow.manifest.models import OutputFormat
from hyperflow.plans.plan import PlanError
from hyperflow.plans.settings import ConnectionId, HostFolder


def _moment(text: str) -> str:
    try:
        sound = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        sound = False
    if not sound:
        raise ValueError("a time with its zone, as 2026-11-28T04:00:00+01:00")
    return text


class Overrides(BaseModel):
    """Settings of one run; null is "as in the plan", because the trigger form sends every field."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    host_connection: ConnectionId | None = Field(
        default=None, title="Target host", description="Airflow SSH connection"
    )
    output_directory: HostFolder | None = Field(
        default=None,
        title="Output directory",
        description="On the target host; a folder for the VM is made in it",
    )
    output_format: OutputFormat | None = Field(
        default=None, title="Output format", description="Of the images; vdi takes twice the space while it is made"
    )
    compress: bool | None = Field(default=None, title="Compress", description="Compress the images; qcow2 only")
    skip_boot: bool = Field(
        default=False,
        title="Skip the boot proof",
        description="The migration then ends unproven, and the report says so",
    )
    not_after: Annotated[str, AfterValidator(_moment)] | None = Field(
        default=None,
        title="Not after",
        description="A cutover asks nobody, and shuts nothing down, after this time; a wave gives its window's end",
    )
    dry_run: bool = Field(default=False, title="Dry run", description="Preflight only: nothing is exported or written")


def parse_overrides(conf: Any) -> Overrides:
    """Read a run's conf.

    :raises PlanError: unknown keys, wrong types, bad values, all of them
    """
    try:
        return Overrides.model_validate(conf)
    except ValidationError as error:
        raise PlanError("dag_run.conf", place(from_validation(error, Overrides), {})) from None
