"""What a guest remembers of its old disks, and the labels of files written from outside."""

from __future__ import annotations

from hyperflow.kvmhost.guest import inspection
from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.bootloader import EFI_FOLDER
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.stage import Job, StageError

# LVM takes no disk that its list of devices does not name; the list names VMware's disks by serial number.
# Without the list LVM looks at all disks. Source: lvmdevices(8); virt-v2v removes the same files.
FILES = ("/etc/lvm/devices/system.devices", "/etc/lvm/cache/.cache", "/etc/blkid.tab", "/etc/blkid/blkid.tab")
FILE_CONTEXTS = "/etc/selinux/{}/contexts/files/file_contexts"
RELABEL = "/.autorelabel"


def forget_disks(files: GuestFiles, changes: Changes) -> None:
    """Remove lists of disks that are wrong on other hardware; programs make them anew."""
    for path in FILES:
        if files.is_file(path):
            changes.remove(path)


def label(files: GuestFiles, changes: Changes, job: Job) -> None:
    """Give SELinux labels to what was written: without them an enforcing guest may not read the files.

    Falls back to a relabelling at the first boot, which takes minutes and another boot.
    """
    if inspection.selinux(files) in (None, "disabled"):
        return
    program = files.program("setfiles")
    policies = files.names("/etc/selinux")
    contexts = files.first([FILE_CONTEXTS.format(name) for name in policies if "/" not in name])
    written = [path for path in changes.paths() if not path.startswith(f"{EFI_FOLDER}/")]  # FAT has no labels
    try:
        if program is None or contexts is None:
            raise StageError("found no setfiles or no policy")
        files.run([program, "-F", contexts, *written])
    except StageError as fault:
        changes.write(RELABEL, "")
        job.warn(f"SELinux: files could not be labelled ({fault}); the guest relabels itself at its first boot")
