"""The EFI system partition: a boot loader where a firmware without boot entries looks for one.

Boot entries are kept in the VM's NVRAM, which is not carried over. Debian installs its boot loader in its own folder
only, and the target's firmware looks in EFI/BOOT.
"""

from __future__ import annotations

from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.bootloader import EFI_FOLDER
from hyperflow.kvmhost.guest.files import GuestFiles, printable
from hyperflow.kvmhost.stage import Job

BOOT_FOLDER = f"{EFI_FOLDER}/BOOT"
FALLBACK = f"{BOOT_FOLDER}/BOOTX64.EFI"  # UEFI, 3.5.1.1: what is started from a disk without a boot entry
SHIM, GRUB, KEYS = "shimx64.efi", "grubx64.efi", "mmx64.efi"  # shim starts the others, from its own folder


def keep_bootable(files: GuestFiles, changes: Changes, change: bool, job: Job) -> None:
    """Copy the guest's boot loader to where every firmware looks; a warning where that is not possible.

    It does what Debian's ``grub-install --force-extra-removable`` does.

    :param change: False where the plan forbids it
    :raises StageError: when it does not read back
    """
    if not files.is_directory(EFI_FOLDER) or files.names(BOOT_FOLDER, r"(?i)boot[a-z0-9]+\.efi"):
        return
    folders = [f"{EFI_FOLDER}/{name}" for name in files.names(EFI_FOLDER)]
    loaders = [one for one in folders if files.is_file(f"{one}/{GRUB}")]
    if not change or len(loaders) != 1:
        found = ", ".join(printable(one) for one in loaders) or "no folder"
        job.warn(
            f"{FALLBACK} in the guest: found none, and the target's firmware, which has no boot entries, looks there "
            f"({found} has a {GRUB}); in the source VM run grub-install --force-extra-removable"
        )
        return
    has_shim = files.is_file(f"{loaders[0]}/{SHIM}")
    changes.copy(f"{loaders[0]}/{SHIM if has_shim else GRUB}", FALLBACK)
    for name in (GRUB, KEYS) if has_shim else ():
        if files.is_file(f"{loaders[0]}/{name}"):
            changes.copy(f"{loaders[0]}/{name}", f"{BOOT_FOLDER}/{name}")
    job.log(f"{FALLBACK}: made of what is in {printable(loaders[0])}, for a firmware without boot entries")
