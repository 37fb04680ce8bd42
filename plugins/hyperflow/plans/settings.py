"""A plan file as models: what may stand where. Merging and checking across fields is in load.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from hyperflow.manifest.section import WHOLE, ClosedSection, Matching, Maybe, refuse
from hyperflow.plans.bandwidth import Bandwidth
from hyperflow.plans.cutover import Cutover
from hyperflow.plans.notices import Notice
from hyperflow.plans.profile import Name, ProfileSettings
from hyperflow.plans.wave_settings import Minutes, Person, TimeZone, WaveEntry

ConnectionId = Annotated[str, Matching(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "the id of an Airflow connection", 200)]
# vSphere shows a '/' in a name as %2f; a name has 80 characters at most.
VmName = Annotated[
    str,
    Matching(
        r"[^/\u0000-\u001f\u007f]+",
        "a VM's name, not empty, without control characters and '/', which vSphere writes as %2f",
        80,
    ),
]
InventoryPath = Annotated[
    str,
    Matching(
        r"/(?!\.{1,2}/)[^/\u0000-\u001f\u007f]+(?:/(?!\.{1,2}(?:/|$))[^/\u0000-\u001f\u007f]+)+",
        "a path as /Datacenter/vm/folder/name",
        2000,
    ),
]
MoRef = Annotated[str, Matching(r"(?:vm-)?[0-9]+", "a MoRef as vm-42", 60)]
HostFolder = Annotated[
    str,
    Matching(
        r"(?:/(?!\.{1,2}(?:/|$))[^/\u0000-\u001f\u007f]+)+",
        "an absolute path without '..', '.' or a last '/'",
        1000,
    ),
]
LibvirtName = Annotated[
    str, Matching(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", "a libvirt name of letters, digits and _ . + -", 80)
]
Megabytes = Annotated[int, Field(ge=64, le=16 * 1024 * 1024), WHOLE]

ANY_NETWORK = "*"


class VCenter(ClosedSection):
    """Where the VMs are."""

    connection: ConnectionId = Field(description="Airflow connection to the vCenter")
    datacenter: Maybe[VmName] = Field(default=None, description="Look for VM names in this datacenter only")


class HostSettings(ClosedSection):
    """Where the VMs go. All three are needed, at the plan's top or at the VM."""

    connection: Maybe[ConnectionId] = Field(default=None, description="Airflow SSH connection to the KVM host")
    staging_directory: Maybe[HostFolder] = Field(
        default=None, description="Exported disks; a folder per VM is made here"
    )
    output_directory: Maybe[HostFolder] = Field(
        default=None, description="Converted images; a folder per VM is made here"
    )


class TargetSettings(ClosedSection):
    """The libvirt domain; what is absent is as at the source."""

    cpus: Maybe[Annotated[int, Field(ge=1, le=1024), WHOLE]] = None
    memory_mb: Maybe[Megabytes] = Field(default=None, description="MiB")
    firmware: Maybe[Literal["bios", "uefi"]] = None


class VmTargetSettings(TargetSettings):
    """The libvirt domain of one VM."""

    name: Maybe[LibvirtName] = Field(default=None, description="Domain name; the VM's slug when absent")


class BootProofSettings(ClosedSection):
    """The boot that proves the conversion."""

    enabled: bool = Field(
        default=True, description="false for a guest that cannot show that it is up; it then ends unproven"
    )
    timeout_seconds: Annotated[int, Field(ge=30, le=14400), WHOLE] = 900
    memory_mb: Maybe[Megabytes] = Field(default=None, description="MiB for the proof; as the domain's when absent")


class Limits(ClosedSection):
    """How much at once."""

    parallel_disks: Annotated[int, Field(ge=1, le=64), WHOLE] = Field(default=2, description="Disks of one VM at once")
    decode_while_downloading: bool = Field(
        default=True, description="Make the image while the disk arrives, beside the staged disk, and not afterwards"
    )
    bandwidth: Maybe[Bandwidth] = Field(
        default=None, description="Of all downloads on the host together: a rate as 50 MB/s, or rates by time of day"
    )


class PoolSizes(ClosedSection):
    """How much at once over all runs of all plans; what is absent has no limit of its own."""

    nfc_streams_per_esxi: Maybe[Annotated[int, Field(ge=1, le=100), WHOLE]] = Field(
        default=None, description="Exports from one ESXi host, or from one vCenter where no survey tells the host"
    )
    jobs_per_host: Maybe[Annotated[int, Field(ge=1, le=500), WHOLE]] = Field(
        default=None, description="Checksum, convert and validate on one KVM host"
    )
    guests_per_host: Maybe[Annotated[int, Field(ge=1, le=500), WHOLE]] = Field(
        default=None, description="Guests inspected, fixed or booted on one KVM host: what its memory bears"
    )


class Settings(ClosedSection):
    """What may stand at the plan's top, for every VM, and at a VM, for that one."""

    profile: Maybe[Name] = Field(default=None, description="Name of a file in the profiles folder, without its ending")
    profile_overrides: Maybe[ProfileSettings] = Field(default=None, description="Fields of the profile, set otherwise")
    host: Maybe[HostSettings] = None
    networks: Maybe[dict[str, LibvirtName]] = Field(
        default=None, description="vSphere network -> libvirt network; the key * is for every other one"
    )
    target: Maybe[TargetSettings] = None
    boot_proof: Maybe[BootProofSettings] = None
    snapshots: Literal["refuse", "allow"] = Field(
        default="refuse", description="What to do with a VM that has snapshots already; none is ever removed"
    )
    limits: Maybe[Limits] = None
    cutover: Maybe[Cutover] = None
    drift: Literal["stop", "warn", "start-over"] = Field(
        default="stop",
        description="When the VM is other than preflight saw it, before its snapshot, shutdown or replacement; "
        "start-over is a new run, once, in a wave",
    )
    host_is_drift: bool = Field(
        default=False,
        description="Another ESXi host than preflight saw is a difference that drift counts; else it is only told, for "
        "DRS moves machines by itself",
    )
    labels: Maybe[Annotated[list[Name], Field(max_length=50)]] = Field(
        default=None, description="Words of your own, by which waves choose members"
    )
    notify: Maybe[Annotated[list[Notice], Field(max_length=20)]] = Field(
        default=None, description="Who is told when something happens; none when the list is empty"
    )
    expected_minutes: Maybe[Minutes] = Field(
        default=None, description="How long its migration is expected to take; measured rates tell where it is absent"
    )


class VmEntry(Settings):
    """One VM: exactly one of name, inventory_path and moref, and what differs from the plan's top."""

    name: Maybe[VmName] = None
    inventory_path: Maybe[InventoryPath] = None
    moref: Maybe[MoRef] = None
    target: Maybe[VmTargetSettings] = None


def _object(value: Any) -> Any:
    if not isinstance(value, dict | VmEntry):
        raise refuse("an object as {name: web01}")
    return value


class PlanFile(Settings):
    """A plan file."""

    plan: Name = Field(description="Name of the plan; part of its DAG ids")
    vcenter: VCenter
    vms: list[Annotated[VmEntry, BeforeValidator(_object)]] = Field(min_length=1, max_length=2000)
    time_zone: Maybe[TimeZone] = Field(default=None, description="Of all times in the plan, as Europe/Berlin")
    people: Maybe[dict[Name, Person]] = Field(default=None, description="Who may be asked to approve")
    pools: Maybe[PoolSizes] = Field(default=None, description="Limits over all runs, as Airflow pools")
    waves: Maybe[Annotated[list[WaveEntry], Field(max_length=200)]] = Field(
        default=None, description="Which VMs move together, in which order, and when"
    )
