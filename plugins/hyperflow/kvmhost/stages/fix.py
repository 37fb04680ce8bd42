"""fix: make the guest fit for KVM, on overlays over its staged disks, and read back what became of it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hyperflow.kvmhost import manifest_file
from hyperflow.kvmhost.guest import (
    bootloader,
    configuration,
    efi,
    fstab,
    initramfs,
    inspection,
    interfaces,
    network,
    overlay,
    stale,
    tools,
)
from hyperflow.kvmhost.guest.appliance import Appliance
from hyperflow.kvmhost.guest.backups import FOLDER, Changes
from hyperflow.kvmhost.guest.configuration import Configuration
from hyperflow.kvmhost.guest.files import GuestFiles, printable
from hyperflow.kvmhost.guest.inspection import Guest
from hyperflow.kvmhost.guest.network import Nic
from hyperflow.kvmhost.manifest_file import ManifestReference
from hyperflow.kvmhost.stage import BadRequest, Job, StageError

MIB = 1024 * 1024
FREE = {"/": 100 * MIB, "/boot": 50 * MIB}  # bytes; virt-v2v asks for the same
FSTAB_SHOWN = 64 * 1024  # characters of a table in the result
LEFT_TOLD = 50  # entries of it that stay as they are, each with a warning


@dataclass(frozen=True)
class Options:
    """What ``fix`` is asked to do, beside the ``configuration`` that the manifest wants.

    :param work_directory: the overlays go to ``fix/`` below it, complete or not at all
    :param backup: keep the original of each changed file in the guest, below /var/backups/hyperflow
    :param update_grub: boot entries and boot loader name the root by UUID
    :param regen_initramfs: virtio drivers in every kernel's initramfs
    :param print_fstab: fstab before and after, in the log
    :param remove_vmware_tools: else they are left where they do nothing on KVM, and disabled where they would
    :param fstab_mode: stabilize-all, bypath-only or noop
    :param nics: the target's network cards, in the source's order
    :param virtio_1: the target has virtio 1.0 only, as a domain that Hyperflow defines; else who defines one may choose
    """

    manifest: ManifestReference
    work_directory: Path
    backup: bool
    update_grub: bool
    regen_initramfs: bool
    print_fstab: bool
    remove_vmware_tools: bool
    fstab_mode: str
    nics: list[Nic]
    virtio_1: bool = True


def run(options: Options, job: Job) -> dict[str, Any]:
    """Fix the guest; what was changed and read back.

    Always starts from empty overlays: a fix that was killed is not continued, and a complete one is done again.

    :raises BadRequest: when the guest is not Linux
    :raises StageError: when a change failed, or does not show in what was read back
    """
    if options.fstab_mode not in fstab.MODES:
        raise BadRequest(f"fstab_mode: found {options.fstab_mode!r}, expected one of {', '.join(fstab.MODES)}")
    manifest = manifest_file.load(options.manifest.path, options.manifest.sha256)
    wanted = configuration.of_manifest(manifest.document)
    complete, partial = options.work_directory / "fix", options.work_directory / ".fix.partial"
    for leftover in (complete, partial):
        if leftover.exists():
            job.log(f"fix: removing what an earlier try left in {leftover}")
            shutil.rmtree(leftover)
    job.creating("overlay", partial)
    job.creating("fix-overlay", complete)
    partial.mkdir(parents=True, mode=0o700)
    staged = overlay.state(manifest.disks)
    overlays = overlay.create(manifest.disks, partial, job)
    steps = Steps(job)
    with Appliance(list(overlays.values()), job) as handle:
        steps.done("appliance")
        guest = inspection.identify(handle, list(overlays), overlay.serials(manifest.disks), job)
        if not guest.is_linux:
            raise BadRequest(
                f"the guest is {guest.os['product_name'] or guest.os['type']}: only Linux can be fixed yet"
            )
        inspection.mount_system(handle, guest, job)
        steps.done("inspection")
        observed = Fix(handle, guest, options, wanted, steps).run()
    if overlay.state(manifest.disks) != staged:
        raise StageError("a staged disk changed while its guest was fixed over an overlay; something else writes to it")
    sizes = {disk_id: overlay.sync(path) for disk_id, path in overlays.items()}
    partial.rename(complete)
    steps.done("shutdown")
    job.bytes_written = sum(sizes.values())
    return {
        "manifest_sha256": options.manifest.sha256,
        "overlays": {disk_id: str(complete / path.name) for disk_id, path in overlays.items()},
        "overlay_bytes": sizes,
        **observed,
        "seconds": steps.seconds,
    }


class Steps:
    """Seconds of each part, and a line in the log when it is done."""

    def __init__(self, job: Job) -> None:
        self.seconds: dict[str, float] = {}
        self.job = job
        self._last = time.monotonic()

    def done(self, name: str) -> None:
        """Note that a part is done."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 1)
        self._last = now
        self.job.log(f"fix: {name} done, {self.seconds[name]} s")


class Fix:
    """The changes to one mounted guest, in their order; configuration first, what is generated from it last."""

    def __init__(self, handle: Any, guest: Guest, options: Options, wanted: Configuration, steps: Steps) -> None:
        self._handle = handle
        self._guest = guest
        self._options = options
        self._wanted = wanted
        self._steps = steps
        self._job = steps.job
        self._files = GuestFiles(handle)
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        self._changes = Changes(self._files, options.backup, f"{FOLDER}/{stamp}")

    def run(self) -> dict[str, Any]:
        """Change, generate, read back."""
        require_space(self._files)
        kernels = initramfs.kernels(self._files, self._job)
        require_virtio(kernels, self._job, virtio_1=self._options.virtio_1)
        vmware_tools = tools.handle(self._files, self._changes, self._options.remove_vmware_tools, self._job)
        self._steps.done("vmware tools")
        configured = configuration.apply(self._files, self._changes, self._wanted, self._job)
        self._steps.done("configuration")
        tables = self._tables()
        stale.forget_disks(self._files, self._changes)
        found = interfaces.read(self._files, self._job)
        fixed = interfaces.udev_names(self._files, self._job)
        kernel_names = bootloader.kernel_names_interfaces(self._files)
        naming = network.assign(found.interfaces, self._options.nics, fixed, found.complete, kernel_names)
        links = network.keep_names(self._files, self._changes, found.interfaces, naming, self._job)
        self._steps.done("fstab and network")
        link_paths = [one["link"] for one in links if one["link"]]
        images = self._initramfs(kernels, link_paths)
        entries = self._boot_entries()
        stale.label(self._files, self._changes, self._job)
        return {
            "os": self._guest.os,
            "root": inspection.root_json(self._guest),
            "changed_files": self._changes.listed(),
            "initramfs": images,
            "fstab": tables,
            "boot_entries": [entry.as_json() for entry in entries],
            "network": links,
            "network_without_card": list(naming.gone),
            "vmware_tools": vmware_tools,
            "configuration": configured,
        }

    def _tables(self) -> dict[str, Any]:
        """Rewrite fstab and crypttab; what stands in them now."""
        mode, devices = self._options.fstab_mode, self._guest.devices
        before = self._files.read_text(fstab.FSTAB) or ""
        done = fstab.stabilize_fstab(before, mode, devices)
        if done.changed:
            self._changes.write(fstab.FSTAB, done.text)
        self._left("fstab", done, device=0, target=1)
        crypttab = self._files.read_text(fstab.CRYPTTAB)
        encrypted = fstab.stabilize_crypttab(crypttab or "", mode, devices)
        if encrypted.changed:
            self._changes.write(fstab.CRYPTTAB, encrypted.text)
        self._left("crypttab", encrypted, device=1, target=0)
        after = self._files.read_text(fstab.FSTAB) or ""
        if mode == fstab.STABILIZE_ALL:
            self._require_same_mounts(after)
        if self._options.print_fstab:
            for name, text in (("before", before), ("after", after)):
                for line in printable(text[:FSTAB_SHOWN]).splitlines():
                    self._job.log(f"fstab {name}: {line}")
        return {
            "before": printable(before[:FSTAB_SHOWN]),
            "after": printable(after[:FSTAB_SHOWN]),
            "changed": [printable(one) for one in done.changed],
            "crypttab_changed": [printable(one) for one in encrypted.changed],
        }

    def _left(self, table: str, done: fstab.Rewritten, device: int, target: int) -> None:
        """Say which entries could not be changed, or stop where the guest will not boot with one.

        :param device: which field names the device, and ``target`` which one what becomes of it
        """
        for number, (entry, reason) in enumerate(done.left):
            what = f"{printable(entry.field(device))} on {printable(entry.field(target))}"
            line = f"{table}, line {entry.number}: {what} stays: {reason}"
            if self._options.fstab_mode == fstab.STABILIZE_ALL and entry.needed:
                raise StageError(f"{line}; name it by UUID in the source VM, or let it be nofail there")
            if number < LEFT_TOLD:
                self._job.warn(line)
        if len(done.left) > LEFT_TOLD:
            self._job.warn(f"{table}: {len(done.left) - LEFT_TOLD} more entries stay for such reasons")

    def _require_same_mounts(self, text: str) -> None:
        """Read fstab back: every mount still means the file system that it meant."""
        after = {entry.field(1): fstab.filesystem_of(entry, self._guest.devices) for entry in fstab.entries(text)}
        for mount in self._guest.mounts:
            if mount.path.startswith("/") and after.get(mount.path) is None:
                raise StageError(f"fstab reads back without {printable(mount.path)}")

    def _initramfs(self, kernels: list[initramfs.Kernel], links: list[str]) -> list[dict[str, Any]]:
        """Rebuild the images, and list them; a guest whose kernels need none has no program for them either."""
        rebuild = self._options.regen_initramfs
        if not any(kernel.initramfs for kernel in kernels):
            self._require(rebuild, initramfs.faults(kernels, {}, links, required=rebuild))
            return [initramfs.as_json(kernel, {}) for kernel in kernels]
        try:
            program = initramfs.tool(self._files)
        except StageError as fault:
            if rebuild:
                raise
            self._job.warn(str(fault))
            return []
        if rebuild:
            initramfs.prepare(self._files, self._changes, program, links, self._guest.devices.uuid_name)
            initramfs.rebuild(self._files, self._changes, program, kernels, self._job)
            self._steps.done("initramfs")
        images = initramfs.read_images(self._files, program, [one.initramfs for one in kernels if one.initramfs])
        self._require(rebuild, initramfs.faults(kernels, images, links, required=rebuild))
        self._steps.done("initramfs read back")
        return [initramfs.as_json(kernel, images) for kernel in kernels]

    def _boot_entries(self) -> list[bootloader.BootEntry]:
        """Rewrite the boot entries, or have the guest make them anew where that is not enough, and read them."""
        if self._options.update_grub:
            bootloader.stabilize(self._files, self._changes, self._guest.devices, self._job)
            bootloader.regenerate(self._files, self._changes, self._guest.devices, self._guest.root.uuid, self._job)
        efi.keep_bootable(self._files, self._changes, self._options.update_grub, self._job)
        entries = bootloader.read_entries(self._files, self._job)
        wrong = bootloader.faults(entries, self._guest.devices, self._guest.root.uuid)
        if not any(entry.root for entry in entries):
            wrong.append("found no boot entry that names a root file system")
        self._require(self._options.update_grub, wrong)
        self._steps.done("boot entries")
        return entries

    def _require(self, changed: bool, faults: list[str]) -> None:
        """Faults in what was read back stop the fix; where the plan forbade the change they are warnings."""
        if faults and changed:
            raise StageError("read back after the change: " + "; ".join(printable(one) for one in faults))
        for one in faults:
            self._job.warn(printable(one))


def require_space(files: GuestFiles) -> None:
    """Refuse a guest whose file systems are full: an initramfs would be cut short.

    :raises StageError: with every file system that is
    """
    short = []
    for path, needed in FREE.items():
        if not files.is_directory(path):
            continue
        found = files.handle.statvfs(path)
        free = found["bavail"] * found["frsize"]
        if free < needed:
            short.append(f"{path}: {free // MIB} MiB free, {needed // MIB} MiB needed")
    if short:
        raise StageError(f"the guest has no room for the fix: {'; '.join(short)}; make room in the source VM")


def require_virtio(kernels: list[initramfs.Kernel], job: Job, *, virtio_1: bool) -> None:
    """Refuse a guest without a kernel that can find its disk on KVM.

    :param virtio_1: whether there is no older virtio
    :raises StageError: when there is none
    """
    with_drivers = [kernel for kernel in kernels if not kernel.lacks(initramfs.TO_BOOT)]
    fit = [kernel for kernel in with_drivers if kernel.speaks_virtio_1()]
    names = ", ".join(kernel.version for kernel in kernels) or "none"
    if not with_drivers:
        raise StageError(f"no kernel with virtio_pci and virtio_blk; found {names}; install one in the source VM")
    if not fit and virtio_1:
        raise StageError(
            f"no kernel with virtio 1.0, which KVM's disks need here; found {names}, expected Linux 4.0 or newer, or "
            "3.10.0-327 or newer of RHEL 7; install a newer kernel in the source VM"
        )
    for kernel in kernels:
        if kernel not in fit:
            lacks = ", ".join(kernel.lacks(initramfs.TO_BOOT)) or "virtio 1.0"
            will = "will not boot" if virtio_1 or kernel not in with_drivers else "boots on a machine of type pc only"
            job.warn(f"kernel {kernel.version}: has no {lacks}, so it {will}")
