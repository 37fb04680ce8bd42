"""A firmware without boot entries finds the guest's boot loader."""

from __future__ import annotations

import pytest
from hyperflow.kvmhost.guest import efi, stale
from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.stage import Job, StageError

from tests.kvmhost.guest.memory import Memory

SIGNED = {f"/boot/efi/EFI/debian/{name}": name for name in (efi.SHIM, efi.GRUB, efi.KEYS, "grub.cfg")}


class Copying(Memory):
    """A guest with cp.

    :param short: whether the copies lose their end
    """

    short = False

    def command(self, arguments: list[str]) -> None:
        output, program, source, target = arguments[arguments.index("sh") + 1 :]
        assert program == "cp"
        self.files[target] = self.files[source][:-1] if self.short else self.files[source]
        self.files[output] = b""


def fixed(memory: Memory, job: Job, change: bool = True) -> dict[str, bytes]:
    """What is in EFI/BOOT in the end."""
    files = GuestFiles(memory)
    changes = Changes(files, True, "/b")
    efi.keep_bootable(files, changes, change, job)
    there = {path.rpartition("/")[2]: text for path, text in memory.files.items() if efi.BOOT_FOLDER in path}
    assert len(changes.listed()) in (0, len(there))
    return there


def test_a_shim_is_copied_with_what_it_starts() -> None:
    job = Job("fix")
    assert fixed(Copying(SIGNED), job) == {
        "BOOTX64.EFI": b"shimx64.efi",
        "grubx64.efi": b"grubx64.efi",
        "mmx64.efi": b"mmx64.efi",
    }
    assert job.warnings == []


def test_a_grub_without_shim_is_what_is_started() -> None:
    assert fixed(Copying({"/boot/efi/EFI/debian/grubx64.efi": "g"}), Job("fix")) == {"BOOTX64.EFI": b"g"}


def test_a_guest_that_has_a_loader_there_and_one_without_efi_are_left_alone() -> None:
    there = {**SIGNED, "/boot/efi/EFI/BOOT/bootx64.efi": "theirs"}
    for files in (there, {"/boot/grub/grub.cfg": ""}):
        memory, job = Memory(files), Job("fix")
        fixed(memory, job)
        assert len(memory.files) == len(files)
        assert job.warnings == []


@pytest.mark.parametrize(
    ("files", "change", "found"),
    [
        (SIGNED, False, "/boot/efi/EFI/debian"),
        ({**SIGNED, "/boot/efi/EFI/ubuntu/grubx64.efi": ""}, True, "/boot/efi/EFI/debian, /boot/efi/EFI/ubuntu"),
        ({"/boot/efi/EFI/other/x.efi": ""}, True, "no folder"),
    ],
)
def test_what_cannot_be_copied_is_a_warning_that_names_it(files: dict[str, str], change: bool, found: str) -> None:
    memory, job = Memory(files), Job("fix")
    assert fixed(memory, job, change) == {}
    (warning,) = job.warnings
    assert warning.startswith("/boot/efi/EFI/BOOT/BOOTX64.EFI in the guest: found none")
    assert f"({found} has a grubx64.efi)" in warning


def test_a_copy_that_is_not_the_same_is_an_error() -> None:
    memory = Copying(SIGNED)
    memory.short = True
    with pytest.raises(StageError, match=r"BOOTX64\.EFI in the guest: reads back otherwise"):
        fixed(memory, Job("fix"))


def test_selinux_labels_nothing_on_the_efi_system_partition() -> None:
    """FAT has no labels: setfiles would fail, and the guest relabel all its files at the first boot."""
    asked: list[str] = []
    there = {"/etc/selinux/config": "SELINUX=enforcing\n", "/usr/sbin/setfiles": "", "/etc/fstab": "a"}
    there |= {stale.FILE_CONTEXTS.format("targeted"): "", "/boot/efi/EFI/redhat/grub.cfg": "a"}
    files, job = GuestFiles(Memory(there, lambda program: asked.extend(program) or b"")), Job("fix")
    changes = Changes(files, False, "/b")
    for path in ("/etc/fstab", "/boot/efi/EFI/redhat/grub.cfg"):
        changes.write(path, "b")
    stale.label(files, changes, job)
    assert asked == ["/usr/sbin/setfiles", "-F", stale.FILE_CONTEXTS.format("targeted"), "/etc/fstab"]
    assert job.warnings == []
