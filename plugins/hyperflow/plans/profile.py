"""A profile: how to convert, apart from which VM and where to. One file serves many plans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from hyperflow.manifest.faults import Location
from hyperflow.manifest.models import (
    ConvertStage,
    FixStage,
    InspectStage,
    OutputFormat,
    Pipeline,
    ValidateStage,
)
from hyperflow.manifest.section import WHOLE, ClosedSection, Matching, Maybe, refuse

Name = Annotated[str, Matching("[A-Za-z0-9][A-Za-z0-9_-]*", "letters, digits, '_' and '-'", 60)]


class _Always:
    """Makes a switch that cannot be turned off, and says why when someone tries."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __call__(self, value: Any) -> Any:
        if value is False:
            raise refuse(f"true: {self.why}")
        return value


class InspectProfile(ClosedSection):
    """The inspect stage."""

    enabled: Annotated[
        Literal[True], BeforeValidator(_Always("the fix and the boot proof go by what inspect finds"))
    ] = True
    collect_guest_info: bool = Field(default=True, description="Also packages and installed tools, not only the boot")


class FixProfile(ClosedSection):
    """The fix stage."""

    enabled: bool = True
    backup: bool = Field(default=True, description="Keep a copy of each changed file in the guest")
    update_grub: bool = Field(default=True, description="Boot entries and boot loader name the root by UUID")
    regen_initramfs: bool = Field(default=True, description="Virtio drivers in every kernel's initramfs")
    print_fstab: bool = Field(default=False, description="fstab before and after, in the log")
    remove_vmware_tools: bool = Field(default=False, description="Remove VMware Tools, not only disable them")
    fstab_mode: Literal["stabilize-all", "bypath-only", "noop"] = Field(
        default="stabilize-all", description="Which entries of fstab are rewritten to UUID"
    )


class ConvertProfile(ClosedSection):
    """The convert stage; whether it compresses is ``compress`` of the profile."""

    enabled: Annotated[
        Literal[True],
        BeforeValidator(_Always("without converted images there is no guest to boot and define")),
    ] = True
    compress_level: Maybe[Annotated[int, Field(ge=1, le=9), WHOLE]] = Field(
        default=None, description="With compress; the compressor's own default when absent"
    )
    compress_type: Literal["zstd", "zlib"] = Field(default="zstd", description="With compress")


class ValidateProfile(ClosedSection):
    """The validate stage."""

    enabled: bool = True
    check_image_integrity: bool = Field(default=True, description="qemu-img check, apart from comparing the content")


class PipelineProfile(ClosedSection):
    """The four stages."""

    inspect: InspectProfile = InspectProfile()
    fix: FixProfile = FixProfile()
    convert: ConvertProfile = ConvertProfile()
    validation: ValidateProfile = Field(default=ValidateProfile(), alias="validate")


class ProfileSettings(ClosedSection):
    """What a profile sets, and a plan's ``profile_overrides`` may set again."""

    format: Literal["ovf", "vmdk"] = Field(
        default="ovf", description="ovf: an OVF descriptor beside the disks; vmdk: none"
    )
    compress: bool = Field(default=False, description="Compress the converted images; qcow2 only")
    generate_manifest: Annotated[
        Literal[True], BeforeValidator(_Always("the manifest is what travels between the stages"))
    ] = True
    verify_manifest: bool = Field(
        default=True, description="Read every staged disk against the manifest before the fix"
    )
    manifest_checksum: bool = Field(default=True, description="SHA-256 of each disk in the manifest")
    manifest_target_format: OutputFormat = Field(default="qcow2", description="Format of the converted images")
    pipeline: PipelineProfile = PipelineProfile()

    def broken_rules(self) -> Iterator[tuple[Location, str, str]]:
        """Find settings that contradict each other: location, found, expected."""
        if self.compress and self.manifest_target_format != "qcow2":
            yield ("compress",), f"true with the format {self.manifest_target_format}", "true with qcow2 only"
        if self.verify_manifest and not self.manifest_checksum:
            yield ("verify_manifest",), "true without manifest_checksum", "manifest_checksum: true with it"

    def manifest_pipeline(self) -> Pipeline:
        """Write the settings as the ``pipeline`` section of a manifest, every value explicit."""
        stages = self.pipeline
        convert: dict[str, Any] = {"enabled": True, "compress": self.compress}
        if self.compress:
            level = stages.convert.compress_level
            convert |= {} if level is None else {"compress_level": level}
            convert |= {"compress_type": stages.convert.compress_type}
        return Pipeline(
            inspect=InspectStage(enabled=True, collect_guest_info=stages.inspect.collect_guest_info),
            fix=FixStage(**{name: getattr(stages.fix, name) for name in FixProfile.model_fields}),
            convert=ConvertStage(**convert),
            validate=ValidateStage(**{name: getattr(stages.validation, name) for name in ValidateProfile.model_fields}),
        )


class Profile(ProfileSettings):
    """A profile file: ``include/profiles/<name>.yaml``."""

    name: Name = Field(description="The file's name without its ending")
    description: Maybe[str] = Field(default=None, description="Shown with the DAG")
