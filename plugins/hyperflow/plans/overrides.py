"""What a person may set for one run: the DAG run's conf, the trigger form's fields."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hyperflow.manifest.faults import from_validation, place
from hyperflow.manifest.models import OutputFormat
from hyperflow.plans.plan import PlanError
from hyperflow.plans.settings import ConnectionId, HostFolder

Model = TypeVar("Model", bound=BaseModel)


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


class WaveOverrides(BaseModel):
    """What a run of a wave may be asked for.

    :param pause_after: the wave's DAG was paused before a rehearsal, and is to be when that is over
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    again: bool = False
    dry_run: bool = False
    skip_boot: bool = False
    pause_after: bool = False


def parse_overrides(conf: Any) -> Overrides:
    """Read a run's conf.

    :raises PlanError: unknown keys, wrong types, bad values, all of them
    """
    return _parse(Overrides, conf)


def parse_wave_overrides(conf: Any) -> WaveOverrides:
    """Read the conf of a wave's run.

    :raises PlanError: as above: a rehearsal that was mistyped would move the VMs
    """
    return _parse(WaveOverrides, conf)


def _parse(model: type[Model], conf: Any) -> Model:
    try:
        return model.model_validate(conf)
    except ValidationError as error:
        raise PlanError("dag_run.conf", place(from_validation(error, model), {})) from None
