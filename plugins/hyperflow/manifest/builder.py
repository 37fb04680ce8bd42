"""Writes the manifest of an exported VM. Refuses to build what the loader would refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

from hyperflow.manifest import guest_ids
from hyperflow.manifest.facts import StagedDisk, VmFacts
from hyperflow.manifest.faults import Fault
from hyperflow.manifest.load import ManifestError, manifest_of
from hyperflow.manifest.models import ExportWarning, Manifest, Output, Pipeline

EXPORT_METHOD = "hyperflow-nfc"


class ManifestBuilder:
    """Collects what is known of an exported VM; every step gives the builder back, :meth:`build` the manifest.

    What is None, or never said, is left out of the manifest. Nothing is checked before :meth:`build`, which
    lists everything at once::

        ManifestBuilder("web01").hardware(cpu=2, memory_mb=1536, firmware="efi").disk("disk-0", path, size).build()

    :param vm_name: the VM's name at its source, also for messages
    """

    def __init__(self, vm_name: str) -> None:
        self._vm_name = vm_name
        self._source: dict[str, Any] = {}
        self._vm: dict[str, Any] = {}
        self._disks: list[dict[str, Any]] = []
        self._nics: list[dict[str, Any]] = []
        self._notes: list[str] = []
        self._warnings: list[dict[str, Any]] = []
        self._metadata: dict[str, Any] = {}
        self._tags: dict[str, str] = {}
        self._sections: dict[str, Any] = {}

    def source(
        self,
        *,
        provider: str | None = None,
        vm_id: str | None = None,
        datacenter: str | None = None,
        exported: datetime | None = None,
        export_method: str | None = None,
    ) -> Self:
        """Say where the VM comes from.

        :param exported: when the export ended; an aware time, written in UTC
        """
        self._source = {
            "provider": provider,
            "vm_id": vm_id,
            "vm_name": self._vm_name,
            "datacenter": datacenter,
            "export_timestamp": None if exported is None else timestamp(exported),
            "export_method": export_method,
        }
        return self

    def hardware(
        self,
        *,
        cpu: int | None = None,
        memory_mb: int | None = None,
        firmware: str | None = None,
        secureboot: bool | None = None,
    ) -> Self:
        """Say what the VM is made of.

        :param memory_mb: MiB; ``mem_gb`` is rounded up, the exact size stands beside it
        :param firmware: as vSphere says, ``bios`` or ``efi``; ``unknown`` is written for any other word
        """
        self._vm |= {
            "cpu": cpu,
            "mem_gb": None if memory_mb is None else -(-memory_mb // 1024),  # 512 MB are 1, never 0
            "mem_mb": memory_mb,
            "firmware": None if firmware is None else guest_ids.firmware(firmware),
            "secureboot": secureboot,
        }
        return self

    def guest(self, guest_id: str | None, full_name: str | None = None, os_version: str | None = None) -> Self:
        """Say what runs in the VM; ``os_hint`` is derived from it.

        :param guest_id: vSphere's, as ``ubuntu64Guest``
        :param full_name: as ``Ubuntu Linux (64-bit)``
        :param os_version: product and version when known; otherwise the full name, or the id
        """
        self._vm |= {
            "os_hint": guest_ids.os_hint(guest_id, full_name),
            "os_version": os_version or full_name or guest_id,
            "guest_id": guest_id,
        }
        return self

    def disk(
        self,
        disk_id: str,
        path: str,
        size: int,
        *,
        source_format: str = "vmdk",
        sha256: str | None = None,
        boot_order: int | None = None,
        label: str | None = None,
        virtual_bytes: int | None = None,
    ) -> Self:
        """Add a disk; the first in boot order becomes the one of type boot.

        :param path: absolute, on the KVM host
        :param size: bytes of the file
        :param sha256: 64 hexadecimal digits
        :param boot_order: from 0; the place among the disks that were added when None
        :param virtual_bytes: size the guest sees
        """
        self._disks.append(
            {
                "id": disk_id,
                "source_format": source_format,
                "bytes": size,
                "local_path": path,
                "checksum": None if sha256 is None else f"sha256:{sha256}",
                "boot_order_hint": len(self._disks) if boot_order is None else boot_order,
                "label": label,
                "disk_type": "data",
                "virtual_bytes": virtual_bytes,
            }
        )
        return self

    def nic(self, nic_id: str, *, mac: str | None = None, network: str | None = None) -> Self:
        """Add a network adapter; ``network`` is the network's name at the source."""
        self._nics.append({"id": nic_id, "mac": mac, "network": network})
        return self

    def note(self, text: str) -> Self:
        """Add a note for people."""
        self._notes.append(text)
        return self

    def warn(self, warning: ExportWarning) -> Self:
        """Add a warning; it reaches the report."""
        self._warnings.append(warning.to_document())
        return self

    def tag(self, key: str, value: str) -> Self:
        """Add a tag."""
        self._tags[key] = value
        return self

    def made(self, at: datetime, *, job_id: str | None = None) -> Self:
        """Say when the manifest was made, and by what.

        :param at: an aware time
        :param job_id: as the DAG run's id
        """
        self._metadata = {"job_id": job_id, "created_at": timestamp(at)}
        return self

    def pipeline(self, pipeline: Pipeline) -> Self:
        """Say what to do with the disks."""
        self._sections["pipeline"] = pipeline.to_document()
        return self

    def output(self, output: Output) -> Self:
        """Say where the images go."""
        self._sections["output"] = output.to_document()
        return self

    def build(self) -> Manifest:
        """Make the manifest.

        :raises ManifestError: whatever the loader refuses, all of it
        """
        document: dict[str, Any] = {
            "manifest_version": "1.0",
            "source": _said(self._source or {"vm_name": self._vm_name}),
            "vm": _said(self._vm),
            "disks": [_said(disk) for disk in self._disks],
            "nics": [_said(nic) for nic in self._nics],
            "notes": list(self._notes),
            "warnings": list(self._warnings),
            "metadata": _said(self._metadata) | {"tags": dict(self._tags)},
            **self._sections,
        }
        if self._disks:
            min(document["disks"], key=lambda disk: disk["boot_order_hint"])["disk_type"] = "boot"
        return manifest_of(document, f"manifest of {self._vm_name}")


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
    builder = (
        ManifestBuilder(vm.vm_name)
        .source(
            provider=vm.provider,
            vm_id=vm.vm_id,
            datacenter=vm.datacenter,
            exported=exported,
            export_method=export_method,
        )
        .hardware(cpu=vm.cpu, memory_mb=vm.memory_mb, firmware=vm.firmware, secureboot=vm.secureboot)
        .guest(vm.guest_id, vm.guest_full_name, os_version)
        .made(exported, job_id=job_id)
    )
    for disk in vm.disks:
        file = by_id[disk.id]
        builder.disk(
            disk.id,
            file.path,
            file.bytes,
            sha256=file.sha256,
            boot_order=disk.boot_order,
            label=disk.label,
            virtual_bytes=file.virtual_bytes,
        )
    for nic in vm.nics:
        builder.nic(nic.id, mac=nic.mac, network=nic.network)
    for text in notes:
        builder.note(text)
    for warning in warnings:
        builder.warn(warning)
    for key, value in (tags or {}).items():
        builder.tag(key, value)
    if pipeline is not None:
        builder.pipeline(pipeline)
    if output is not None:
        builder.output(output)
    return builder.build()


def timestamp(moment: datetime) -> str:
    """Write an aware time as RFC 3339 in UTC, whole seconds.

    :raises ValueError: the time has no time zone
    """
    if moment.tzinfo is None:
        raise ValueError(f"time: found {moment.isoformat()}, expected one with a time zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


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
