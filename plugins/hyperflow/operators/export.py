"""Downloads one disk of the source to the staging directory of the KVM host."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hyperflow.hooks.vsphere import VsphereHook
from hyperflow.manifest.shown import shown
from hyperflow.operators.base import (
    PREFLIGHT,
    HostStageOperator,
    MigrationOperator,
    job_directory,
    job_root,
    run_key,
    stage_of,
    take_result,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context


class ExportDiskOperator(MigrationOperator, HostStageOperator):
    """Has the host download one disk, straight from ESXi or vCenter, with an NFC lease of its own.

    Returns the download's observations, and of what they are: ``{"disk_id", "path", "bytes", "sha256", "virtual_bytes",
    ..., "moment"}``.

    :param disk: the disk's facts (``DiskFacts`` as JSON), one of preflight's ``disks``; templated
    :param snapshot: what :class:`CreateSnapshotOperator` returned; templated
    """

    stage = "download"
    template_fields: Sequence[str] = (*HostStageOperator.template_fields, "disk", "snapshot")

    def __init__(self, *, disk: Any, snapshot: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.disk = disk
        self.snapshot = snapshot

    def options(self, context: Context) -> dict[str, Any]:
        """Give the download's options; the trigger adds what the lease tells, of which the URL is a secret."""
        vm = context["ti"].xcom_pull(task_ids=PREFLIGHT, key="vm", map_indexes=-1)
        return {
            "vm_id": vm["moref"],
            "target": self.settings.staged_disk(int(self.disk["id"].removeprefix("disk-"))),
            "disk_id": self.disk["id"],
            "source": f"{self.disk['uuid'] or self.disk['key']} of {self.moment()}, run {run_key(context)}",
            "capacity_bytes": self.disk["capacity_bytes"],
            "decode": self.decode_to() if self.settings.decode_while_downloading else None,
            "bandwidth": self.bandwidth_limit(),
        }

    def moment(self) -> str:
        """Name what is exported so that another moment of the VM has another name."""
        entity = str(self.snapshot["entity"])
        return entity if self.snapshot["snapshot"] else f"{entity} as it was since {self.snapshot['since']}"

    def bandwidth_limit(self) -> dict[str, Any] | None:
        """Describe the plan's limit as moments of this machine's clock, as the download's ``bandwidth`` takes it."""
        from hyperflow.plans.bandwidth import rates_from

        if self.settings.bandwidth is None:
            return None
        rates = rates_from(self.settings.bandwidth, datetime.now(UTC))
        if all(rate is None for _, rate in rates):
            return None
        return {
            "folder": job_root(self.settings),
            "rates": [{"start": start, "rate": rate} for start, rate in rates],
        }

    def decode_to(self) -> dict[str, Any]:
        """Describe the image that convert will make of the disk, as the download's ``decode`` takes it."""
        choices = stage_of(self.settings, "convert")
        return {
            "image": self.settings.image(self.disk["id"]),
            "format": self.settings.output.format,
            "compress": choices["compress"],
            "compress_level": choices.get("compress_level"),
            "compress_type": choices.get("compress_type", "zstd"),
        }

    def lease_entry(self) -> dict[str, Any]:
        """Describe, for the ledger, the lease that the trigger will open; only vCenter can name it."""
        connection, entity = self.settings.vcenter_connection, self.snapshot["entity"]
        facts = {"vcenter": connection, "entity": entity, "disk": self.disk["id"]}
        return {"kind": "lease", "thing": f"{connection}/{entity}/{self.disk['id']}", "facts": facts}

    def perform(self, context: Context) -> Any:
        """Put the host program in place and defer to the trigger that holds the lease."""
        from hyperflow.triggers.export import ExportTrigger

        program = self.sign_ledger(context, self.lease_entry())
        self.log.info("exporting %s (%s) from %s", self.disk["id"], shown(self.disk["label"]), self.snapshot["entity"])
        self.defer(
            trigger=ExportTrigger(
                ssh_conn_id=self.settings.host_connection,
                program=program,
                directory=job_directory(self.settings, context),
                run_key=run_key(context),
                vsphere_conn_id=self.settings.vcenter_connection,
                entity=self.snapshot["entity"],
                disk_key=self.disk["key"],
                options=self.options(context),
                thumbprint=VsphereHook(self.settings.vcenter_connection).thumbprint(),
            ),
            method_name="execute_complete",
        )

    def resume(self, context: Context, event: dict[str, Any], **kept: Any) -> Any:
        """Say of which moment the disk is."""
        return {**take_result(context, event), "moment": self.moment()}
