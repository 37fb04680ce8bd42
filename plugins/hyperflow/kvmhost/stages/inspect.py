"""inspect: what the guest is, read-only.

The appliance mounts the file systems of throw-away overlays, so replaying a journal touches no staged file.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperflow.kvmhost import manifest_file
from hyperflow.kvmhost.guest import bootloader, initramfs, inspection, interfaces, overlay, tools
from hyperflow.kvmhost.guest.appliance import Appliance
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.guest.inspection import Guest
from hyperflow.kvmhost.manifest_file import ManifestReference
from hyperflow.kvmhost.stage import Job, StageError


@dataclass(frozen=True)
class Options:
    """What ``inspect`` is asked to do.

    :param work_directory: the throw-away overlays go below it
    :param collect_guest_info: also what takes longer: modules in each initramfs, VMware Tools' packages
    """

    manifest: ManifestReference
    work_directory: Path
    collect_guest_info: bool


def run(options: Options, job: Job) -> dict[str, Any]:
    """Inspect the guest; its facts.

    :raises StageError: when there is no operating system, or more than one, or it is hibernated
    """
    manifest = manifest_file.load(options.manifest.path, options.manifest.sha256)
    folder = options.work_directory / ".inspect.partial"
    shutil.rmtree(folder, ignore_errors=True)  # an earlier try's
    job.creating("overlay", folder)
    folder.mkdir(parents=True, mode=0o700)
    try:
        overlays = overlay.create(manifest.disks, folder, job)
        with Appliance(list(overlays.values()), job) as handle:
            job.log(f"inspect: the appliance is up after {job.seconds():.0f} s")
            guest = inspection.identify(handle, list(overlays), overlay.serials(manifest.disks), job)
            facts = _facts(handle, guest, options, job)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    job.log(f"inspect: {facts['os']['product_name']}, {facts['firmware']}, root on {facts['root']['device']}")
    return facts


def _facts(handle: Any, guest: Guest, options: Options, job: Job) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "os": guest.os,
        "firmware": inspection.firmware(handle),
        "root": inspection.root_json(guest),
        "filesystems": [{**vars(one), "state": guest.states.get(one.device)} for one in guest.devices.filesystems],
        "mounts": [mount.as_json() for mount in guest.mounts],
        "kernels": [],
        "boot_loader": {"kind": "unknown", "entries": []},
        "network": [],
        "vmware_tools": {"installed": None, "packages": []},
        "qemu_guest_agent": None,
        "selinux": None,
        "luks": inspection.encrypted(guest.devices),
    }
    if not guest.is_linux:
        job.warn(f"the guest is {guest.os['product_name'] or guest.os['type']}, which this version can not fix")
        return facts
    inspection.mount_system(handle, guest, job)
    files = GuestFiles(handle)
    kernels = initramfs.kernels(files, job)
    images = _images(files, kernels, job) if options.collect_guest_info else {}
    facts["kernels"] = [
        {"version": kernel.version, "vmlinuz": kernel.vmlinuz, **_image(kernel, images)} for kernel in kernels
    ]
    facts["boot_loader"] = {
        "kind": bootloader.detect(files),
        "entries": [entry.as_json() for entry in bootloader.read_entries(files, job)],
    }
    facts["network"] = [one.as_json() for one in interfaces.read(files, job).interfaces]
    packages = tools.packages(files) if options.collect_guest_info else []
    facts["vmware_tools"] = {"installed": tools.installed(files), "packages": [vars(one) for one in packages]}
    facts["qemu_guest_agent"] = tools.qemu_agent(files)
    facts["selinux"] = inspection.selinux(files)
    return facts


def _images(files: GuestFiles, kernels: list[initramfs.Kernel], job: Job) -> dict[str, initramfs.Image]:
    try:
        paths = [kernel.initramfs for kernel in kernels if kernel.initramfs]
        return initramfs.read_images(files, initramfs.tool(files), paths)
    except StageError as fault:
        job.warn(f"the initramfs images were not listed: {fault}")
        return {}


def _image(kernel: initramfs.Kernel, images: dict[str, initramfs.Image]) -> dict[str, Any]:
    image = images.get(kernel.initramfs or "")
    return {
        "initramfs": kernel.initramfs,
        "virtio_modules": image.virtio_modules() if image else None,
        "built_in": list(kernel.builtin),
        "loadable": list(kernel.modules),
    }
