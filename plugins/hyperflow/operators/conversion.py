"""From the staged disks to final images: checksum, inspect, fix, convert, validate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from hyperflow.manifest.shown import shown
from hyperflow.operators.base import PREFLIGHT, HostStageOperator, take_result
from hyperflow.operators.results import require_every_disk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

CHANGED_FILES_SHOWN = 40  # paths in the task log; the report has them all


class ManifestStageOperator(HostStageOperator):
    """A stage that works from the Artifact Manifest on the host.

    :param manifest: ``{"host", "path", "sha256"}`` as :class:`WriteManifestOperator` returned it; templated
    """

    template_fields: Sequence[str] = (*HostStageOperator.template_fields, "manifest")

    def __init__(self, *, manifest: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.manifest = manifest

    def skip_unless_wanted(self) -> None:
        """End here when the run's pipeline has this stage disabled."""
        if not self.settings.wants(self.stage):
            raise AirflowSkipException(self.settings.why_off(self.stage))

    @property
    def manifest_reference(self) -> dict[str, str]:
        """The manifest as a stage takes it: path, and the digest it must have."""
        return {"path": self.manifest["path"], "sha256": self.manifest["sha256"]}


class VerifyChecksumOperator(ManifestStageOperator):
    """Reads one staged disk and compares its SHA-256 with the manifest's.

    Returns ``{"disk_id", "path", "bytes", "sha256", "matches", ...}``.

    :param disk: the disk's facts, one of preflight's ``disks``; templated
    """

    stage = "checksum"
    template_fields: Sequence[str] = (*ManifestStageOperator.template_fields, "disk")

    def __init__(self, *, disk: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.disk = disk

    def options(self, context: Context) -> dict[str, Any]:
        """Give the manifest and the disk's id."""
        if not self.settings.verify_manifest:
            raise AirflowSkipException(self.settings.why_skipped(self.stage))
        return {"manifest": self.manifest_reference, "disk_id": self.disk["id"]}


class InspectGuestOperator(ManifestStageOperator):
    """Looks at the guest, read-only; returns its facts."""

    stage = "inspect"

    def options(self, context: Context) -> dict[str, Any]:
        """Give the manifest and what is to be collected."""
        self.skip_unless_wanted()
        return self.settings.inspect_options(self.manifest_reference)


class FixGuestOperator(ManifestStageOperator):
    """Makes the guest fit for KVM, on overlays; returns what was changed and read back.

    :param vm: the VM's facts, for the MAC addresses of its NICs and what VMware Tools saw on them; templated
    """

    stage = "fix"
    template_fields: Sequence[str] = (*ManifestStageOperator.template_fields, "vm")

    def __init__(self, *, vm: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vm = vm

    def options(self, context: Context) -> dict[str, Any]:
        """Give the manifest and the pipeline's choices."""
        self.skip_unless_wanted()
        return self.settings.fix_options(self.manifest_reference, self.vm["nics"])

    def resume(self, context: Context, event: dict[str, Any], **kept: Any) -> Any:
        """Show what was changed in the guest."""
        observed = take_result(context, event)
        for changed in observed["changed_files"][:CHANGED_FILES_SHOWN]:
            self.log.info("changed in the guest: %s", shown(changed["path"]))
        return observed


class ConvertDiskOperator(ManifestStageOperator):
    """Decodes one staged disk into its final image and lays the fix over it; returns path and digests.

    :param disk: the disk's facts, one of preflight's ``disks``; templated
    :param fix: what :class:`FixGuestOperator` returned, or None when it was skipped; templated
    """

    stage = "convert"
    template_fields: Sequence[str] = (*ManifestStageOperator.template_fields, "disk", "fix")

    def __init__(self, *, disk: Any, fix: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.disk = disk
        self.fix = fix

    def options(self, context: Context) -> dict[str, Any]:
        """Give the manifest, the disk, its overlay and the output's form."""
        self.skip_unless_wanted()
        disk_id = self.disk["id"]
        self.require_fix_of_this_manifest()
        overlay = (self.fix or {}).get("overlays", {}).get(disk_id)
        return self.settings.convert_options(self.manifest_reference, disk_id, overlay)

    def require_fix_of_this_manifest(self) -> None:
        """Refuse overlays over other disks than those that are staged: two moments in one file system.

        :raises AirflowFailException: saying what to clear
        """
        made_of = (self.fix or {}).get("manifest_sha256")
        if self.fix and made_of != self.manifest["sha256"]:
            raise AirflowFailException(
                f"the fix was made of a manifest with SHA-256 {made_of}, expected {self.manifest['sha256']}: the disks "
                "were exported again since. Clear the task fix and what follows it"
            )


class ValidateImagesOperator(ManifestStageOperator):
    """Checks the final images and reads their content back; returns ``{"images": [...]}``.

    :param images: what the :class:`ConvertDiskOperator` of each disk returned; templated
    """

    stage = "validate"
    template_fields: Sequence[str] = (*ManifestStageOperator.template_fields, "images")

    def __init__(self, *, images: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.images = images

    def options(self, context: Context) -> dict[str, Any]:
        """Give the images with the digests that convert observed."""
        self.skip_unless_wanted()
        if not self.settings.wants("convert"):
            raise AirflowSkipException(self.settings.why_off(self.stage))
        disks = context["ti"].xcom_pull(task_ids=PREFLIGHT, map_indexes=-1)
        require_every_disk(self.images or [], [disk["id"] for disk in disks])
        return self.settings.validate_options(self.images)
