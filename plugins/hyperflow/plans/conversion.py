"""A run that converts the disks of a manifest, with everything decided: profile < manifest < what the person asked."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hyperflow.manifest.faults import Fault, from_validation, place, show
from hyperflow.manifest.models import Manifest, Output, OutputFormat, Pipeline
from hyperflow.manifest.rules import concerns
from hyperflow.plans.host_run import REPORT_NAME, HostRun
from hyperflow.plans.plan import PlanError
from hyperflow.plans.profile import Name, Profile
from hyperflow.plans.settings import ConnectionId, HostFolder

WORK_NAME = ".hyperflow-convert"  # below the output directory, where the images' file system is
DEFAULT_PROFILE = "kvm-migration"


class ConversionRequest(BaseModel):
    """What a person asks of the DAG that converts a manifest: the trigger form's fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    host_connection: ConnectionId = Field(title="Host", description="Airflow SSH connection")
    manifest: HostFolder = Field(title="Manifest", description="Path on the host, JSON or YAML")
    output_directory: HostFolder | None = Field(
        default=None, title="Output directory", description="On the host; empty: as the manifest says"
    )
    output_format: OutputFormat | None = Field(
        default=None, title="Output format", description="Empty: as the manifest says"
    )
    profile: Name = Field(
        default=DEFAULT_PROFILE, title="Profile", description="What runs where the manifest has no pipeline"
    )
    staging_directory: HostFolder = Field(
        default="/var/lib/hyperflow", title="Staging directory", description="On the host; for overlays and jobs"
    )
    dry_run: bool = Field(default=False, title="Dry run", description="Read the manifest and say what would be done")


def parse_request(conf: Any) -> ConversionRequest:
    """Read what a person asked for.

    :raises PlanError: unknown keys, wrong types, bad values, all of them
    """
    try:
        return ConversionRequest.model_validate(conf)
    except ValidationError as error:
        raise PlanError("dag_run.conf", place(from_validation(error, ConversionRequest), {})) from None


class Conversion(HostRun):
    """All that the conversion of one manifest needs.

    :param images: disk id -> file name of its image, in boot order
    :param report: path of the report; None where the manifest wants none
    :param macs: of the manifest's NICs
    :param verbose: 0 to 3, as the manifest says it
    :param warnings: what a person should know before anything runs
    """

    name: str
    source: str
    images: dict[str, str]
    report: str | None
    macs: list[str]
    verbose: int
    warnings: list[str]

    @property
    def report_path(self) -> str:
        """The report's path, also where the manifest wants none written."""
        return self.report or f"{self.output_directory}/{REPORT_NAME}"

    def image_name(self, disk_id: str) -> str:
        """File name of a disk's final image."""
        return self.images[disk_id]


def decide(
    manifest: Manifest,
    path: PurePosixPath,
    profile: Profile,
    *,
    host_connection: str,
    staging_directory: str | None = None,
    output_directory: str | None = None,
    output_format: OutputFormat | None = None,
    dry_run: bool = False,
) -> Conversion:
    """Decide everything about the conversion of a manifest.

    :param path: where the manifest lies, absolute; relative folders in it are beside it
    :param profile: its pipeline runs where the manifest has none
    :param output_directory: in place of the manifest's; absolute, so is ``staging_directory``
    :param output_format: in place of the manifest's
    :raises PlanError: with every reason for which nothing may run
    """
    own = manifest.pipeline is not None
    pipeline = manifest.pipeline or profile.manifest_pipeline()
    image_format = output_format or _format(manifest, None if own else profile)
    output = output_directory or str(manifest.output_directory(path))
    written = manifest.output.filename if manifest.output else None
    disks = manifest.disks_in_boot_order()
    images = {disk.id: f"{disk.id}.{image_format}" for disk in disks}
    images |= {disks[0].id: written} if written else {}
    options = manifest.options
    report = options.report.path if options and options.report else REPORT_NAME
    faults = [*_pipeline_faults(pipeline, image_format), *_name_faults(images, report)]
    if faults:
        raise PlanError(str(path), faults)
    wanted = not (options and options.report) or options.report.enabled
    return Conversion(
        host_connection=host_connection,
        staging_directory=staging_directory or f"{output}/{WORK_NAME}",
        output_directory=output,
        profile=None if own else profile.name,
        verify_manifest=True,  # the contract: before a byte is converted
        pipeline=pipeline,
        output=Output(directory=output, format=image_format),
        dry_run=dry_run or bool(options and options.dry_run),
        parallel_disks=1,
        name=(manifest.source.vm_name if manifest.source else None) or disks[0].id,
        source=str(path),
        images=images,
        report=f"{output}/{report}" if wanted else None,
        macs=[nic.mac.lower().replace("-", ":") for nic in manifest.nics or [] if nic.mac],
        verbose=options.verbose if options else 1,
        warnings=_warnings(manifest, pipeline),
    )


def _format(manifest: Manifest, profile: Profile | None) -> OutputFormat:
    if manifest.output is not None and "format" in manifest.output.model_fields_set:
        return manifest.output.format
    return profile.manifest_target_format if profile else "qcow2"


def _warnings(manifest: Manifest, pipeline: Pipeline) -> list[str]:
    said = concerns(manifest)
    on = pipeline.enabled()
    if "fix" in on and "convert" not in on:
        said.append("pipeline: fix is enabled without convert: what it changes is thrown away")
    if manifest.configuration is not None and manifest.pipeline is None and "fix" not in on:
        said.append("configuration is not applied to the guest, because the profile has fix disabled")
    return said


def _pipeline_faults(pipeline: Pipeline, image_format: str) -> list[Fault]:
    faults = []
    on = pipeline.enabled()
    if not set(on) - {"validate"}:
        found = "every stage disabled" if not on else "only validate enabled, and no image to validate"
        faults.append(Fault("pipeline", found, "at least one of inspect, fix and convert"))
    if "convert" in on and pipeline.convert and pipeline.convert.compress and image_format != "qcow2":
        faults.append(
            Fault("pipeline.convert.compress", f"true with the format {image_format}", "true with qcow2 only")
        )
    return faults


def _name_faults(images: dict[str, str], report: str) -> list[Fault]:
    """Refuse names that a manifest of another machine must not choose: root writes these files."""
    faults = []
    seen: set[str] = set()
    for disk_id, name in images.items():
        if name.startswith("."):
            faults.append(Fault("output.filename", show(name), "a name without a leading dot"))
        if name in seen:
            faults.append(Fault("output.filename", show(name), f"another name than the image of {disk_id} has"))
        seen.add(name)
    parts = PurePosixPath(report).parts
    if report.startswith("/") or any(part.startswith(".") for part in parts) or not report.endswith(".json"):
        faults.append(Fault("options.report.path", show(report), "a .json file below the output directory"))
    elif report in seen:
        faults.append(Fault("options.report.path", show(report), "another name than an image has"))
    return faults
