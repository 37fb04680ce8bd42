"""``report.json`` as models: what a migration did and what was observed afterwards.

The fields down to ``summary`` are those the existing programs' readers expect; the others are ours.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from hyperflow.manifest.models import Checksum, Count, DiskId, OutputFormat, Size
from hyperflow.manifest.section import ClosedSection, Matching, Maybe, Timestamp

Sha256 = Annotated[str, Matching("[a-f0-9]{64}", "64 lower-case hexadecimal digits")]
ErrorCode = Annotated[str, Matching("HF-[A-Z]+-[0-9]{3}", "a code as HF-EXPORT-012")]
Seconds = Annotated[float, Field(ge=0)]
Outcome = Literal["proven", "unproven", "failed"]


class StagePart(ClosedSection):
    """One stage, or one disk's part of it."""

    success: bool
    duration: Seconds = Field(description="Seconds")
    result: Maybe[dict[str, JsonValue]] = Field(default=None, description="What was observed, not what was asked")
    error: Maybe[str] = None
    code: Maybe[ErrorCode] = Field(default=None, description="What the catalogue knows the error as: docs/errors.md")
    skipped: Maybe[str] = Field(default=None, description="Why it did not run; it then succeeded in nothing")
    started: Maybe[Timestamp] = None
    host: Maybe[str] = Field(default=None, description="Host that did the work")
    bytes_read: Maybe[Size] = None
    bytes_written: Maybe[Size] = None
    bytes_per_second: Maybe[Size] = Field(default=None, description="The larger of read and written, over duration")
    tools: Maybe[dict[str, str]] = None
    warnings: Maybe[list[str]] = None


class Stage(StagePart):
    """A stage; one that runs per disk has its parts here, and their sums above."""

    parts: Maybe[dict[str, StagePart]] = Field(default=None, description="By disk id")


class PipelineReport(ClosedSection):
    """The run as a whole."""

    success: bool = Field(
        description="Every stage that was wanted succeeded, and a migration's guest proved that it boots"
    )
    duration_seconds: Seconds
    stages: dict[str, Stage] = Field(description="In the order they ran")


class Artifact(ClosedSection):
    """A converted image."""

    type: Literal["converted_disk"] = "converted_disk"
    disk_id: DiskId
    path: str
    format: OutputFormat
    sha256: Maybe[Sha256] = Field(
        default=None, description="Of the image file; missing where the run ended before validate had read it"
    )
    bytes: Size = Field(description="Size of the image file")
    virtual_bytes: Size = Field(description="Size the guest sees")
    content_sha256: Maybe[Sha256] = Field(default=None, description="Of what the guest sees")
    boot_order_hint: Maybe[Size] = None


class Message(ClosedSection):
    """A warning or an error."""

    stage: str
    message: str
    code: Maybe[ErrorCode] = Field(default=None, description="Of an error: what the catalogue knows it as")
    timestamp: Maybe[Timestamp] = None


class InputManifest(ClosedSection):
    """The manifest the run worked from."""

    path: str
    manifest_version: Literal["1.0"]
    checksum: Maybe[Checksum] = None
    source_provider: Maybe[str] = None
    source_vm_id: Maybe[str] = None
    source_vm_name: Maybe[str] = None


class Summary(ClosedSection):
    """Counts, and the outcome in one word."""

    outcome: Outcome = Field(description="unproven: all went well, and no boot was asked for")
    total_stages: Size
    successful_stages: Size
    failed_stages: Size
    skipped_stages: Size
    total_warnings: Size
    total_errors: Size
    total_artifacts: Size
    input_disks: Size
    output_disks: Size


class ReportedVm(ClosedSection):
    """The VM that was moved."""

    name: str
    slug: Maybe[str] = None
    selector: Maybe[str] = Field(default=None, description="How the plan names it")
    provider: Maybe[str] = None
    vm_id: Maybe[str] = None
    datacenter: Maybe[str] = None
    guest: Maybe[dict[str, JsonValue]] = Field(default=None, description="What inspect found")
    domain: Maybe[str] = Field(default=None, description="Name of the libvirt domain that was defined")
    domain_uuid: Maybe[str] = None


class Run(ClosedSection):
    """The DAG run; without one when ``hyperflow convert`` ran by itself."""

    dag_id: Maybe[str] = None
    run_id: Maybe[str] = None
    plan: Maybe[str] = None
    profile: Maybe[str] = None
    requested_by: Maybe[str] = None
    overrides: Maybe[dict[str, JsonValue]] = Field(default=None, description="What the run set otherwise")
    try_number: Maybe[Count] = None


class Hosts(ClosedSection):
    """Who took part, by connection and by their own names."""

    vcenter: Maybe[str] = None
    kvm: str
    kvm_name: Maybe[str] = None


class BootProof(ClosedSection):
    """The boot that proved the conversion."""

    proven: bool
    accelerator: Maybe[str] = None
    seconds_to_up: Maybe[Seconds] = None
    evidence: Maybe[dict[str, JsonValue]] = Field(default=None, description="What the guest itself said")
    console_log: Maybe[str] = None
    screenshot: Maybe[str] = None


class SourceCleanup(ClosedSection):
    """What the run left at the source, looked up afterwards."""

    clean: bool = Field(description="Nothing this run created is left")
    snapshots_left: list[str]
    leases_left: list[str]
    observed: Maybe[dict[str, JsonValue]] = None


class Decision(ClosedSection):
    """What a person decided, or what was taken because nobody did."""

    question: str
    answer: str
    by: Maybe[str] = Field(default=None, description="Absent when the time for an answer was over")
    at: Maybe[Timestamp] = None


class AuditHead(ClosedSection):
    """The last entry that the run's audit file had when the report was written; later ones may follow it."""

    entries: Count = Field(description="Number of that entry")
    sha256: Sha256 = Field(description="Digest of that entry")


class Report(ClosedSection):
    """``report.json``."""

    version: Literal["1.0"]
    timestamp: Timestamp
    pipeline: PipelineReport
    artifacts: list[Artifact]
    warnings: list[Message]
    errors: list[Message]
    input_manifest: InputManifest | None = Field(description="null when the run ended before there was one")
    summary: Summary
    vm: ReportedVm
    run: Run
    hosts: Hosts
    tools: dict[str, str] = Field(description="Name -> version, of every tool a stage used")
    boot_proof: BootProof | None = Field(description="null when no boot was tried")
    source_cleanup: SourceCleanup | None = Field(description="null when it could not be looked up")
    decisions: Maybe[list[Decision]] = Field(default=None, description="What people decided in this run")
    audit: Maybe[AuditHead] = Field(default=None, description="What `hyperflow audit verify` holds the audit file to")


def is_report(document: Any) -> bool:
    """Whether a document is a report, of this version of Hyperflow or another: what may be replaced by a new one."""
    pipeline = document.get("pipeline") if isinstance(document, dict) else None
    return isinstance(pipeline, dict) and isinstance(pipeline.get("success"), bool)
