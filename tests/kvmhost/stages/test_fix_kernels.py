"""What fix demands of a guest's kernels, without an appliance."""

from __future__ import annotations

from pathlib import Path

import pytest
from hyperflow.kvmhost.guest import fstab, initramfs
from hyperflow.kvmhost.guest.configuration import Configuration
from hyperflow.kvmhost.guest.devices import Devices, FileSystem
from hyperflow.kvmhost.guest.initramfs import Kernel
from hyperflow.kvmhost.guest.inspection import Guest
from hyperflow.kvmhost.manifest_file import ManifestReference
from hyperflow.kvmhost.stage import Job, StageError
from hyperflow.kvmhost.stages import fix

from tests.kvmhost.guest.memory import Memory

ROOT = FileSystem("/dev/sda1", "ext4", "1111", "", "disk-0")


def images(kernel: Kernel) -> list[dict[str, object]]:
    """What fix tells of the initramfs of a guest that has this kernel, and no program that makes one."""
    guest = Guest(ROOT, {"type": "linux"}, Devices([ROOT], ["disk-0"]), {}, "", ())
    reference = ManifestReference(Path("/m.json"), "0" * 64)
    options = fix.Options(reference, Path("/w"), False, False, True, False, False, fstab.STABILIZE_ALL, [])
    return fix.Fix(Memory({}), guest, options, Configuration(), fix.Steps(Job("fix")))._initramfs([kernel], [])


def test_a_kernel_with_drivers_of_its_own_needs_neither_an_initramfs_nor_a_program_for_one() -> None:
    (found,) = images(Kernel("6.1", "/boot/vmlinuz-6.1", None, initramfs.MODULES, ()))
    assert (found["path"], found["built_in"]) == (None, list(initramfs.MODULES))


def test_a_kernel_that_needs_an_initramfs_and_has_none_stops_fix() -> None:
    with pytest.raises(StageError, match="found no initramfs, expected one with virtio_pci, virtio_blk"):
        images(Kernel("6.1", "/boot/vmlinuz-6.1", None, (), initramfs.MODULES))
