"""Artifact Manifest v1.0 as models: fields, types, defaults.

The contract is described in ``docs/manifest.md``. Read a manifest with :mod:`hyperflow.manifest.load`, which
also lists every broken rule that joins several fields (:mod:`hyperflow.manifest.rules`).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hyperflow.manifest import rules
from hyperflow.manifest.configuration import Configuration
from hyperflow.manifest.section import WHOLE, ClosedSection, Matching, Maybe, Section, Timestamp, refuse

SOURCE_FORMATS = ("vmdk", "qcow2", "raw", "vhd", "vhdx", "vdi")
STAGES = ("inspect", "fix", "convert", "validate")

DiskId = Annotated[str, Matching("[a-zA-Z0-9_-]+", "letters, digits, '_' and '-'")]
Checksum = Annotated[str, Matching("sha256:[a-f0-9]{64}", "sha256: and 64 lower-case hexadecimal digits")]
Mac = Annotated[str, Matching("[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}", "six pairs of hexadecimal digits")]
AbsolutePath = Annotated[str, Matching(r"/(?:[^\u0000]*[^/\u0000])", "the absolute path of a file")]
BareName = Annotated[str, Matching(r"(?:\.?[^/.\u0000]|\.\.[^/\u0000])[^/\u0000]*", "a file name without a folder")]
Folder = Annotated[str, Matching(r"[^\u0000]+", "a folder's path")]
Firmware = Literal["bios", "uefi", "unknown"]
OutputFormat = Literal["qcow2", "raw", "vdi"]
Size = Annotated[int, Field(ge=0), WHOLE]
Count = Annotated[int, Field(ge=1), WHOLE]


class Source(Section):
    """Where the VM comes from."""

    provider: Maybe[str] = None
    vm_id: Maybe[str] = Field(default=None, description="The provider's own id of the VM, a MoRef in vSphere")
    vm_name: Maybe[str] = None
    datacenter: Maybe[str] = None
    export_timestamp: Maybe[Timestamp] = Field(default=None, description="RFC 3339; written in UTC")
    export_method: Maybe[str] = None


class Vm(Section):
    """The VM's hardware and guest."""

    cpu: Maybe[Count] = None
    mem_gb: Maybe[Count] = Field(default=None, description="Memory in GiB, rounded up; the exact size is mem_mb")
    mem_mb: Maybe[Count] = Field(default=None, description="Extension of Hyperflow: memory in MiB")
    firmware: Firmware = Field(default="bios", description="vSphere's efi is uefi")
    secureboot: bool = False
    os_hint: Literal["linux", "windows", "unknown"] = "unknown"
    os_version: Maybe[str] = None


class Disk(Section):
    """One disk image on the KVM host."""

    id: DiskId = Field(description="Unique in this manifest")
    source_format: Literal["vmdk", "qcow2", "raw", "vhd", "vhdx", "vdi"] = Field(
        description="How the file is read, whatever its first bytes look like"
    )
    bytes: Size = Field(description="Size of the file at local_path")
    local_path: AbsolutePath = Field(description="A regular file on the KVM host")
    checksum: Maybe[Checksum] = None
    boot_order_hint: Size = Field(default=999, description="The lowest is the boot disk")
    label: Maybe[str] = Field(default=None, description="For people; the id when absent")
    disk_type: Literal["boot", "data", "unknown"] = "unknown"
    virtual_bytes: Maybe[Size] = Field(default=None, description="Extension of Hyperflow: the disk size the guest sees")

    @property
    def sha256(self) -> str | None:
        """The 64 hexadecimal digits of the checksum."""
        return self.checksum.removeprefix("sha256:") if self.checksum else None


class Nic(Section):
    """A network interface."""

    id: Maybe[str] = None
    mac: Maybe[Mac] = None
    network: Maybe[str] = Field(default=None, description="The network's name at the source")


class ExportWarning(Section):
    """Something the exporter wants a person to know."""

    stage: str
    message: str
    timestamp: Maybe[Timestamp] = None


class Metadata(Section):
    """About the manifest itself."""

    hypersdk_version: Maybe[str] = None
    job_id: Maybe[str] = None
    created_at: Maybe[Timestamp] = None
    tags: Maybe[dict[str, str]] = None


class InspectStage(Section):
    """Look at the guest without writing."""

    enabled: bool
    collect_guest_info: bool = False


class FixStage(Section):
    """Change the guest, on an overlay, so that it boots on virtio."""

    enabled: bool
    backup: bool = True
    update_grub: bool = True
    regen_initramfs: bool = True
    print_fstab: bool = False
    remove_vmware_tools: bool = False
    fstab_mode: Literal["stabilize-all", "bypath-only", "noop"] = "stabilize-all"


class ConvertStage(Section):
    """Decode the disks into images that KVM runs."""

    enabled: bool
    compress: bool = False
    compress_level: Maybe[Annotated[int, Field(ge=1, le=9), WHOLE]] = None
    compress_type: Maybe[Literal["zstd", "zlib"]] = Field(default=None, description="Extension of Hyperflow")


class ValidateStage(Section):
    """Check the images that were written."""

    enabled: bool
    check_image_integrity: bool = True


class Pipeline(ClosedSection):
    """What to do with the disks; a stage that is absent is off."""

    inspect: Maybe[InspectStage] = None
    fix: Maybe[FixStage] = None
    convert: Maybe[ConvertStage] = None
    validation: Maybe[ValidateStage] = Field(default=None, alias="validate")

    def enabled(self) -> list[str]:
        """Names of the stages that are on, in the order they run."""
        stages = zip(STAGES, (self.inspect, self.fix, self.convert, self.validation), strict=True)
        return [name for name, stage in stages if stage is not None and stage.enabled]


class Output(Section):
    """Where the converted images go."""

    directory: Maybe[Folder] = Field(
        default=None, description="Created when missing; <manifest's folder>/output when absent"
    )
    format: OutputFormat = "qcow2"
    filename: Maybe[BareName] = Field(default=None, description="For the boot disk; <disk id>.<format> when absent")


class ReportOptions(Section):
    """About report.json."""

    enabled: bool = True
    path: Folder = Field(default="report.json", description="Relative to the output directory")


class Options(Section):
    """How to run."""

    dry_run: bool = False
    verbose: Annotated[int, Field(ge=0, le=3), WHOLE] = 1
    report: Maybe[ReportOptions] = None


class Manifest(Section):
    """Artifact Manifest v1.0: what an exporter hands to a converter."""

    manifest_version: Literal["1.0"]
    source: Maybe[Source] = None
    vm: Maybe[Vm] = None
    disks: list[Disk] = Field(min_length=1)
    nics: Maybe[list[Nic]] = None
    notes: Maybe[list[str]] = None
    warnings: Maybe[list[ExportWarning]] = None
    metadata: Maybe[Metadata] = None
    pipeline: Maybe[Pipeline] = None
    configuration: Maybe[Configuration] = None
    output: Maybe[Output] = None
    options: Maybe[Options] = None

    @model_validator(mode="after")
    def _check_rules(self) -> Manifest:
        for _, fault in rules.faults(self.to_document()):
            raise refuse(f"{fault.expected} at {fault.path}, where {fault.found} is")
        return self

    def boot_disk(self) -> Disk:
        """Find the disk the guest boots from: lowest hint, then type boot, then place in the list."""
        return min(self.disks, key=lambda disk: (disk.boot_order_hint, disk.disk_type != "boot"))

    def disks_in_boot_order(self) -> list[Disk]:
        """The boot disk, then the others in the list's order."""
        first = self.boot_disk()
        return [first, *(disk for disk in self.disks if disk is not first)]

    def output_format(self) -> str:
        """Format of the converted images."""
        return self.output.format if self.output else "qcow2"

    def output_directory(self, manifest_path: PurePosixPath) -> PurePosixPath:
        """Folder of the converted images; relative ones are under the manifest's folder."""
        written = self.output.directory if self.output else None
        return manifest_path.parent / (written or "output")

    def output_name(self, disk: Disk) -> str:
        """File name of a disk's converted image."""
        written = self.output.filename if self.output else None
        if written and disk.id == self.boot_disk().id:
            return written
        return f"{disk.id}.{self.output_format()}"
