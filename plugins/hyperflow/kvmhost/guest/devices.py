"""The guest's file systems, and which of them a device name of its configuration means.

The appliance has the disks in the manifest's order, which is the source's; so ``/dev/sda`` there is the guest's first
disk. Names that hang on VMware's controllers are resolved by what is known of the disks, or not at all: which
controller a disk was on is not known here, so a place on one of several controllers means any disk.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

TOKENS = ("UUID", "LABEL", "PARTUUID", "PARTLABEL")

_LETTERS = re.compile(r"/dev/(sd|hd|xvd|vd)([a-z]{1,2})(\d*)")
_NVME = re.compile(r"/dev/nvme0n(\d{1,4})(?:p(\d+))?")
_BY = re.compile(r"/dev/disk/by-(uuid|label|partuuid|partlabel)/(.+)")
_BY_PATH = re.compile(
    r"/dev/disk/by-path/.+?-(?:scsi-\d+:\d+:\d{1,4}:\d+|sas-phy\d{1,4}-lun-0|ata-\d{1,4}(?:\.\d+)?|nvme-\d{1,4})(?:-part(\d+))?"
)
_BY_ID = re.compile(r"/dev/disk/by-id/(?:scsi|wwn|ata|nvme)-(.+?)(?:-part(\d+))?")
_MAPPER = re.compile(r"/dev/mapper/(.+)")
_VMWARE_NAME = re.compile(
    r"/dev/(?:(?:sd|hd)[a-z]{1,2}\d*|nvme\d+n\d+(?:p\d+)?|disk/by-path/.+|disk/by-id/(?:scsi|wwn|ata|nvme)-.+)"
)


@dataclass(frozen=True)
class FileSystem:
    """A file system, swap area or encrypted volume.

    :param device: as the appliance names it: /dev/sda1, /dev/vg/lv
    :param type: as blkid names it: ext4, xfs, swap, crypto_LUKS, ...
    :param disk_id: the disk that holds it, or the first of its volume group's
    """

    device: str
    type: str
    uuid: str
    label: str
    disk_id: str | None


class Devices:
    """What is known of a guest's disks and file systems; pure once it was read.

    :param filesystems: all of them
    :param disk_ids: in the order of the guest's disks
    :param partuuids: device -> PARTUUID, where known and no volume group has the partition
    :param serials: lower-case hex digits that a by-id name holds (VMware's disk UUID) -> index of the disk
    """

    def __init__(
        self,
        filesystems: Sequence[FileSystem],
        disk_ids: Sequence[str],
        partuuids: dict[str, str] | None = None,
        serials: dict[str, int] | None = None,
    ) -> None:
        self.filesystems = tuple(filesystems)
        self.disk_ids = tuple(disk_ids)
        self._by_device = {one.device: one for one in filesystems}
        self._serials = serials or {}
        # A table may have a hundred thousand entries, and a disk thousands of volumes. The first of a name counts.
        reverse = self.filesystems[::-1]
        self._by_uuid = {one.uuid.lower(): one for one in reverse}
        self._by_label = {one.label: one for one in reverse}
        self._by_mapper = {_mapper_name(one.device): one for one in reverse}
        self._partuuids = partuuids or {}
        self._by_partuuid = {found.lower(): device for device, found in reversed((partuuids or {}).items())}
        self._partuuid_counts = Counter(self._partuuids.values())
        self._uuids = Counter(one.uuid for one in filesystems)

    def find(self, spec: str) -> FileSystem | None:
        """Find the file system that a name of fstab, crypttab or a kernel command line means; None for none."""
        spec = spec.strip('"')
        token, equals, value = spec.partition("=")
        if equals and token.upper() in TOKENS:
            return self._by_token(token.lower(), value.strip('"'))
        match = _BY.fullmatch(spec)
        if match:
            return self._by_token(match[1], re.sub(r"\\x([0-9a-fA-F]{2})", lambda hit: chr(int(hit[1], 16)), match[2]))
        match = _MAPPER.fullmatch(spec)
        if match:
            return self._by_mapper.get(match[1])
        if spec in self._by_device:
            return self._by_device[spec]
        device = self._device(spec)
        return None if device is None else self._by_device.get(device)

    def uuid_name(self, spec: str) -> str | None:
        """Give ``UUID=...`` for a device name that another controller would change; None where that is impossible."""
        found = self.find(spec)
        if found is None or not found.uuid or not hangs_on_hardware(spec):
            return None
        if self._uuids[found.uuid] > 1:
            return None  # a cloned disk: the name would be ambiguous
        return f"UUID={found.uuid}"

    def partition_name(self, spec: str) -> str | None:
        """Give a link of udev's for a partition that another controller would call otherwise; None where there is none.

        It serves where no file system has a UUID: an area for swap that each boot encrypts anew. One that holds
        anything else is given none, for an entry that is mistaken would destroy it; nor is one that seems to be empty
        when another disk may be meant: raw data looks like that too.
        """
        device = self._device(spec) if hangs_on_hardware(spec) else None
        partuuid = self._partuuids.get(device or "")
        found = self._by_device.get(device or "")
        if not partuuid or self._partuuid_counts[partuuid] > 1:
            return None
        is_certain = self._is_only_disk() if found is None else found.type == "swap"
        return f"/dev/disk/by-partuuid/{partuuid}" if is_certain else None

    def _by_token(self, kind: str, value: str) -> FileSystem | None:
        if kind == "uuid":
            return self._by_uuid.get(value.lower())
        if kind == "label":
            return self._by_label.get(value)
        if kind == "partuuid":
            return self._by_device.get(self._by_partuuid.get(value.lower(), ""))
        return None

    def _device(self, spec: str) -> str | None:
        place = self._place(spec)
        return None if place is None else f"/dev/{disk_name(place[0])}{place[1]}"

    def _place(self, spec: str) -> tuple[int, str] | None:
        """Which disk, by index, and which partition a hardware name means."""
        match = _LETTERS.fullmatch(spec)
        if match:
            index = 0
            for letter in match[2]:
                index = index * 26 + ord(letter) - ord("a") + 1
            return index - 1, match[3]
        match = _NVME.fullmatch(spec)
        if match:
            return (int(match[1]) - 1, match[2] or "") if self._is_only_disk() else None
        match = _BY_PATH.fullmatch(spec)
        if match:
            return (0, match[1] or "") if self._is_only_disk() else None
        match = _BY_ID.fullmatch(spec)
        if match:
            digits = match[1].lower().replace("-", "")
            known = (index for serial, index in self._serials.items() if serial and serial in digits)
            index = next(known, 0 if self._is_only_disk() else -1)
            return (index, match[2] or "") if index >= 0 else None
        return None

    def _is_only_disk(self) -> bool:
        """Whether a name of a controller's place can mean one disk only.

        With two disks the first place may be each one's: the second disk can be the first of another controller, and
        nvme0n1 the second disk of a guest whose first is a SCSI disk.
        """
        return len(self.disk_ids) == 1


def hangs_on_hardware(spec: str) -> bool:
    """Whether a device name changes with the controller: /dev/sda1, by-path, by-id of a disk; not UUID=, LVM, ..."""
    return _VMWARE_NAME.fullmatch(spec.strip('"')) is not None


def disk_name(index: int) -> str:
    """Name a disk as the kernel does: 0 is sda, 26 is sdaa."""
    name = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        name = chr(ord("a") + letter) + name
    return f"sd{name}"


def read(handle: Any, disk_ids: Sequence[str], serials: dict[str, int] | None = None) -> Devices:
    """Read file systems and identifiers from the appliance."""
    holders = _volume_group_disks(handle)
    disks, partitions = handle.list_devices(), handle.list_partitions()
    parted = {handle.part_to_dev(partition) for partition in partitions}
    # guestfs' list_filesystems does the same and more, in three times the time
    blocks = [*(disk for disk in disks if disk not in parted), *partitions, *handle.lvs(), *handle.list_md_devices()]
    filesystems: list[FileSystem] = []
    partuuids = {}
    for device in blocks:
        try:
            tags = handle.blkid(device)
        except RuntimeError:
            continue  # nothing that blkid knows: an empty partition, GRUB's, an extended one
        name = holders.get(device.split("/")[2], device) if device.count("/") > 2 else device
        index = _disk_index(name)
        disk_id = disk_ids[index] if index is not None and index < len(disk_ids) else None
        if tags.get("TYPE") == "LVM2_member":
            continue
        if "PART_ENTRY_UUID" in tags:
            partuuids[device] = tags["PART_ENTRY_UUID"]
        if "TYPE" in tags:
            filesystems.append(FileSystem(device, tags["TYPE"], tags.get("UUID", ""), tags.get("LABEL", ""), disk_id))
    return Devices(filesystems, disk_ids, partuuids, serials)


def device_of(mountable: str, blocks: Sequence[str]) -> str:
    """Take the device out of a mountable: ``btrfsvol:/dev/sda2/@home`` is a subvolume of /dev/sda2.

    guestfs' own mountable_device gives the name of the appliance's kernel, which can be another disk's in the API.

    :param blocks: disks, partitions and logical volumes
    """
    if not mountable.startswith("btrfsvol:"):
        return mountable
    rest = mountable[len("btrfsvol:") :]
    return max((block for block in blocks if rest.startswith(f"{block}/")), key=len, default=rest)


def _volume_group_disks(handle: Any) -> dict[str, str]:
    """The first physical volume of each volume group."""
    groups = handle.vgs()
    if not groups:
        return {}
    volumes = {handle.pvuuid(device).replace("-", ""): device for device in handle.pvs()}
    holders: dict[str, str] = {}
    for group in groups:
        known: Iterable[str] = (volumes.get(uuid.replace("-", ""), "") for uuid in handle.vgpvuuids(group))
        holders[group] = next((device for device in known if device), "")
    return holders


def _disk_index(device: str) -> int | None:
    match = _LETTERS.fullmatch(device)
    if match is None:
        return None
    index = 0
    for letter in match[2]:
        index = index * 26 + ord(letter) - ord("a") + 1
    return index - 1


def _mapper_name(device: str) -> str | None:
    """/dev/my-group/root is my--group-root below /dev/mapper."""
    parts = device.split("/")
    if len(parts) != 4:
        return None
    return "-".join(part.replace("-", "--") for part in parts[2:])
