"""Overlays: over disks that are whole, and only over them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from hyperflow.kvmhost.guest import overlay
from hyperflow.kvmhost.manifest_file import Disk
from hyperflow.kvmhost.stage import Job


def disk(path: Path, source_format: str, disk_id: str = "disk-0") -> Disk:
    return Disk(disk_id, source_format, path.stat().st_size, path, None, 0, "boot", None)


def image(path: Path, source_format: str, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", source_format, *options, str(path), "4M"], check=True)
    return path


@pytest.mark.parametrize("source_format", ["raw", "qcow2", "vmdk"])
def test_an_overlay_names_its_backing_file_and_its_format(tmp_path: Path, source_format: str) -> None:
    staged = image(tmp_path / "a disk, 1.img", source_format)
    folder = tmp_path / "work"
    folder.mkdir()
    before = hashlib.sha256(staged.read_bytes()).hexdigest()
    job = Job("fix")
    (made,) = overlay.create([disk(staged, source_format)], folder, job).values()
    said = subprocess.run(["qemu-img", "info", "--output=json", str(made)], check=True, capture_output=True, text=True)
    facts = json.loads(said.stdout)
    assert facts["backing-filename"] == str(staged)
    assert facts["backing-filename-format"] == source_format
    assert hashlib.sha256(staged.read_bytes()).hexdigest() == before
    assert job.tools["qemu-img"][0].isdigit()


def test_a_raw_disk_that_looks_like_a_qcow2_with_a_backing_file_stays_raw(tmp_path: Path) -> None:
    image(tmp_path / "base.qcow2", "qcow2")
    staged = image(tmp_path / "trap.raw", "qcow2", "-b", str(tmp_path / "base.qcow2"), "-F", "qcow2")
    folder = tmp_path / "work"
    folder.mkdir()
    (made,) = overlay.create([disk(staged, "raw")], folder, Job("fix")).values()
    said = subprocess.run(["qemu-img", "info", "--output=json", str(made)], check=True, capture_output=True, text=True)
    assert json.loads(said.stdout)["virtual-size"] == -(-staged.stat().st_size // 512) * 512


def test_the_uuid_that_vmware_gave_a_disk_is_read_from_its_descriptor(tmp_path: Path) -> None:
    staged = tmp_path / "d.vmdk"
    staged.write_text('# Disk DescriptorFile\nddb.uuid = "60 00 C2 9a 1b 2c 3d 4e-5f 60 71 82 93 a4 b5 c6"\n')
    assert overlay.serials([disk(staged, "vmdk")]) == {"6000c29a1b2c3d4e5f60718293a4b5c6": 0}


@pytest.mark.parametrize("written", ["d.vmdk", "d-flat.vmdk"])
def test_a_write_to_any_file_of_a_disk_shows_in_its_state(tmp_path: Path, written: str) -> None:
    """The data of a disk of several files is in its extents: its own file is the small text beside them."""
    disks = [disk(image(tmp_path / "d.vmdk", "vmdk", "-o", "subformat=monolithicFlat"), "vmdk")]
    before = overlay.state(disks)
    assert overlay.state(disks) == before
    found = (tmp_path / written).stat()
    os.utime(tmp_path / written, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    assert overlay.state(disks) != before
