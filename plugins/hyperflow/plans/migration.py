"""One VM's migration with everything decided: profile < plan < VM < run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from hyperflow.manifest.faults import Fault, render
from hyperflow.manifest.models import Output
from hyperflow.plans.bandwidth import Bandwidth
from hyperflow.plans.cutover import Cutover
from hyperflow.plans.host_run import HostRun
from hyperflow.plans.library import merged_profile
from hyperflow.plans.overrides import Overrides
from hyperflow.plans.plan import Plan, PlanError, PlannedVm
from hyperflow.plans.profile import ProfileSettings
from hyperflow.plans.settings import (
    ANY_NETWORK,
    BootProofSettings,
    HostSettings,
    Limits,
    VmTargetSettings,
)
from hyperflow.plans.slug import Selector


class Migration(HostRun):
    """All that the DAG of one VM needs; ``model_dump(mode="json")`` and ``model_validate`` are inverse.

    Paths are on the KVM host. Directories already end in the VM's slug, so that VMs never meet.
    """

    makes_domain: ClassVar[bool] = True

    plan: str
    dag_id: str
    slug: str
    selector: Selector
    vcenter_connection: str
    datacenter: str | None
    descriptor: bool  # an OVF descriptor is written
    manifest_checksum: bool
    networks: dict[str, str]
    domain_name: str
    cpus: int | None  # None: as at the source, so for the next two
    memory_mb: int | None
    firmware: Literal["bios", "uefi"] | None
    boot_timeout_seconds: int
    boot_memory_mb: int | None
    skip_boot: bool
    not_after: datetime | None  # the end of the window; no cutover begins or is approved after it
    snapshots: Literal["refuse", "allow"]
    cutover: Cutover
    drift: Literal["stop", "warn", "start-over"]
    host_is_drift: bool
    decode_while_downloading: bool
    guests_at_once: int | None = None  # on the host, by the plan's limits
    bandwidth: Bandwidth | None = None

    @property
    def ovf_path(self) -> str | None:
        """The OVF descriptor's path; None when the profile wants none."""
        return f"{self.staging_directory}/{self.slug}.ovf" if self.descriptor else None

    @property
    def boot_directory(self) -> str:
        """Where the boot proof's console log and screenshot are kept."""
        return f"{self.output_directory}/boot"

    def why_skipped(self, task: str) -> str | None:
        """Say why a task of the run skips itself; the boot proof is a person's choice."""
        if task == "boot" and self.skip_boot and not self.dry_run:
            return "skip_boot of the run, or boot_proof.enabled of the plan: nothing proves that this guest boots"
        return super().why_skipped(task)

    def staged_disk(self, index: int) -> str:
        """Path of the exported disk ``index``, which counts from 0; the file's name counts from 1."""
        return f"{self.staging_directory}/{self.slug}-disk{index + 1}.vmdk"

    def libvirt_network(self, source: str) -> str | None:
        """Tell where a NIC in the vSphere network ``source`` goes; None when the plan does not say."""
        return self.networks.get(source, self.networks.get(ANY_NETWORK))


def effective(plan: Plan, vm: PlannedVm, overrides: Overrides | None = None) -> Migration:
    """Decide everything about one VM's run.

    :param overrides: what the run sets; nothing when None
    :raises PlanError: the run's settings contradict the plan's
    """
    run = overrides or Overrides()
    settings = vm.settings
    host = settings.host or HostSettings()
    profile = _run_profile(vm, run)
    target = settings.target or VmTargetSettings()
    proof = settings.boot_proof or BootProofSettings()
    limits = settings.limits or Limits()
    staging = f"{host.staging_directory}/{vm.slug}"
    output = f"{run.output_directory or host.output_directory}/{vm.slug}"
    _refuse_nested(vm, staging, output)
    return Migration(
        plan=plan.name,
        dag_id=vm.dag_id,
        slug=vm.slug,
        selector=vm.selector,
        vcenter_connection=plan.vcenter.connection,
        datacenter=plan.vcenter.datacenter,
        host_connection=run.host_connection or str(host.connection),
        staging_directory=staging,
        output_directory=output,
        profile=vm.profile.name,
        descriptor=profile.format == "ovf",
        manifest_checksum=profile.manifest_checksum,
        verify_manifest=profile.verify_manifest,
        pipeline=profile.manifest_pipeline(),
        output=Output(directory=output, format=profile.manifest_target_format),
        networks=settings.networks or {},
        domain_name=domain_name(vm),
        cpus=target.cpus,
        memory_mb=target.memory_mb,
        firmware=target.firmware,
        boot_timeout_seconds=proof.timeout_seconds,
        boot_memory_mb=proof.memory_mb,
        skip_boot=run.skip_boot or not proof.enabled,
        not_after=datetime.fromisoformat(run.not_after) if run.not_after else None,
        dry_run=run.dry_run,
        snapshots=settings.snapshots,
        cutover=settings.cutover or Cutover(),
        drift=settings.drift,
        host_is_drift=settings.host_is_drift,
        parallel_disks=limits.parallel_disks,
        decode_while_downloading=limits.decode_while_downloading,
        bandwidth=limits.bandwidth,
        guests_at_once=plan.pools.guests_per_host,
    )


def domain_name(vm: PlannedVm) -> str:
    """Name the libvirt domain that a VM becomes."""
    target = vm.settings.target
    return target.name if target is not None and target.name is not None else vm.slug


def overridden(planned: Migration, used: Migration) -> dict[str, dict[str, Any]]:
    """List what a run has set otherwise than its plan: ``{"output.format": {"plan": "qcow2", "run": "raw"}}``."""
    dumped = [one.model_dump(mode="json", by_alias=True, exclude={"not_after"}) for one in (planned, used)]
    before, after = (dict(_leaves(one)) for one in dumped)  # a window's end is the wave's, and nobody's override
    return {
        key: {"plan": before.get(key), "run": after.get(key)}
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    }


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _run_profile(vm: PlannedVm, run: Overrides) -> ProfileSettings:
    asked = {"manifest_target_format": run.output_format, "compress": run.compress}
    layer = ProfileSettings.model_validate({key: value for key, value in asked.items() if value is not None})
    profile = merged_profile(vm.profile, vm.settings.profile_overrides, layer)
    broken = [Fault(render(location), found, expected) for location, found, expected in profile.broken_rules()]
    if broken:
        raise PlanError(f"run of {vm.dag_id}", broken)
    return profile


def _refuse_nested(vm: PlannedVm, staging: str, output: str) -> None:
    one, other = PurePosixPath(staging), PurePosixPath(output)
    if one == other or one in other.parents or other in one.parents:
        found = f"{output}, which meets the staging folder {staging}"
        raise PlanError(f"run of {vm.dag_id}", [Fault("output_directory", found, "a folder apart from it")])
