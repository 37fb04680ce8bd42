"""The probe is put where the guest's systemd is, however its file systems are laid out."""

from __future__ import annotations

from typing import Any

import pytest
from hyperflow.kvmhost.probe import plant
from hyperflow.kvmhost.probe.plant import Root
from hyperflow.kvmhost.stage import Job, StageError
from hyperflow.kvmhost.stages import boot

Trees = dict[tuple[str, str], set[str]]


class Images:
    """Stands in for the guestfs handle.

    :param trees: the files and folders of each (device, mount options); devices are found by their name as UUID
    """

    def __init__(self, trees: Trees) -> None:
        self.trees = trees
        self.mounted: dict[str, set[str]] = {}
        self.written: list[str] = []

    def __enter__(self) -> Images:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing runs."""

    def findfs_uuid(self, uuid: str) -> str:
        if not any(device == uuid for device, _ in self.trees):
            raise RuntimeError("no such file system")
        return uuid

    def mount_options(self, options: str, device: str, place: str) -> None:
        if (device, options) not in self.trees:
            raise RuntimeError(f"mount: {options} on {device}: no such subvolume")
        self.mounted[place.rstrip("/")] = self.trees[device, options]

    def umount(self, place: str) -> None:
        del self.mounted[place.rstrip("/")]

    def is_dir(self, path: str, followsymlinks: bool = False) -> bool:
        return any(place + one == path for place, tree in self.mounted.items() for one in tree)

    def is_file(self, path: str, followsymlinks: bool = False) -> bool:
        return self.is_dir(path) and path.endswith(("/systemd", plant.RELABEL))

    def realpath(self, path: str) -> str:
        return path

    def write(self, path: str, content: object) -> None:
        self.written.append(path)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None  # rm_f, mkdir_p, chmod, ln_s


def planted(monkeypatch: pytest.MonkeyPatch, trees: Trees, root: Root) -> bool:
    images = Images(trees)
    monkeypatch.setattr(plant, "Appliance", lambda *_, **__: images)
    found = plant.plant([], root, "nonce", Job("boot"))
    assert found.nonce == ("nonce" if plant.UNIT in images.written else None)
    assert found.relabels is images.is_dir(plant.RELABEL)
    return found.nonce is not None


USR = {("r", ""): {"/etc", "/usr"}, ("u", ""): {"/lib/systemd/systemd"}}


def test_a_usr_of_its_own_is_mounted_to_find_systemd_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planted(monkeypatch, USR, Root("r", "/dev/sda1", "ext4", "u", "defaults"))


def test_a_guest_without_systemd_is_given_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    trees: Trees = {("r", ""): {"/etc", "/usr"}, ("u", ""): set()}
    assert not planted(monkeypatch, trees, Root("r", "/dev/sda1", "ext4", "u"))


def test_a_guest_that_will_relabel_its_files_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    trees: Trees = {("r", ""): {"/etc", "/usr/lib/systemd/systemd", "/.autorelabel"}}
    assert planted(monkeypatch, trees, Root("r", "/dev/sda1", "xfs"))


def test_a_usr_that_is_in_none_of_the_images_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match="none of the images has the file system of /usr with UUID v"):
        planted(monkeypatch, USR, Root("r", "/dev/sda1", "ext4", "v"))


@pytest.mark.parametrize("subvolume", ["@", "@rootfs", "root", "@/.snapshots/1/snapshot"])
def test_the_root_is_found_in_whatever_subvolume_the_distribution_puts_it(
    monkeypatch: pytest.MonkeyPatch, subvolume: str
) -> None:
    trees: Trees = {("r", ""): {"/other"}, ("r", f"subvol={subvolume}"): {"/etc", "/usr/lib/systemd/systemd"}}
    assert planted(monkeypatch, trees, Root("r", "/dev/sda1", "btrfs"))


def test_a_file_system_without_a_root_in_any_subvolume_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match="found no /etc"):
        planted(monkeypatch, {("r", ""): {"/other"}}, Root("r", "/dev/sda1", "btrfs"))


def test_the_stage_takes_usr_of_the_mounts_that_are_expected() -> None:
    mounts = [{"path": "/", "uuid": "r"}, {"path": "/usr/", "uuid": "u", "fstype": "btrfs", "options": "subvol=usr"}]
    root = {"uuid": "r", "device": "/dev/sda1", "fstype": "ext4"}
    assert boot._root({"root": root, "mounts": mounts}) == Root("r", "/dev/sda1", "ext4", "u", "subvol=usr")
    assert boot._root({"root": root}) == Root("r", "/dev/sda1", "ext4")
