"""Makes the report of the stages' results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from hyperflow.manifest.builder import timestamp
from hyperflow.manifest.faults import DocumentError, from_validation, place
from hyperflow.manifest.models import Manifest
from hyperflow.manifest.report import (
    Artifact,
    BootProof,
    Hosts,
    InputManifest,
    Message,
    Outcome,
    Report,
    ReportedVm,
    Run,
    SourceCleanup,
    Stage,
    StagePart,
)


class ReportError(DocumentError):
    """What should become a report cannot; ``faults`` holds every reason."""


def host_part(result: Mapping[str, Any]) -> StagePart:
    """Read the ``result.json`` of a host stage.

    :param result: ``{stage, succeeded, observed, warnings, host, started, seconds, bytes_read, bytes_written,
        tools}``, and ``error: {kind, message}`` when it failed
    :raises ReportError: it is no such result
    """
    read, written, seconds = result.get("bytes_read"), result.get("bytes_written"), result.get("seconds")
    document = {
        "success": result.get("succeeded"),
        "duration": seconds,
        "result": result.get("observed"),
        "error": (result.get("error") or {}).get("message"),
        "started": result.get("started"),
        "host": result.get("host"),
        "bytes_read": read,
        "bytes_written": written,
        "bytes_per_second": _rate(max(read or 0, written or 0), seconds),
        "tools": result.get("tools"),
        "warnings": result.get("warnings"),
    }
    return _read_part({key: value for key, value in document.items() if value is not None})


def stage_of_parts(parts: Mapping[str, StagePart]) -> Stage:
    """Join the parts of a stage that ran per disk.

    Its duration is the time from the first start to the last end, where the parts say when they started; else
    that of the longest part.

    :param parts: by disk id, at least one
    """
    ran = {disk_id: part for disk_id, part in parts.items() if part.skipped is None}
    duration = _span(list((ran or parts).values()))
    read = sum(part.bytes_read or 0 for part in ran.values())
    written = sum(part.bytes_written or 0 for part in ran.values())
    errors = [f"{disk_id}: {part.error}" for disk_id, part in ran.items() if part.error]
    codes = [part.code for part in ran.values() if part.code]
    document: dict[str, Any] = {
        "success": bool(ran) and all(part.success for part in ran.values()),
        "duration": duration,
        "error": "; ".join(errors) or None,
        "code": codes[0] if codes else None,
        "skipped": None if ran else next(iter(parts.values())).skipped,
        "bytes_read": read,
        "bytes_written": written,
        "bytes_per_second": _rate(max(read, written), duration),
        "tools": {name: version for part in ran.values() for name, version in (part.tools or {}).items()},
        "warnings": [f"{disk_id}: {said}" for disk_id, part in ran.items() for said in part.warnings or []],
        "parts": {disk_id: part.to_document() for disk_id, part in parts.items()},
    }
    return Stage.model_validate({key: value for key, value in document.items() if value is not None})


def build_report(
    *,
    run: Run,
    vm: ReportedVm,
    hosts: Hosts,
    stages: Mapping[str, Stage | StagePart],
    started: datetime,
    ended: datetime,
    manifest: Manifest | None = None,
    manifest_path: str | None = None,
    manifest_sha256: str | None = None,
    boot_proof: BootProof | None = None,
    source_cleanup: SourceCleanup | None = None,
    warnings: Sequence[Message] = (),
    errors: Sequence[Message] = (),
    boot_wanted: bool = True,
    decisions: Sequence[Mapping[str, Any]] = (),
) -> Report:
    """Make the report of a run, also of one that failed early.

    A run is a success only when a stage did something, none failed, and the guest proved that it boots. The
    stages' warnings and errors become the report's; ``warnings`` and ``errors`` are added to them.

    :param stages: name -> stage, in the order they ran
    :param manifest: the manifest the run worked from, None when there was none yet
    :param boot_wanted: false for a manifest's conversion, whose pipeline has no boot: it can be a success unproven
    :param decisions: what people decided, ``{"question", "answer", "by", "at"}`` each
    :raises ReportError: the parts do not make a report; a fault of the caller
    """
    said = [*_messages(stages, "warnings"), *warnings]
    wrong = [*_messages(stages, "error"), *errors]
    outcome = _outcome(stages, wrong, boot_proof)
    artifacts = _artifacts(stages, manifest)
    document = {
        "version": "1.0",
        "timestamp": timestamp(ended),
        "pipeline": {
            "success": outcome == "proven" or (outcome == "unproven" and not boot_wanted),
            "duration_seconds": round((ended - started).total_seconds(), 3),
            "stages": {name: stage.to_document() for name, stage in stages.items()},
        },
        "artifacts": [artifact.to_document() for artifact in artifacts],
        "warnings": [message.to_document() for message in said],
        "errors": [message.to_document() for message in wrong],
        "input_manifest": _input_manifest(manifest, manifest_path, manifest_sha256),
        "summary": {
            "outcome": outcome,
            **_stage_counts(stages),
            "total_warnings": len(said),
            "total_errors": len(wrong),
            "total_artifacts": len(artifacts),
            "input_disks": len(manifest.disks) if manifest else 0,
            "output_disks": len(artifacts),
        },
        "vm": vm.to_document(),
        "run": run.to_document(),
        "hosts": hosts.to_document(),
        "tools": {name: version for stage in stages.values() for name, version in (stage.tools or {}).items()},
        "boot_proof": boot_proof.to_document() if boot_proof else None,
        "source_cleanup": source_cleanup.to_document() if source_cleanup else None,
        **({"decisions": [dict(decision) for decision in decisions]} if decisions else {}),
    }
    return report_of(document)


def report_of(document: Any, source: str = "report") -> Report:
    """Make a report of plain data.

    :raises ReportError: with every fault
    """
    try:
        return Report.model_validate(document)
    except ValidationError as error:
        raise ReportError(source, place(from_validation(error, Report), {})) from None


def _read_part(document: dict[str, Any]) -> StagePart:
    try:
        return StagePart.model_validate(document)
    except ValidationError as error:
        raise ReportError("result.json", place(from_validation(error, StagePart), {})) from None


def _rate(count: int, seconds: float | None) -> int | None:
    return round(count / seconds) if seconds and count else None


def _span(parts: Sequence[StagePart]) -> float:
    starts = [datetime.fromisoformat(part.started) for part in parts if part.started]
    if len(starts) != len(parts):
        return max(part.duration for part in parts)
    first = min(starts)
    ends = [(start - first).total_seconds() + part.duration for start, part in zip(starts, parts, strict=True)]
    return round(max(ends), 3)


def _messages(stages: Mapping[str, StagePart], kind: str) -> Iterable[Message]:
    for name, stage in stages.items():
        said = getattr(stage, kind) or []
        for message in [said] if isinstance(said, str) else said:
            known = {"code": stage.code} if kind == "error" and stage.code else {}
            yield Message(stage=name, message=message, **known)


def _outcome(stages: Mapping[str, StagePart], errors: Sequence[Message], proof: BootProof | None) -> Outcome:
    ran = [stage for stage in stages.values() if stage.skipped is None]
    if not ran or errors or not all(stage.success for stage in ran):
        return "failed"
    if proof is None:
        return "unproven"
    return "proven" if proof.proven else "failed"


def _artifacts(stages: Mapping[str, Stage | StagePart], manifest: Manifest | None) -> list[Artifact]:
    convert = stages.get("convert")
    parts = convert.parts if isinstance(convert, Stage) and convert.parts else {}
    hints = {disk.id: disk.boot_order_hint for disk in manifest.disks} if manifest else {}
    validated = _validated_images(stages.get("validate"))
    artifacts = []
    for disk_id, part in parts.items():
        if not part.success or part.result is None:
            continue
        names = ("path", "format", "sha256", "bytes", "virtual_bytes", "content_sha256")
        document: dict[str, Any] = {"type": "converted_disk", "disk_id": disk_id}
        for result in (validated.get(disk_id, {}), part.result):
            document |= {name: result[name] for name in names if result.get(name) is not None}
        document |= {"boot_order_hint": hints[disk_id]} if disk_id in hints else {}
        try:
            artifacts.append(Artifact.model_validate(document))
        except ValidationError as error:
            source = f"result of convert, {disk_id}"
            raise ReportError(source, place(from_validation(error, Artifact), {})) from None
    return artifacts


def _validated_images(validate: StagePart | None) -> dict[str, dict[str, Any]]:
    """Give what validate saw of each disk's image: it tells the SHA-256 that convert left to it."""
    found: Any = validate.result if validate is not None and validate.success else None
    return {image["disk_id"]: image for image in (found or {}).get("images", [])}


def _input_manifest(manifest: Manifest | None, path: str | None, sha256: str | None) -> dict[str, Any] | None:
    if manifest is None or path is None:
        return None
    source = manifest.source
    document: dict[str, Any] = {"path": path, "manifest_version": manifest.manifest_version}
    if sha256 is not None:
        document["checksum"] = f"sha256:{sha256}"
    if source is not None:
        known = {"provider": source.provider, "vm_id": source.vm_id, "vm_name": source.vm_name}
        document |= {f"source_{name}": value for name, value in known.items() if value is not None}
    return InputManifest.model_validate(document).to_document()


def _stage_counts(stages: Mapping[str, StagePart]) -> dict[str, int]:
    ran = [stage for stage in stages.values() if stage.skipped is None]
    return {
        "total_stages": len(stages),
        "successful_stages": sum(stage.success for stage in ran),
        "failed_stages": sum(not stage.success for stage in ran),
        "skipped_stages": len(stages) - len(ran),
    }
