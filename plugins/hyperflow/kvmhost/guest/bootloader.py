"""Boot loaders: every boot entry names the root file system by UUID, and is read back."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Callable

from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.devices import Devices, hangs_on_hardware
from hyperflow.kvmhost.guest.files import GuestFiles, printable
from hyperflow.kvmhost.stage import Job, StageError

GRUB_CONFIGS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
# With UEFI RHEL 7 and 8 have grub.cfg, and RHEL 6 grub.conf, in their vendor's folder there and nowhere else. Others
# have a grub.cfg there that only leads to the one in /boot: grub-mkconfig must not be let loose on it.
EFI_FOLDER = "/boot/efi/EFI"
GRUB_DEFAULTS = "/etc/default/grub"
GRUB_DEFAULTS_FOLDER = "/etc/default/grub.d"
GRUB_HAND_WRITTEN = ("/etc/grub.d/40_custom", "/boot/grub/custom.cfg", "/boot/grub2/custom.cfg")
GRUB_ENVIRONMENTS = ("/boot/grub2/grubenv", "/boot/grub/grubenv")
DEVICE_MAPS = ("/boot/grub/device.map", "/boot/grub2/device.map")
BLS_FOLDER = "/boot/loader/entries"
KERNEL_COMMAND_LINE = "/etc/kernel/cmdline"  # what kernel-install and grubby give new entries
OTHERS = {
    "grub1": ("/boot/grub/menu.lst", "/boot/grub/grub.conf"),
    "extlinux": ("/boot/extlinux/extlinux.conf", "/boot/syslinux/syslinux.cfg", "/extlinux.conf"),
    "systemd-boot": ("/boot/loader/loader.conf", "/efi/loader/loader.conf", "/boot/efi/loader/loader.conf"),
    "lilo": ("/etc/lilo.conf",),
}
GRUBENV_BYTES = 1024  # GRUB reads and writes its environment as one block of this size
MOST = 1000  # boot entries that are read; ten kernels make some thirty
SHOWN = 256  # characters of an entry's title, kernel and root
LAST_LINES = 20  # of what a program of the guest said

# Arguments of a kernel's command line that name a block device.
_DEVICE_ARGUMENT = re.compile(r"(?<![^\s\"'=])((?:root|resume|real_root|journal_dev)=)(/dev/[^\s\"']+)")
_ROOT = re.compile(r"(?:^|[\s\"'])root=([^\s\"']+)")
_KERNEL_NAMES = re.compile(r"^[^#\n]*\bnet\.ifnames=0\b", re.M)
_TITLE = re.compile(r"\s*(menuentry|submenu)\s+(?:'([^']*)'|\"([^\"]*)\"|(\S+))")
_LINUX = re.compile(r"\s*(?:linux|linux16|linuxefi)\s+(\S+)\s*(.*)")
# Settings that make grub-mkconfig write device names instead of UUIDs.
_NO_UUID = re.compile(r"^[ \t]*(?:export[ \t]+)?(?:GRUB_DISABLE_LINUX_UUID|GRUB_DISABLE_UUID|GRUB_DEVICE)=", re.M)


@dataclass(frozen=True)
class BootEntry:
    """One choice of a boot menu.

    :param root: what the kernel is told: ``UUID=...``, or nothing where the line has none
    """

    file: str
    title: str
    kernel: str
    root: str

    def as_json(self) -> dict[str, str]:
        """The entry for a result."""
        return {"file": self.file, "title": self.title, "kernel": self.kernel, "root": self.root}


def detect(files: GuestFiles) -> str:
    """Name the guest's boot loader: grub2, grub1, extlinux, systemd-boot, lilo or unknown."""
    if files.first(GRUB_CONFIGS):
        return "grub2"
    kind = next((kind for kind, paths in OTHERS.items() if files.first(paths)), None)
    if kind is None and _on_esp(files, "grub.cfg"):
        return "grub2"
    return kind or ("grub1" if _on_esp(files, "grub.conf") else "unknown")


def _on_esp(files: GuestFiles, name: str) -> list[str]:
    """Find a file in each vendor's folder of the EFI system partition."""
    paths = (f"{EFI_FOLDER}/{vendor}/{name}" for vendor in files.names(EFI_FOLDER))
    return [path for path in paths if files.is_file(path)]


def read_entries(files: GuestFiles, job: Job) -> list[BootEntry]:
    """Read all boot entries there are, of whatever loader; a guest with more than :data:`MOST` is a warning."""
    found = list(itertools.islice(_all_entries(files), MOST + 1))
    if len(found) > MOST:
        file, title = printable(found[MOST].file), printable(found[MOST].title)
        job.warn(f"boot entries: found more than {MOST}; those from {file}, {title!r} on were not looked at")
    return found[:MOST]


def _all_entries(files: GuestFiles) -> Iterator[BootEntry]:
    for path in (*GRUB_CONFIGS, *_on_esp(files, "grub.cfg")):
        text = files.read_text(path)
        if text is not None:
            yield from grub_entries(path, text)
    options = kernel_options(files)
    for name in files.names(BLS_FOLDER, r"[^\0]*\.conf"):
        text = files.read_text(f"{BLS_FOLDER}/{name}")
        if text is not None:
            yield bls_entry(f"{BLS_FOLDER}/{name}", text, options)
    for kind in ("grub1", "extlinux"):
        for path in (*OTHERS[kind], *(_on_esp(files, "grub.conf") if kind == "grub1" else ())):
            text = files.read_text(path)
            if text is not None:
                yield from plain_entries(path, text)


def _entry(path: str, title: str, kernel: str, root: str) -> BootEntry:
    """Make an entry of texts that may be as long as their file; a whole title would be kept with each entry of it."""
    return BootEntry(path, title[:SHOWN], kernel[:SHOWN], root[:SHOWN])


def grub_entries(path: str, text: str) -> Iterator[BootEntry]:
    """Read the ``menuentry`` blocks of a grub.cfg: one entry a kernel line."""
    title = ""
    for line in text.split("\n"):
        match = _TITLE.match(line)
        if match:
            title = next((one for one in match.groups()[1:] if one is not None), "")
            continue
        match = _LINUX.match(line)
        if match:
            root = _ROOT.search(f" {match[2]}")
            yield _entry(path, title, match[1].strip("\"'"), root[1] if root else "")


def bls_entry(path: str, text: str, kernel_opts: str) -> BootEntry:
    """Read an entry of the Boot Loader Specification.

    :param kernel_opts: what ``$kernelopts`` stands for: a variable of GRUB's environment
    """
    keys: dict[str, str] = {}
    options: list[str] = []  # may stand on several lines
    for line in text.split("\n"):
        key, _, value = line.strip().partition(" ")
        if key == "options":
            options.append(value.strip())
        elif key and not key.startswith("#"):
            keys[key] = value.strip()
    # only the first: the root is the first one, and a text may name the variable a hundred thousand times
    root = _ROOT.search(" " + " ".join(options).replace("$kernelopts", kernel_opts, 1))
    return _entry(path, keys.get("title", ""), keys.get("linux", ""), root[1] if root else "")


def plain_entries(path: str, text: str) -> Iterator[BootEntry]:
    """Read menu.lst of GRUB 1 (``title``, ``kernel``) or a configuration of extlinux (``label``, ``append``)."""
    title = kernel = ""
    for line in text.split("\n"):
        word, _, rest = line.strip().partition(" ")
        word, rest = word.lower(), rest.strip()
        if word in ("title", "label"):
            title = rest
        elif word in ("kernel", "linux"):
            kernel = rest.split(" ", 1)[0]
        root = _ROOT.search(f" {rest}")
        if word in ("kernel", "append", "linux") and root:
            yield _entry(path, title, kernel, root[1])


def kernel_options(files: GuestFiles) -> str:
    """The variable kernelopts of GRUB's environment block, which BLS entries of RHEL 8 refer to."""
    for path in GRUB_ENVIRONMENTS:
        text = files.read_text(path)
        match = re.search(r"^kernelopts=(.*)$", text or "", re.M)
        if match:
            return match[1]
    return ""


def kernel_names_interfaces(files: GuestFiles) -> bool:
    """Whether a boot entry, or what new ones are made from, keeps udev from naming interfaces: they are eth0, ..."""
    entries = (f"{BLS_FOLDER}/{name}" for name in files.names(BLS_FOLDER, r"[^\0]*\.conf"))
    configs = (*GRUB_CONFIGS, *_on_esp(files, "grub.cfg"), *_on_esp(files, "grub.conf"))
    paths = (*configs, *entries, *GRUB_ENVIRONMENTS, GRUB_DEFAULTS, KERNEL_COMMAND_LINE)
    return any(_KERNEL_NAMES.search(files.read_text(path) or "") for path in paths)


def stabilize_arguments(text: str, uuid_name: Callable[[str], str | None]) -> str:
    """Replace device names in root= and resume= of kernel command lines; what has no UUID name is left."""
    return _DEVICE_ARGUMENT.sub(lambda match: match[1] + (uuid_name(match[2]) or match[2]), text)


def stabilize_defaults(text: str, uuid_name: Callable[[str], str | None]) -> str:
    """Make /etc/default/grub ask for UUIDs: settings that forbid them become comments, command lines are rewritten."""
    text = _NO_UUID.sub(lambda match: f"# by hyperflow: {match[0].strip()}", text)
    lines = text.split("\n")
    for index, line in enumerate(lines):
        if line.lstrip().startswith("GRUB_CMDLINE_"):
            lines[index] = stabilize_arguments(line, uuid_name)
    return "\n".join(lines)


def stabilize_environment(block: str, uuid_name: Callable[[str], str | None]) -> str:
    """Rewrite GRUB's environment block; it stays one block of 1024 bytes, filled up with ``#``."""
    text = stabilize_arguments(block.rstrip("#"), uuid_name)
    return text.ljust(GRUBENV_BYTES, "#") if len(text) <= GRUBENV_BYTES else block


def stabilize(files: GuestFiles, changes: Changes, devices: Devices, job: Job) -> None:
    """Rewrite the boot entries of whatever loader, and what programs of the guest will make later ones from."""
    defaults = [f"{GRUB_DEFAULTS_FOLDER}/{name}" for name in files.names(GRUB_DEFAULTS_FOLDER, r"[^\0]*\.cfg")]
    for path in (GRUB_DEFAULTS, *defaults):
        _edit(files, changes, path, lambda text: stabilize_defaults(text, devices.uuid_name))
    entries = [f"{BLS_FOLDER}/{name}" for name in files.names(BLS_FOLDER, r"[^\0]*\.conf")]
    others = (*OTHERS["grub1"], *OTHERS["extlinux"], *_on_esp(files, "grub.cfg"), *_on_esp(files, "grub.conf"))
    for path in (*GRUB_CONFIGS, *GRUB_HAND_WRITTEN, KERNEL_COMMAND_LINE, *entries, *others):
        _edit(files, changes, path, lambda text: stabilize_arguments(text, devices.uuid_name))
    for path in GRUB_ENVIRONMENTS:
        _edit(files, changes, path, lambda text: stabilize_environment(text, devices.uuid_name))
    for path in DEVICE_MAPS:
        # GRUB 2 does without; one that names VMware's disks makes grub-mkconfig fail
        if files.is_file(path):
            changes.remove(path)
    kind = detect(files)
    if kind in OTHERS:
        job.warn(f"boot loader: found {kind}; its entries were rewritten where they name devices, and nothing else")


def regenerate(files: GuestFiles, changes: Changes, devices: Devices, root_uuid: str, job: Job) -> str | None:
    """Make grub.cfg anew by the guest's grub-mkconfig where an entry still would not find the root; the path, or None.

    Where the entries could be rewritten they are left: arguments may stand in them and nowhere else, for grubby of
    RHEL 7 writes them there, and grub-mkconfig would take them away.

    :raises StageError: when a kernel has lost arguments by it
    """
    path = files.first(GRUB_CONFIGS)
    program = files.program("grub-mkconfig", "grub2-mkconfig")
    before = "" if path is None else files.read_text(path) or ""
    if path is None or program is None or not faults(grub_entries(path, before), devices, root_uuid):
        return None
    defaults = files.read_text(GRUB_DEFAULTS) or ""
    if re.search(r"^GRUB_ENABLE_BLSCFG=[\"']?true", defaults, re.M) and files.names(BLS_FOLDER, r"[^\0]*\.conf"):
        return None  # grub.cfg has no entries then; those in the folder were rewritten
    changes.before_regeneration(path)
    # os-prober would find the appliance's own disk and put it into the menu
    said = files.run([program, "-o", path], ["GRUB_DISABLE_OS_PROBER=true"])
    for line in said.splitlines()[-LAST_LINES:]:
        job.log(f"{program}: {line}")
    text = files.read_text(path)
    if text is None or not any(grub_entries(path, text)):
        job.warn(f"{path}: {program} made no entry with a kernel")
    lost = _lost_arguments(before, text or "")
    if lost:
        raise StageError(
            f"{path}: {program} has taken arguments away from {printable(lost)[:SHOWN]}; write them into "
            f"GRUB_CMDLINE_LINUX of {GRUB_DEFAULTS} in the source VM, or name the root by UUID in {path} there"
        )
    return path


def _lost_arguments(before: str, after: str) -> str:
    """Tell which arguments, but for the root, kernels had in a grub.cfg and have no more: ``/vmlinuz-1: fips=1``.

    A kernel that has no entry any more is another system's, or was removed.
    """
    old, new = _arguments(before), _arguments(after)
    gone = {kernel: sorted(set(words) - set(new[kernel])) for kernel, words in old.items() if kernel in new}
    return "; ".join(f"{kernel}: {' '.join(words)}" for kernel, words in gone.items() if words)


def _arguments(text: str) -> dict[str, list[str]]:
    """Read the arguments of each kernel's first entry in a grub.cfg; later ones are for recovery."""
    found: dict[str, list[str]] = {}
    for match in filter(None, map(_LINUX.match, text.split("\n"))):
        words = [word for word in match[2].split() if not _ROOT.match(word)]
        found.setdefault(match[1].strip("\"'"), words)
    return found


def faults(entries: Iterable[BootEntry], devices: Devices, root_uuid: str) -> list[str]:
    """Tell which entries would not find the root file system on other hardware."""
    found = []
    for entry in entries:
        where = f"{entry.file}, {entry.title!r}"
        if hangs_on_hardware(entry.root):
            found.append(f"{where}: found root={entry.root}, expected UUID={root_uuid}")
        elif entry.root:
            meant = devices.find(entry.root)
            if meant is not None and meant.uuid.lower() != root_uuid.lower():
                found.append(f"{where}: found root={entry.root}, expected UUID={root_uuid}")
    return found


def _edit(files: GuestFiles, changes: Changes, path: str, change: Callable[[str], str]) -> None:
    text = files.read_text(path)
    if text is not None and change(text) != text:
        changes.write(path, change(text))
