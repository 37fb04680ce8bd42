"""Which of what lies on the disks is the operating system, without an appliance."""

from __future__ import annotations

import pytest
from hyperflow.kvmhost.guest import inspection

SNAPSHOTS = [f"btrfsvol:/dev/sda2/@/.snapshots/{number}/snapshot" for number in (2, 30)]


@pytest.mark.parametrize("root", ["/dev/sda2", "btrfsvol:/dev/sda2/root", "btrfsvol:/dev/sda2/@rootfs"])
def test_snapshots_of_snapper_are_no_operating_systems(root: str) -> None:
    assert inspection.without_snapshots([root, *SNAPSHOTS], ["/dev/sda2"]) == [root]


def test_snapshots_alone_and_those_of_another_disk_stay_and_are_told() -> None:
    blocks = ["/dev/sda2", "/dev/sdb1"]
    assert inspection.without_snapshots(SNAPSHOTS, blocks) == SNAPSHOTS
    assert inspection.without_snapshots(["/dev/sdb1", *SNAPSHOTS], blocks) == ["/dev/sdb1", *SNAPSHOTS]


def test_two_operating_systems_on_one_btrfs_stay_two() -> None:
    roots = ["btrfsvol:/dev/sda2/fedora", "btrfsvol:/dev/sda2/debian"]
    assert inspection.without_snapshots(roots, ["/dev/sda2"]) == roots
