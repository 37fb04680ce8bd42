"""fstab and crypttab: device names that hang on VMware's controllers become UUID=; nothing else changes a byte."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hyperflow.kvmhost.guest.devices import Devices, FileSystem, hangs_on_hardware

STABILIZE_ALL = "stabilize-all"
BYPATH_ONLY = "bypath-only"
NOOP = "noop"
MODES = (STABILIZE_ALL, BYPATH_ONLY, NOOP)

FSTAB = "/etc/fstab"
CRYPTTAB = "/etc/crypttab"
BY_PATH = "/dev/disk/by-path/"
RANDOM_KEYS = ("/dev/urandom", "/dev/random")  # of crypttab: what is encrypted is made anew at each boot
# What a driver mounts beside its own kind.
ALSO_MOUNTS = {"ext4": ("ext2", "ext3"), "ntfs-3g": ("ntfs",), "ntfs3": ("ntfs",)}
UNCHECKED_TYPES = ("", "auto", "none")

# A blank, then fields without blanks; blanks inside a field are written \040 (fstab(5)).
_LINE = re.compile(r"(?P<lead>[ \t]*)(?P<body>[^#\s].*)", re.DOTALL)
_FIELD = re.compile(r"[^ \t\r\n]+")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Entry:
    """A line that is no comment.

    :param number: of the line, from 1
    :param fields: with escapes resolved
    """

    number: int
    fields: tuple[str, ...]

    def field(self, index: int) -> str:
        """A field, or nothing where the line is shorter."""
        return self.fields[index] if index < len(self.fields) else ""

    @property
    def options(self) -> list[str]:
        """The mount options."""
        return self.field(3).split(",")

    @property
    def needed(self) -> bool:
        """Whether a boot waits for it and fails without it."""
        return not {"noauto", "nofail"} & set(self.options)


@dataclass(frozen=True)
class Rewritten:
    """What became of a table.

    :param text: the whole file
    :param changed: ``line N: BEFORE is AFTER``
    :param left: entries that still have a name that hangs on hardware, with the reason
    """

    text: str
    changed: tuple[str, ...]
    left: tuple[tuple[Entry, str], ...]


def entries(text: str) -> list[Entry]:
    """Read a table; comments and empty lines are left out."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        match = _LINE.match(line)
        if match:
            found.append(Entry(number, tuple(_unescape(one) for one in _FIELD.findall(match["body"]))))
    return found


def stabilize_fstab(text: str, mode: str, devices: Devices) -> Rewritten:
    """Replace the first field of fstab's entries as the mode says."""
    return _rewrite(text, mode, devices, field=0, type_field=2)


def stabilize_crypttab(text: str, mode: str, devices: Devices) -> Rewritten:
    """Replace the second field of crypttab's entries as the mode says."""
    return _rewrite(text, mode, devices, field=1, type_field=None)


def filesystem_of(entry: Entry, devices: Devices) -> FileSystem | None:
    """Find the file system that an entry of fstab mounts; None for NFS, tmpfs, bind mounts and the like."""
    if {"bind", "rbind"} & set(entry.options):
        return None
    return devices.find(entry.field(0))


def _rewrite(text: str, mode: str, devices: Devices, field: int, type_field: int | None) -> Rewritten:
    lines = text.split("\n")
    changed = []
    left = []
    for entry in entries(text):
        spec = entry.field(field)
        if not hangs_on_hardware(spec):
            continue
        name, reason = _new_name(entry, spec, mode, devices, type_field)
        if name is None:
            left.append((entry, reason))
            continue
        lines[entry.number - 1] = _replace_field(lines[entry.number - 1], field, name)
        changed.append(f"line {entry.number}: {spec} is {name}")
    return Rewritten("\n".join(lines), tuple(changed), tuple(left))


def _new_name(entry: Entry, spec: str, mode: str, devices: Devices, type_field: int | None) -> tuple[str | None, str]:
    if mode == NOOP or (mode == BYPATH_ONLY and not spec.startswith(BY_PATH)):
        return None, f"the mode {mode} leaves it"
    if type_field is None and entry.field(2) in RANDOM_KEYS:  # each boot writes over what was there, a UUID too
        return devices.partition_name(spec), "no empty partition or swap area with a PARTUUID is certainly meant"
    found = devices.find(spec)
    if found is None:
        return None, "no such file system on the guest's disks, or it is not certain which disk it means"
    expected = entry.field(type_field) if type_field is not None else ""
    if expected not in UNCHECKED_TYPES and not any(_mounts(driver, found.type) for driver in expected.split(",")):
        return None, f"it would be a file system of type {found.type}, and the entry says {expected}"
    name = devices.uuid_name(spec)
    return name, "" if name else "its file system has no UUID, or shares it with another"


def _mounts(driver: str, kind: str) -> bool:
    """Whether a type that fstab names mounts a file system of a kind."""
    return driver == kind or kind in ALSO_MOUNTS.get(driver, ())


def _replace_field(line: str, index: int, value: str) -> str:
    match = list(_FIELD.finditer(line))[index]
    return line[: match.start()] + value + line[match.end() :]


def _unescape(field: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)
