"""What every run on a KVM host has decided, whether it moves a VM or converts somebody's manifest."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from hyperflow.manifest.models import STAGES, ConvertStage, FixStage, InspectStage, Output, Pipeline, ValidateStage

MANIFEST_NAME = "artifact-manifest.json"
REPORT_NAME = "report.json"


class HostRun(BaseModel):
    """The part of a run's settings that the host's stages are asked with; paths are on the host.

    :param host_connection: Airflow SSH connection of the host
    :param staging_directory: the run's own: manifest and overlays
    :param profile: name of the profile; None where the manifest brought its pipeline
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    makes_domain: ClassVar[bool] = False  # of the images, with hardware that Hyperflow chooses

    host_connection: str
    staging_directory: str
    output_directory: str
    profile: str | None
    verify_manifest: bool
    pipeline: Pipeline
    output: Output
    dry_run: bool
    parallel_disks: int

    @property
    def manifest_path(self) -> str:
        """The manifest's path."""
        return f"{self.staging_directory}/{MANIFEST_NAME}"

    @property
    def work_directory(self) -> str:
        """Where the stages keep overlays."""
        return f"{self.staging_directory}/work"

    @property
    def report_path(self) -> str:
        """The report's path."""
        return f"{self.output_directory}/{REPORT_NAME}"

    def image(self, disk_id: str) -> str:
        """Path of a disk's final image."""
        return f"{self.output_directory}/{self.image_name(disk_id)}"

    def image_name(self, disk_id: str) -> str:
        """File name of a disk's final image."""
        return f"{disk_id}.{self.output.format}"

    def inspect_options(self, manifest: dict[str, str]) -> dict[str, Any]:
        """Ask ``inspect``.

        :param manifest: path and sha256, so for the other stages
        """
        stage = self.pipeline.inspect or InspectStage(enabled=False)
        return {
            "manifest": manifest,
            "work_directory": self.work_directory,
            "collect_guest_info": stage.collect_guest_info,
        }

    def fix_options(self, manifest: dict[str, str], nics: list[dict[str, Any]]) -> dict[str, Any]:
        """Ask ``fix``.

        :param nics: the network cards' facts in their order: ``mac``, and ``addresses`` where VMware Tools told them
        """
        stage = self.pipeline.fix or FixStage(enabled=False)
        choices = {name: getattr(stage, name) for name in FixStage.model_fields if name != "enabled"}
        return {
            "manifest": manifest,
            "work_directory": self.work_directory,
            **choices,
            "nics": [{"mac": nic["mac"], "addresses": list(nic.get("addresses", []))} for nic in nics],
            "virtio_1": self.makes_domain,
        }

    def convert_options(self, manifest: dict[str, str], disk_id: str, overlay: str | None) -> dict[str, Any]:
        """Ask ``convert`` for one disk.

        :param overlay: what fix has made over it, None where it did not run
        """
        stage = self.pipeline.convert or ConvertStage(enabled=False)
        return {
            "manifest": manifest,
            "disk_id": disk_id,
            "overlay": overlay,
            "output_directory": self.output_directory,
            "filename": self.image_name(disk_id),
            "format": self.output.format,
            "compress": stage.compress,
            "compress_level": stage.compress_level,
            "compress_type": stage.compress_type or "zstd",
            "hash_image": not self.wants("validate"),
        }

    def validate_options(self, images: list[dict[str, Any]]) -> dict[str, Any]:
        """Ask ``validate``.

        :param images: what convert observed of each disk
        """
        stage = self.pipeline.validation or ValidateStage(enabled=False)
        keys = ("disk_id", "path", "format", "virtual_bytes", "sha256", "content_sha256")
        return {
            "images": [{key: image[key] for key in keys} for image in images],
            "check_image_integrity": stage.check_image_integrity,
        }

    def wants(self, stage: str) -> bool:
        """Whether a stage of the pipeline is on."""
        return stage in self.pipeline.enabled()

    def why_skipped(self, task: str) -> str | None:
        """Say why a task of the run skips itself.

        :return: None for a task that has no reason to: when it was skipped, somebody did that from outside
        """
        if self.dry_run:
            return "dry run"
        if task == "checksum" and not self.verify_manifest:
            return "the profile has verify_manifest disabled; convert reads the digest all the same"
        if task in STAGES and not (self.wants(task) and (task != "validate" or self.wants("convert"))):
            return self.why_off(task)
        return None

    def why_off(self, stage: str) -> str:
        """Say why a stage of the pipeline does not run."""
        if stage == "validate" and not self.wants("convert"):
            return "convert is disabled, so there is no image to validate"
        return f"disabled in the {'profile' if self.profile else 'manifest'}'s pipeline"
