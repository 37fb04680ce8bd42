"""fstab and crypttab: only the name of the device changes."""

from __future__ import annotations

import pytest
from hyperflow.kvmhost.guest import fstab
from hyperflow.kvmhost.guest.devices import Devices, FileSystem, hangs_on_hardware
from hyperflow.kvmhost.guest.files import decode, encode
from hypothesis import given
from hypothesis import strategies as st

ROOT = FileSystem("/dev/sda1", "ext4", "11111111-aaaa", "", "disk-0")
SWAP = FileSystem("/dev/sda2", "swap", "22222222-bbbb", "", "disk-0")
DATA = FileSystem("/dev/sdb1", "xfs", "33333333-cccc", "my data", "disk-1")
VOLUME = FileSystem("/dev/my-group/home", "ext4", "44444444-dddd", "", "disk-1")
GUEST = Devices(
    [ROOT, SWAP, DATA, VOLUME], ["disk-0", "disk-1"], {"/dev/sdb1": "0abc-01"}, {"6000c29f0a" + "0" * 22: 1}
)
ONE_DISK = Devices([ROOT], ["disk-0"])

TABLE = """# /etc/fstab
/dev/sda1\t/               ext4    errors=remount-ro 0       1

UUID=22222222-bbbb none swap sw 0 0
   /dev/sdb1   /srv/my\\040data  xfs defaults 0 2 # the data
/dev/mapper/my--group-home /home ext4 defaults 0 2
/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0
nas:/export /mnt nfs defaults 0 0
"""


def test_only_the_device_names_change_and_not_a_byte_else() -> None:
    done = fstab.stabilize_fstab(TABLE, fstab.STABILIZE_ALL, GUEST)
    expected = TABLE.replace("/dev/sda1\t", "UUID=11111111-aaaa\t").replace("/dev/sdb1 ", "UUID=33333333-cccc ")
    assert done.text == expected
    assert done.left == ()
    assert done.changed == ("line 2: /dev/sda1 is UUID=11111111-aaaa", "line 5: /dev/sdb1 is UUID=33333333-cccc")


def test_a_stable_table_is_left_as_it_is() -> None:
    once = fstab.stabilize_fstab(TABLE, fstab.STABILIZE_ALL, GUEST).text
    assert fstab.stabilize_fstab(once, fstab.STABILIZE_ALL, GUEST).changed == ()


def test_bytes_that_are_no_utf8_survive() -> None:
    table = b"# gr\xfc\xdfe\r\n/dev/sda1 / ext4 defaults 0 1\r\n"
    done = fstab.stabilize_fstab(decode(table), fstab.STABILIZE_ALL, GUEST)
    assert encode(done.text) == table.replace(b"/dev/sda1", b"UUID=11111111-aaaa")


@given(st.binary(max_size=300))
def test_no_table_is_too_strange_to_be_kept(content: bytes) -> None:
    done = fstab.stabilize_fstab(decode(content), fstab.STABILIZE_ALL, ONE_DISK)
    if not done.changed:
        assert encode(done.text) == content


def test_mode_noop_changes_nothing_and_tells_what_stays() -> None:
    done = fstab.stabilize_fstab(TABLE, fstab.NOOP, GUEST)
    assert done.text == TABLE
    assert [entry.field(0) for entry, _ in done.left] == ["/dev/sda1", "/dev/sdb1"]


def test_mode_bypath_only_changes_only_names_by_path() -> None:
    by_path = "/dev/disk/by-path/pci-0000:03:00.0-scsi-0:0:1:0-part1"
    guest = Devices([ROOT, SWAP], ["disk-0"])
    done = fstab.stabilize_fstab(
        f"{by_path} / ext4 defaults 0 1\n/dev/sda2 none swap sw 0 0\n", fstab.BYPATH_ONLY, guest
    )
    assert done.text == "UUID=11111111-aaaa / ext4 defaults 0 1\n/dev/sda2 none swap sw 0 0\n"


@pytest.mark.parametrize(
    ("spec", "device"),
    [
        ("/dev/sdb1", "/dev/sdb1"),
        ("UUID=33333333-CCCC", "/dev/sdb1"),
        ('LABEL="my data"', "/dev/sdb1"),
        ("PARTUUID=0ABC-01", "/dev/sdb1"),
        ("/dev/disk/by-uuid/33333333-cccc", "/dev/sdb1"),
        ("/dev/disk/by-label/my\\x20data", "/dev/sdb1"),
        ("/dev/disk/by-id/scsi-36000c29f0a" + "0" * 22 + "-part1", "/dev/sdb1"),
        ("/dev/disk/by-id/wwn-0x6000c29f0a" + "0" * 22 + "-part1", "/dev/sdb1"),
        ("/dev/hda2", "/dev/sda2"),
        ("/dev/mapper/my--group-home", "/dev/my-group/home"),
        ("/dev/my-group/home", "/dev/my-group/home"),
    ],
)
def test_every_way_to_name_a_device_is_understood(spec: str, device: str) -> None:
    found = GUEST.find(spec)
    assert found is not None
    assert found.device == device


@pytest.mark.parametrize(
    "spec", ["/dev/sdc1", "/dev/sda9", "UUID=none", "tmpfs", "/dev/sr0", "", "/dev/disk/by-id/scsi-x"]
)
def test_what_is_not_there_is_not_guessed(spec: str) -> None:
    assert GUEST.find(spec) is None


BY_PLACE = (
    "/dev/disk/by-path/pci-0000:13:00.0-scsi-0:0:0:0-part1",
    "/dev/disk/by-path/pci-0000:02:01.0-sas-phy0-lun-0-part1",
    "/dev/disk/by-path/pci-0000:02:03.0-ata-1-part1",
    "/dev/disk/by-path/pci-0000:0b:00.0-nvme-1-part1",
    "/dev/nvme0n1p1",
)


@pytest.mark.parametrize("spec", BY_PLACE)
def test_the_only_disk_is_meant_whatever_its_path_says(spec: str) -> None:
    assert ONE_DISK.find(spec) == ROOT


def test_the_only_disk_is_meant_by_any_serial_number() -> None:
    assert ONE_DISK.find("/dev/disk/by-id/scsi-36000c2911111111111111111-part1") == ROOT


@pytest.mark.parametrize("spec", BY_PLACE)
def test_a_place_on_a_controller_means_none_of_several_disks(spec: str) -> None:
    """The second disk may be the first one of a second controller, or the only one on NVMe."""
    assert GUEST.find(spec) is None
    done = fstab.stabilize_fstab(f"{spec} /data xfs defaults 0 0\n", fstab.STABILIZE_ALL, GUEST)
    assert done.changed == ()
    assert "not certain which disk it means" in done.left[0][1]


def test_an_entry_whose_type_does_not_fit_the_disk_is_left_with_the_reason() -> None:
    done = fstab.stabilize_fstab("/dev/sdb1 /srv ext4 defaults 0 2\n", fstab.STABILIZE_ALL, GUEST)
    ((entry, reason),) = done.left
    assert entry.needed
    assert "type xfs" in reason


@pytest.mark.parametrize(
    ("driver", "kind"), [("ext4", "ext3"), ("ext4", "ext2"), ("ntfs-3g", "ntfs"), ("ntfs3", "ntfs")]
)
def test_a_driver_may_mount_another_kind_than_its_own(driver: str, kind: str) -> None:
    guest = Devices([FileSystem("/dev/sda1", kind, "1111", "", "disk-0")], ["disk-0"])
    done = fstab.stabilize_fstab(f"/dev/sda1 /srv {driver} defaults 0 2\n", fstab.STABILIZE_ALL, guest)
    assert (done.text, done.left) == (f"UUID=1111 /srv {driver} defaults 0 2\n", ())
    assert fstab.stabilize_fstab("/dev/sda1 /srv xfs defaults 0 2\n", fstab.STABILIZE_ALL, guest).left


def test_a_uuid_that_two_file_systems_share_is_not_used() -> None:
    clone = FileSystem("/dev/sdb1", "ext4", ROOT.uuid, "", "disk-1")
    done = fstab.stabilize_fstab(
        "/dev/sda1 / ext4 defaults 0 1\n", fstab.STABILIZE_ALL, Devices([ROOT, clone], ["a", "b"])
    )
    assert done.changed == ()
    assert "shares" in done.left[0][1]


def test_entries_that_a_boot_does_not_wait_for_are_told_apart() -> None:
    needed, later = fstab.entries(
        "/dev/sdc1 /a ext4 defaults 0 0\n/dev/sdc2 /b ext4 nofail,x-systemd.device-timeout=5 0 0\n"
    )
    assert needed.needed
    assert not later.needed


def test_a_bind_mount_is_no_file_system_of_a_disk() -> None:
    (entry,) = fstab.entries("/dev/sda1 /x none bind 0 0")
    assert fstab.filesystem_of(entry, GUEST) is None


def test_crypttab_changes_in_its_second_field() -> None:
    luks = Devices([FileSystem("/dev/sdb2", "crypto_LUKS", "5555-eeee", "", "disk-1")], ["a", "b"])
    done = fstab.stabilize_crypttab("# name device\nsecret\t/dev/sdb2 none luks\n", fstab.STABILIZE_ALL, luks)
    assert done.text == "# name device\nsecret\tUUID=5555-eeee none luks\n"


SWAP_TABLE = "cryptswap1 /dev/sdb2 /dev/urandom swap,cipher=aes-xts-plain64\n"


@pytest.mark.parametrize(
    ("there", "disks", "device"),
    [([], ["a"], "/dev/sda2"), ([FileSystem("/dev/sdb2", "swap", "6666-ffff", "", "disk-1")], ["a", "b"], "/dev/sdb2")],
)
def test_swap_that_each_boot_encrypts_anew_is_named_by_its_partition(
    there: list[FileSystem], disks: list[str], device: str
) -> None:
    table = SWAP_TABLE.replace("/dev/sdb2", device)
    guest = Devices([ROOT, *there], disks, {"/dev/sda1": "0a-01", device: "0b-02"})
    done = fstab.stabilize_crypttab(table, fstab.STABILIZE_ALL, guest)
    assert done.text == table.replace(device, "/dev/disk/by-partuuid/0b-02")
    assert done.left == ()


@pytest.mark.parametrize(
    ("there", "partuuids"),
    [
        ([], {}),
        ([], {"/dev/sdb2": "0b-02"}),  # raw data on one of two disks has no signature either
        ([], {"/dev/sda2": "0b-02", "/dev/sdb2": "0b-02"}),
        ([FileSystem("/dev/sdb2", "ext4", "6666-ffff", "", "disk-1")], {"/dev/sdb2": "0b-02"}),
    ],
)
def test_what_a_boot_would_write_over_is_not_guessed(there: list[FileSystem], partuuids: dict[str, str]) -> None:
    done = fstab.stabilize_crypttab(SWAP_TABLE, fstab.STABILIZE_ALL, Devices([ROOT, *there], ["a", "b"], partuuids))
    assert done.changed == ()
    ((entry, _),) = done.left
    assert entry.needed


def test_names_that_follow_the_controller_are_known() -> None:
    assert all(
        map(hangs_on_hardware, ["/dev/sda", "/dev/sdaa12", "/dev/hdb1", "/dev/nvme0n1p1", "/dev/disk/by-path/x"])
    )
    assert not any(map(hangs_on_hardware, ["/dev/sr0", "/dev/mapper/a-b", "UUID=1", "/dev/md0", "/dev/disk/by-uuid/1"]))


@pytest.mark.parametrize(
    "spec", ["/dev/nvme0n{}p1", "/dev/disk/by-path/pci-0-scsi-0:0:{}:0", "/dev/disk/by-path/pci-0-nvme-{}"]
)
def test_a_number_of_megabytes_is_no_disks_and_ends_nothing(spec: str) -> None:
    name = spec.format("1" * (1 << 20))
    assert GUEST.find(name) is None
    assert hangs_on_hardware(name)


def test_a_table_of_a_hundred_thousand_entries_over_thousands_of_volumes_is_read_at_once() -> None:
    volumes = [
        FileSystem(f"/dev/vg/v{number}", "ext4", f"u-{number}", f"l{number}", "disk-0") for number in range(5000)
    ]
    guest = Devices(volumes, ["disk-0"])
    kinds = ("UUID=u-4999", "LABEL=l4999", "/dev/mapper/vg-v4999", "LABEL=none")
    found = [fstab.filesystem_of(entry, guest) for entry in fstab.entries("\n".join(kinds)) * 25_000]
    assert found == [volumes[4999], volumes[4999], volumes[4999], None] * 25_000


def test_the_first_of_two_file_systems_of_a_name_is_meant() -> None:
    twins = [FileSystem(f"/dev/sda{number}", "ext4", "AA", "same", "disk-0") for number in (1, 2)]
    guest = Devices(twins, ["disk-0"], {"/dev/sda2": "0A", "/dev/sda1": "0a"})
    assert [guest.find(name) for name in ("UUID=aa", "LABEL=same")] == [twins[0]] * 2
    assert guest.find("PARTUUID=0a") == twins[1]
    assert guest.uuid_name("/dev/sda1") is None, "the name would be ambiguous"
