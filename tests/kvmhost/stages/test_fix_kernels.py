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


def with_drivers(version: str) -> Kernel:
    return Kernel(version, f"/boot/vmlinuz-{version}", f"/boot/initrd-{version}", (), initramfs.MODULES)


OLD = ["2.6.32-754.el6.x86_64", "3.10.0-229.el7.x86_64", "3.12.49-11-default", "3.16.0-6-amd64", "3.13.0-24-generic"]
NEW = ["3.10.0-327.el7.x86_64", "3.10.0-1160.el7.x86_64", "4.0.0", "4.4.21-69-default", "6.1.0-13-amd64", "10.2"]


@pytest.mark.parametrize("version", OLD)
def test_a_guest_whose_kernels_know_no_virtio_1_is_refused_before_it_is_converted(version: str) -> None:
    with pytest.raises(StageError, match=f"no kernel with virtio 1.0, .* found {version}, expected Linux 4.0 or newer"):
        fix.require_virtio([with_drivers(version)], Job("fix"), virtio_1=True)


@pytest.mark.parametrize("version", OLD)
def test_an_image_of_which_somebody_else_makes_a_machine_may_have_an_older_kernel(version: str) -> None:
    job = Job("fix")
    fix.require_virtio([with_drivers(version)], job, virtio_1=False)
    assert job.warnings == [f"kernel {version}: has no virtio 1.0, so it boots on a machine of type pc only"]


@pytest.mark.parametrize("version", NEW)
def test_a_kernel_that_knows_virtio_1_is_taken(version: str) -> None:
    job = Job("fix")
    fix.require_virtio([with_drivers(version), with_drivers(OLD[0])], job, virtio_1=True)
    assert job.warnings == [f"kernel {OLD[0]}: has no virtio 1.0, so it will not boot"]


def test_a_guest_without_any_kernel_that_has_the_drivers_is_refused() -> None:
    with pytest.raises(StageError, match=r"no kernel with virtio_pci and virtio_blk; found 6\.1;"):
        fix.require_virtio([Kernel("6.1", "/boot/vmlinuz-6.1", None, (), ())], Job("fix"), virtio_1=False)
