"""The DAG that converts the disks of a manifest which lies on a host."""

from __future__ import annotations

from typing import Any, get_args

from airflow.sdk import DAG, Param, TriggerRule, chain

from hyperflow.manifest.models import OutputFormat
from hyperflow.operators.base import PREFLIGHT
from hyperflow.operators.conversion import (
    ConvertDiskOperator,
    FixGuestOperator,
    InspectGuestOperator,
    ValidateImagesOperator,
    VerifyChecksumOperator,
)
from hyperflow.operators.convert_manifest import (
    HARDWARE_KEY,
    REFERENCE_KEY,
    CleanUpConversionOperator,
    ReadManifestOperator,
    ReportConversionOperator,
)
from hyperflow.plans.conversion import ConversionRequest
from hyperflow.workflows.migration import DISK_LABEL, TRIES, left_by, left_by_all

DAG_ID = "convert_manifest"
PARALLEL_DISKS = 2
EXAMPLES = {"host_connection": "kvm01", "manifest": "/var/lib/export/artifact-manifest.json"}


def build_conversion() -> DAG:
    """Build the DAG: the same stages as a migration's, on a manifest of whichever exporter."""
    dag = DAG(
        DAG_ID,
        dag_display_name="Convert a manifest",
        description="Convert the disks of an Artifact Manifest on a KVM host",
        doc_md=(
            "Reads an Artifact Manifest v1.0 on a KVM host and runs its pipeline there: inspect, fix, convert, "
            "validate. Where it has none, the profile's pipeline runs. The disks that it names are only read."
        ),
        schedule=None,
        catchup=False,
        max_active_runs=1,  # two runs that write to one output directory would fight for its images
        is_paused_upon_creation=False,  # it has no schedule: only a person starts it
        default_args=dict(TRIES),
        params=form(),
        tags=["hyperflow"],
        render_template_as_native_obj=True,
    )
    with dag:
        add_tasks()
    return dag


def add_tasks() -> None:
    """Put the tasks into the DAG that is being built."""
    preflight = ReadManifestOperator(task_id=PREFLIGHT, retry_policy=None)
    staged = {"migration": left_by(PREFLIGHT, "migration"), "manifest": left_by(PREFLIGHT, REFERENCE_KEY)}
    # What the pipeline has disabled is skipped; what follows it runs all the same, unless something failed.
    onward = {"trigger_rule": TriggerRule.NONE_FAILED}
    per_disk = {"map_index_template": DISK_LABEL, "max_active_tis_per_dagrun": PARALLEL_DISKS}
    disks = preflight.output
    checksum = VerifyChecksumOperator.partial(task_id="checksum", **staged, **per_disk).expand(disk=disks)
    inspect = InspectGuestOperator(task_id="inspect", **staged, **onward)
    fix = FixGuestOperator(task_id="fix", **staged, vm=left_by(PREFLIGHT, HARDWARE_KEY), **onward)
    convert = ConvertDiskOperator.partial(task_id="convert", **staged, fix=left_by("fix"), **onward, **per_disk).expand(
        disk=disks
    )
    validate = ValidateImagesOperator(task_id="validate", **staged, images=left_by_all("convert"), **onward)
    # Teardowns, as in a migration: they run also when a person sets the state of the whole run
    cleanup = CleanUpConversionOperator(task_id="cleanup").as_teardown(on_failure_fail_dagrun=True)
    report = ReportConversionOperator(task_id="report").as_teardown(on_failure_fail_dagrun=True)
    chain(preflight, checksum, inspect, fix, convert, validate, cleanup, report)


def form() -> dict[str, Param]:
    """Make the trigger form, a field for each of :class:`ConversionRequest`."""
    params = {}
    for name, field in ConversionRequest.model_fields.items():
        value = EXAMPLES[name] if field.is_required() else field.default
        kind = "boolean" if isinstance(value, bool) else "string"
        schema: dict[str, Any] = {"type": ["null", kind] if value is None else kind}
        if name == "output_format":
            schema["enum"] = [None, *get_args(OutputFormat)]
        params[name] = Param(value, title=field.title, description=field.description, **schema)
    return params
