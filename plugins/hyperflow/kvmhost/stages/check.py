"""Say whether this host can take a migration: every fault at once, each with what to do about it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import hashlib
import importlib
import os
import platform
import re
import shutil
import socket
import ssl
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from hyperflow.kvmhost import acceleration, commands, domains, firmware
from hyperflow.kvmhost.guest.appliance import MEMORY_MB
from hyperflow.kvmhost.hardware import MAC, Nic, mac
from hyperflow.kvmhost.images import files
from hyperflow.kvmhost.progress import size
from hyperflow.kvmhost.stage import BadRequest, Job, StageError

REACH = 10.0  # seconds for an endpoint to answer
# Per program: what asks for its version, and the packages that bring it on Debian and Ubuntu, and on RHEL and Fedora.
PROGRAMS = {
    "qemu-img": (["--version"], "qemu-utils", "qemu-img"),
    "qemu-nbd": (["--version"], "qemu-utils", "qemu-img"),
    "virsh": (["--version"], "libvirt-clients", "libvirt-client"),
    "virt-install": (["--version"], "virtinst", "virt-install"),
}
MODULES = {"guestfs": ("python3-guestfs", "python3-libguestfs"), "nbd": ("python3-libnbd", "python3-libnbd")}
LIBRARIES = {  # used where they are there: faster than Python's zlib
    "libdeflate": ("libdeflate.so.0", "libdeflate0", "libdeflate"),
    "libzstd": ("libzstd.so.1", "libzstd1", "libzstd"),
}


@dataclass(frozen=True)
class DomainPlan:
    """The domain that will be defined; ``vm`` is whose it is, so that its own earlier definition is no conflict."""

    name: str
    uuid: str
    macs: list[str] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    firmware: str = "bios"
    secureboot: bool = False
    vm: str = ""


@dataclass(frozen=True)
class Options:
    """What the migration will need here.

    :param staging_bytes: worst case of the staged disks
    :param output_bytes: worst case of the final images
    :param endpoints: ``host:port`` of every ESXi and vCenter that disks come from
    :param images: the final images; none may be a disk of a domain already, or hold what a guest has written
    :param domain: None when none will be defined
    :param guests: how many are inspected, fixed or booted here at once, by the plan's limits
    :param any_migration: hold the host to all that a migration may need of it, of which no domain is known yet
    """

    staging_directory: Path
    output_directory: Path
    staging_bytes: int
    output_bytes: int
    endpoints: list[str] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    domain: Optional[DomainPlan] = None  # noqa: UP045 - read at run time, by Python 3.9 too
    guests: int = 1
    any_migration: bool = False
    uri: str = field(default="qemu:///system")


def run(options: Options, job: Job) -> dict[str, Any]:
    """Look at everything and return it.

    :raises BadRequest: when an endpoint or a MAC cannot be one
    :raises StageError: with every fault of the host
    """
    _require_sound(options)
    faults: list[str] = []
    tools = _tools(options, faults)
    job.tools.update({name: version for name, version in tools.items() if version})
    observed = {
        "tools": tools,
        "acceleration": _acceleration(faults, job),
        "python": platform.python_version(),
        "cpus": os.cpu_count() or 1,
        **_memory(options.guests, faults, job),
        "space": _space(options, faults),
        "endpoints": _endpoints(options.endpoints, faults),
        "domain": _domain(options, faults, job),
    }
    faults += _image_faults(options)
    for name in LIBRARIES:
        if not tools[name]:
            job.warn(f"{name} is not there: disks are decoded slower; install {_packages(*LIBRARIES[name][1:])}")
    if faults:
        for fault in faults:
            job.log(f"not ready: {fault}")
        raise StageError(f"this host is not ready, {len(faults)} fault(s): " + "; ".join(faults))
    return observed


def _image_faults(options: Options) -> list[str]:
    """Say which images the conversion would refuse: a cold cutover has shut the source down by then."""
    there = [image for image in options.images if os.path.lexists(image)]
    if not there:
        return []
    try:
        existing = domains.every_domain(options.uri)
    except StageError:
        existing = []  # that libvirt does not answer is a fault of its own, told above
    found = [domains.use_fault(image, existing) or _reuse_fault(image) for image in there]
    return [fault for fault in found if fault is not None]


def _reuse_fault(image: Path) -> str | None:
    """Say why an image that no domain uses is kept all the same; None when it may be made anew, as far as is seen
    without reading it.
    """
    note, found = files.read_note(image) or {}, files.state(image)
    observed = note.get("observed")
    ours = note.get("kind") == "hyperflow-image" and image.is_file() and not image.is_symlink()
    if not ours or not isinstance(observed, dict) or found is None:
        return f"{image}: exists and is no image of ours; move it away or take another output directory"
    noted = note.get("file")
    if not isinstance(noted, dict):  # an older version's note has the size alone
        noted = {"bytes": observed.get("bytes")}
    changed = [key for key in ("bytes", "mtime_ns") if key in noted and found[key] != noted[key]]
    if not changed:
        return None
    told = ", ".join(f"{key} {found[key]}, expected {noted[key]}" for key in changed)
    return (
        f"{image}: found {told}; the image was changed since it was converted (was the VM started?); move it and its "
        f"note {files.note_path(image).name} away to convert again, or take another output directory"
    )


def _require_sound(options: Options) -> None:
    faults = [
        f"options.endpoints: found {one!r}, expected host:port"
        for one in options.endpoints
        if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/]+):[0-9]{1,5}", one)
    ]
    for one in options.domain.macs if options.domain else []:
        if not MAC.fullmatch(mac(Nic(one))):
            faults.append(f"options.domain.macs: found {one!r}, expected six hex pairs")
    if options.staging_bytes < 0 or options.output_bytes < 0:
        faults.append("options.staging_bytes, output_bytes: found a negative number")
    if faults:
        raise BadRequest("; ".join(faults))


def _tools(options: Options, faults: list[str]) -> dict[str, str | None]:
    """Find versions; None for what is not there. What is needed and missing is a fault."""
    found: dict[str, str | None] = {}
    needed = {"qemu-img", "qemu-nbd"} | (
        {"virsh", "virt-install"} if options.domain or options.any_migration else set()
    )
    for name, (question, debian, rhel) in PROGRAMS.items():
        found[name] = _version(name, question)
        if found[name] is None and name in needed:
            faults.append(f"{name}: found none; install {_packages(debian, rhel)}")
    emulator = acceleration.find_emulator()
    found["qemu-system"] = _version(emulator, ["--version"]) if emulator else None
    if emulator is None:
        faults.append(f"qemu-system-x86_64: found none; install {_packages('qemu-system-x86', 'qemu-kvm')}")
    for name, (debian, rhel) in MODULES.items():
        found[f"python {name}"] = _module(name)
        if found[f"python {name}"] is None:
            faults.append(f"Python's {name}: found none for {sys.executable}; install {_packages(debian, rhel)}")
    for name, (file, _, _) in LIBRARIES.items():
        try:
            ctypes.CDLL(file)
            found[name] = file
        except OSError:
            found[name] = None
    return found


def _acceleration(faults: list[str], job: Job) -> dict[str, str]:
    if acceleration.find_emulator() is None:
        return {"kind": "none", "reason": "there is no QEMU"}
    found = acceleration.explain(job)
    if found.kind != acceleration.KVM:
        job.warn(f"guests will be emulated, which is slow: {found.reason}")
    return {"kind": found.kind, "reason": found.reason}


def _memory(guests: int, faults: list[str], job: Job) -> dict[str, int]:
    """Compare what there is with what the appliances of ``guests`` take, which is the least that they need."""
    text = Path("/proc/meminfo").read_text()
    total, available = (int(text.partition(f"{key}:")[2].split()[0]) // 1024 for key in ("MemTotal", "MemAvailable"))
    if total < guests * MEMORY_MB:
        faults.append(
            f"memory: found {total} MiB, expected {guests * MEMORY_MB} or more, {MEMORY_MB} for each of the "
            f"{guests} guest(s) at once that the plan allows; lower pools.guests_per_host there, then run "
            "'./hyperflow limits apply PLAN'"
        )
    elif available < MEMORY_MB:
        job.warn(f"memory: found {available} MiB available, expected {MEMORY_MB} or more for the guest's appliance")
    return {"memory_mb": total, "memory_available_mb": available}


def _space(options: Options, faults: list[str]) -> dict[str, dict[str, Any]]:
    """Compare what is free with what is needed, added up per file system, and try to write."""
    report: dict[str, dict[str, Any]] = {}
    by_system: dict[int, list[tuple[Path, int]]] = {}
    for folder, needed in (
        (options.staging_directory, options.staging_bytes),
        (options.output_directory, options.output_bytes),
    ):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        state = os.statvfs(there)
        free = state.f_bavail * state.f_frsize
        entry = report.setdefault(str(folder), {"free_bytes": free, "needed_bytes": 0, "checked": str(there)})
        entry["needed_bytes"] += needed
        by_system.setdefault(there.stat().st_dev, []).append((folder, needed))
        try:
            with tempfile.TemporaryFile(dir=there, prefix=".hyperflow-check-") as file:
                file.write(b"x")
        except OSError as fault:
            faults.append(f"{folder}: cannot be written ({there}: {fault.strerror}); give this user the directory")
    for folders in by_system.values():
        needed = sum(count for _, count in folders)
        free = report[str(folders[0][0])]["free_bytes"]
        if needed > free:
            names = " and ".join(sorted({str(folder) for folder, _ in folders}))
            faults.append(f"{names}: found {size(free)} free, expected {size(needed)}; free space or use another place")
    return report


def _endpoints(endpoints: list[str], faults: list[str]) -> dict[str, dict[str, Any]]:
    """Reach every endpoint by TCP and TLS, all at once; certificates are judged when disks are downloaded."""
    if not endpoints:
        return {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=16) as pool:
        report = dict(zip(endpoints, pool.map(_reach, endpoints)))
    for endpoint, answer in report.items():
        if not answer["reachable"]:
            faults.append(f"{endpoint}: {answer['error']}; open the way from this host to it (name, route, firewall)")
    return report


def _reach(endpoint: str) -> dict[str, Any]:
    host, _, port = endpoint.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent; the certificate is only reported
    try:
        with contextlib.ExitStack() as opened:
            connection = opened.enter_context(socket.create_connection((host.strip("[]"), int(port)), timeout=REACH))
            secure = opened.enter_context(context.wrap_socket(connection, server_hostname=host.strip("[]")))
            certificate = secure.getpeercert(binary_form=True) or b""
            return {"reachable": True, "tls": secure.version(), "sha256": hashlib.sha256(certificate).hexdigest()}
    except (OSError, OverflowError) as fault:
        return {"reachable": False, "error": str(fault) or type(fault).__name__}


def _domain(options: Options, faults: list[str], job: Job) -> dict[str, Any] | None:
    """See that the domain can be defined: libvirt answers, networks exist, name, UUID and MACs are free."""
    plan = options.domain
    if plan is None and options.any_migration:
        plan = DomainPlan(name="", uuid="")
    if plan is None:
        return None
    try:
        existing, there = domains.every_domain(options.uri), domains.networks(options.uri)
    except StageError as fault:
        faults.append(f"libvirt at {options.uri}: {fault}; start libvirtd (systemctl enable --now libvirtd)")
        return None
    macs = [mac(Nic(one)) for one in plan.macs]
    faults += domains.conflicts(existing, plan.name, plan.uuid.lower(), macs, plan.vm)
    faults += domains.network_faults(there, plan.networks)
    faults += domains.running_faults(options.uri, existing, plan.uuid.lower(), plan.vm)
    for name in sorted(set(plan.networks)):
        if there.get(name) is False:
            job.warn(f"network {name} is not active: start it with `virsh net-start {name}`")
    closed = domains.closed_to_qemu(options.output_directory)
    if closed is not None:
        job.warn(f"{closed} is closed to libvirt's QEMU user: the domain will not start before `chmod o+x {closed}`")
    uefi = None
    if plan.firmware == "uefi" or options.any_migration:
        try:
            uefi = str(firmware.choose("q35", plan.secureboot, job).code)
        except StageError as fault:
            if plan.firmware == "uefi":
                faults.append(str(fault))
            else:
                job.warn(f"guests with UEFI cannot be moved here: {fault}")
    return {"domains": len(existing), "networks": there, "firmware": uefi}


def _version(program: str, question: list[str]) -> str | None:
    path = shutil.which(program)
    if path is None:
        return None
    answer = commands.run([path, *question], capture_output=True, text=True, timeout=60)
    match = re.search(r"\d+(\.\d+)+", answer.stdout)
    return match[0] if match else "unknown"


def _module(name: str) -> str | None:
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    if name == "nbd":
        return str(module.NBD().get_version())
    parts = module.GuestFS(python_return_dict=True).version()
    return f"{parts['major']}.{parts['minor']}.{parts['release']}"


def _packages(debian: str, rhel: str) -> str:
    return f"{debian} (Debian, Ubuntu) or {rhel} (RHEL, Fedora)"
