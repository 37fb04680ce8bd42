"""The report of a wave: every VM with what became of it, and who decided what."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, JsonValue

from hyperflow.manifest.models import Size
from hyperflow.manifest.report import BootProof, Decision, Message, Report, Seconds
from hyperflow.manifest.section import ClosedSection, Maybe, Timestamp

VmOutcome = Literal["migrated", "unproven", "rehearsed", "already done", "failed", "rolled back", "not started"]
WaveOutcome = Literal["complete", "unproven", "rehearsed", "partial", "failed", "not started"]
DRIFTED = "the VM is other than this run saw it"  # how the message of a drift begins
ARRIVED: tuple[VmOutcome, ...] = ("migrated", "already done")


class StageTime(ClosedSection):
    """How long a stage took."""

    seconds: Seconds
    success: bool
    bytes_per_second: Maybe[Size] = None
    skipped: Maybe[str] = None


class VmSummary(ClosedSection):
    """What a wave tells of one VM's run; small, because it travels as an XCom."""

    outcome: VmOutcome
    dag_id: str
    run_id: Maybe[str] = None
    slug: str
    name: Maybe[str] = None
    host: Maybe[str] = Field(default=None, description="Connection of the KVM host")
    domain: Maybe[str] = None
    seconds: Maybe[Seconds] = None
    bytes: Maybe[Size] = Field(default=None, description="What was exported")
    bytes_per_second: Maybe[Size] = Field(default=None, description="Of the export")
    stages: Maybe[dict[str, StageTime]] = Field(default=None, description="In the order they ran")
    boot_proof: Maybe[BootProof] = None
    warnings: Maybe[list[Message]] = None
    errors: Maybe[list[Message]] = None
    report: Maybe[str] = Field(default=None, description="Path of report.json on the KVM host")
    reason: Maybe[str] = Field(default=None, description="Why it was not started, or why it failed")
    drifted: Maybe[bool] = Field(default=None, description="It failed because somebody changed the VM meanwhile")
    decisions: Maybe[list[Decision]] = Field(default=None, description="Of its cutover")


class WaveSummary(ClosedSection):
    """Counts, and the outcome in one word."""

    outcome: WaveOutcome
    vms: Size
    migrated: Size
    already_done: Size
    unproven: Size
    rehearsed: Size
    failed: Size
    rolled_back: Size
    not_started: Size
    warnings: Size
    bytes: Size


class WaveReport(ClosedSection):
    """``wave-report.json``."""

    version: Literal["1.0"]
    plan: str
    wave: str
    dag_id: str
    run_id: str
    triggered_by: Maybe[str] = None
    overrides: Maybe[dict[str, JsonValue]] = Field(default=None, description="What the run set otherwise")
    started: Timestamp
    ended: Timestamp
    window_end: Maybe[Timestamp] = None
    summary: WaveSummary
    reason: Maybe[str] = Field(default=None, description="Why the wave was not started")
    decisions: list[Decision]
    vms: Annotated[list[VmSummary], Field(max_length=2000)]


def summarise_run(report: Report, path: str | None, *, rehearsed: bool = False, rolled_back: bool = False) -> VmSummary:
    """Make of a VM's report what its wave tells of it.

    :param rehearsed: it was a dry run
    :param rolled_back: its cutover was taken back
    :param path: where the report lies on the KVM host, None when it could not be written there
    """
    stages = {
        name: StageTime.model_validate(
            {
                key: value
                for key, value in (
                    ("seconds", stage.duration),
                    ("success", stage.success),
                    ("bytes_per_second", stage.bytes_per_second),
                    ("skipped", stage.skipped),
                )
                if value is not None
            }
        )
        for name, stage in report.pipeline.stages.items()
    }
    export = report.pipeline.stages.get("export")
    outcome: VmOutcome = {"proven": "migrated", "unproven": "unproven"}.get(report.summary.outcome, "failed")  # type: ignore[assignment]
    if rehearsed and not report.errors:
        outcome = "rehearsed"
    if rolled_back:
        outcome = "rolled back"
    fields = {
        "outcome": outcome,
        "dag_id": report.run.dag_id or "",
        "run_id": report.run.run_id,
        "slug": report.vm.slug or report.vm.name,
        "name": report.vm.name,
        "host": report.hosts.kvm,
        "domain": report.vm.domain,
        "seconds": report.pipeline.duration_seconds,
        "bytes": export.bytes_written if export else None,
        "bytes_per_second": export.bytes_per_second if export else None,
        "stages": stages,
        "boot_proof": report.boot_proof,
        "warnings": report.warnings[:MESSAGES_KEPT],
        "errors": report.errors[:MESSAGES_KEPT],
        "report": path,
        "drifted": True if any(DRIFTED in error.message for error in report.errors) else None,
        "decisions": report.decisions,
    }
    return VmSummary.model_validate({key: value for key, value in fields.items() if value is not None})


MESSAGES_KEPT = 50  # of each kind and VM; the VM's own report has all


def summarise_wave(vms: list[VmSummary]) -> WaveSummary:
    """Count what became of a wave's VMs."""
    by = {outcome: sum(vm.outcome == outcome for vm in vms) for outcome in _OUTCOMES}
    arrived = sum(by[outcome] for outcome in ARRIVED)
    if vms and arrived == len(vms):
        outcome: WaveOutcome = "complete"
    elif vms and arrived + by["unproven"] == len(vms):
        outcome = "unproven"
    elif vms and by["rehearsed"] + by["already done"] == len(vms):
        outcome = "rehearsed"
    elif by["not started"] == len(vms):
        outcome = "not started"
    else:
        outcome = "partial" if arrived or by["unproven"] or by["rehearsed"] else "failed"
    return WaveSummary(
        outcome=outcome,
        vms=len(vms),
        migrated=by["migrated"],
        already_done=by["already done"],
        unproven=by["unproven"],
        rehearsed=by["rehearsed"],
        failed=by["failed"],
        rolled_back=by["rolled back"],
        not_started=by["not started"],
        warnings=sum(len(vm.warnings or ()) for vm in vms),
        bytes=sum(vm.bytes or 0 for vm in vms if vm.outcome in ("migrated", "unproven")),
    )


_OUTCOMES: tuple[VmOutcome, ...] = get_args(VmOutcome)
