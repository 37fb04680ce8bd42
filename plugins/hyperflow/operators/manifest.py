"""Writes the Artifact Manifest, and the OVF descriptor, beside the staged disks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from hyperflow.operators.base import VmOperator, accept_result, run_key
from hyperflow.operators.results import require_as_asked
from hyperflow.operators.source import at_vcenter, refuse_switched_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from hyperflow.manifest import facts as manifest_facts
    from hyperflow.vsphere.facts import VmFacts


class WriteManifestOperator(VmOperator):
    """Builds the manifest from what the exports observed and writes it on the host.

    Returns what every later task gets: ``{"host": connection, "path", "sha256"}``.

    :param exports: what the :class:`ExportDiskOperator` of each disk returned; templated
    :param snapshot: what :class:`CreateSnapshotOperator` returned; templated
    """

    template_fields: Sequence[str] = (*VmOperator.template_fields, "exports", "snapshot")

    def __init__(self, *, exports: Any, snapshot: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.exports = exports
        self.snapshot = snapshot

    def perform(self, context: Context) -> dict[str, str]:
        """Build, check and write the manifest."""
        from hyperflow.manifest.builder import build_manifest
        from hyperflow.manifest.load import ManifestError
        from hyperflow.manifest.models import ExportWarning
        from hyperflow.manifest.ovf import build_ovf

        self.require_one_moment()
        self.require_stayed_off()
        settings, vm, staged = self.settings, manifest_vm(self.facts), self.staged_disks()
        try:
            manifest = build_manifest(
                vm,
                staged,
                exported=datetime.now(UTC),
                job_id=run_key(context),
                pipeline=settings.pipeline,
                output=settings.output,
                tags={"provider": "vsphere", "plan": settings.plan, "export_format": "ovf"},
                warnings=[ExportWarning(stage="export", message=text) for text in self.snapshot["warnings"]],
            )
        except ManifestError as fault:
            raise AirflowFailException(str(fault)) from fault
        document = manifest.to_document()
        context["ti"].xcom_push(key="document", value=document)
        options = {
            "path": settings.manifest_path,
            "manifest": document,
            "ovf_path": settings.ovf_path,
            "ovf": build_ovf(vm, staged) if settings.ovf_path else None,
        }
        observed = accept_result(context, self.host.run_stage("manifest", options))
        require_as_asked("manifest", options, observed)
        return {"host": settings.host_connection, "path": observed["path"], "sha256": observed["sha256"]}

    def require_one_moment(self) -> None:
        """See that all disks are of one moment: a disk that was exported again alone is of a later snapshot.

        :raises AirflowFailException: naming the disks of each
        """
        moments: dict[str, list[str]] = {}
        for export in self.exports:
            moments.setdefault(str(export.get("moment")), []).append(export["disk_id"])
        if len(moments) > 1:
            found = "; ".join(f"{', '.join(disks)} of {entity}" for entity, disks in sorted(moments.items()))
            raise AirflowFailException(
                f"the disks were not exported at one moment: {found}. Clear the tasks snapshot and export of all disks"
            )

    def require_stayed_off(self) -> None:
        """Refuse a VM that was exported without a snapshot and was on meanwhile: no two of its disks need be of one
        moment.

        :raises AirflowFailException: saying when it was switched on
        """
        if self.snapshot["snapshot"] is not None:
            return
        with at_vcenter(self.settings.vcenter_connection) as session:
            refuse_switched_on(session, self.facts, self.snapshot["since"])

    def staged_disks(self) -> list[manifest_facts.StagedDisk]:
        """The disks on the host, as their downloads observed them."""
        from hyperflow.manifest.facts import StagedDisk

        return [
            StagedDisk(
                disk_id=export["disk_id"],
                path=export["path"],
                bytes=export["bytes"],
                sha256=export["sha256"] if self.settings.manifest_checksum else None,
                virtual_bytes=export["virtual_bytes"],
            )
            for export in self.exports
        ]


def manifest_vm(facts: VmFacts) -> manifest_facts.VmFacts:
    """Write the source's facts as the manifest's builder takes them."""
    from hyperflow.manifest.facts import DiskFacts, NicFacts, VmFacts

    return VmFacts(
        provider="vsphere",
        vm_id=facts.moref,
        vm_name=facts.name,
        datacenter=facts.datacenter or "",
        cpu=facts.cpus,
        memory_mb=facts.memory_mb,
        firmware=facts.firmware,
        secureboot=facts.secure_boot,
        guest_id=facts.guest_id or "",
        guest_full_name=facts.guest_full_name or "",
        nics=tuple(NicFacts(f"nic-{index}", nic.mac, nic.network or "") for index, nic in enumerate(facts.nics)),
        disks=tuple(
            DiskFacts(disk.id, disk.label, disk.capacity_bytes, index) for index, disk in enumerate(facts.disks)
        ),
    )
