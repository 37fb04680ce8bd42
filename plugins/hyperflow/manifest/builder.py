"""Writes the manifest of an exported VM. Refuses to build what the loader would refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hyperflow.manifest.facts import DiskFacts, StagedDisk, VmFacts
from hyperflow.manifest.faults import Fault
from hyperflow.manifest.guest_ids import firmware, os_hint
from hyperflow.manifest.load import ManifestError, manifest_of
from hyperflow.manifest.models import ExportWarning, Manifest, Output, Pipeline

EXPORT_METHOD = "hyperflow-nfc"


def build_manifest(
    vm: VmFacts,
    staged: Sequence[StagedDisk],
    *,
    exported: datetime,
    job_id: str,
    pipeline: Pipeline | None = None,
    output: Output | None = None,
    export_method: str = EXPORT_METHOD,
    os_version: str | None = None,
    tags: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    warnings: Sequence[ExportWarning] = (),
) -> Manifest:
    """Build the manifest of a VM whose disks lie on the KVM host.

    :param vm: the VM at its source
    :param staged: its disks on the host, in any order, each exactly once; the manifest has the VM's order
    :param exported: when the export ended; an aware time, written in UTC
    :param job_id: what made the export, as the DAG run's id
    :param pipeline: what to do with the disks; left out when None
    :param output: where the images go; left out when None
    :param os_version: product and version when known; the guest's full name in vSphere otherwise
    :raises ManifestError: disks missing or too many, or whatever the loader refuses, all of it
    """
    by_id = _match(vm, staged)
    document: dict[str, Any] = {
        "manifest_version": "1.0",
        "source": {
            "provider": vm.provider,
            "vm_id": vm.vm_id,
            "vm_name": vm.vm_name,
            "datacenter": vm.datacenter,
            "export_timestamp": timestamp(exported),
            "export_method": export_method,
        },
        "vm": _hardware(vm, os_version),
        "disks": [_disk(disk, by_id[disk.id], _boot_id(vm)) for disk in vm.disks],
        "nics": [{"id": nic.id, "mac": nic.mac, "network": nic.network} for nic in vm.nics],
        "notes": list(notes),
        "warnings": [warning.to_document() for warning in warnings],
        "metadata": {"job_id": job_id, "created_at": timestamp(exported), "tags": dict(tags or {})},
    }
    if pipeline is not None:
        document["pipeline"] = pipeline.to_document()
    if output is not None:
        document["output"] = output.to_document()
    return manifest_of(document, f"manifest of {vm.vm_name}")


def timestamp(moment: datetime) -> str:
    """Write an aware time as RFC 3339 in UTC, whole seconds.

    :raises ValueError: the time has no time zone
    """
    if moment.tzinfo is None:
        raise ValueError(f"time: found {moment.isoformat()}, expected one with a time zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _match(vm: VmFacts, staged: Sequence[StagedDisk]) -> dict[str, StagedDisk]:
    known = {disk.id for disk in vm.disks}
    by_id = {disk.disk_id: disk for disk in staged}
    faults = [Fault("disks", f"no file for {name}", "a file for each disk") for name in sorted(known - by_id.keys())]
    faults += [
        Fault("disks", f"a file for {name}", f"one of {', '.join(sorted(known))}")
        for name in sorted(by_id.keys() - known)
    ]
    if len(by_id) != len(staged):
        faults.append(Fault("disks", "two files for one disk", "a file for each disk"))
    if len(known) != len(vm.disks):
        faults.append(Fault("disks", "two disks of one id", "an id for each disk"))
    if faults:
        raise ManifestError(f"manifest of {vm.vm_name}", faults)
    return by_id


def _boot_id(vm: VmFacts) -> str | None:
    return min(vm.disks, key=lambda disk: disk.boot_order).id if vm.disks else None


def _hardware(vm: VmFacts, os_version: str | None) -> dict[str, Any]:
    return {
        "cpu": vm.cpu,
        "mem_gb": -(-vm.memory_mb // 1024),  # rounded up: 512 MB are 1, never 0
        "mem_mb": vm.memory_mb,
        "firmware": firmware(vm.firmware),
        "secureboot": vm.secureboot,
        "os_hint": os_hint(vm.guest_id, vm.guest_full_name),
        "os_version": os_version or vm.guest_full_name or vm.guest_id,
        "guest_id": vm.guest_id,
    }


def _disk(disk: DiskFacts, file: StagedDisk, boot_id: str | None) -> dict[str, Any]:
    written: dict[str, Any] = {
        "id": disk.id,
        "source_format": "vmdk",
        "bytes": file.bytes,
        "local_path": file.path,
    }
    if file.sha256 is not None:
        written["checksum"] = f"sha256:{file.sha256}"
    return written | {
        "boot_order_hint": disk.boot_order,
        "label": disk.label,
        "disk_type": "boot" if disk.id == boot_id else "data",
        "virtual_bytes": file.virtual_bytes,
    }
