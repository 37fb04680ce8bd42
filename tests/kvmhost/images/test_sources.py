"""Sources: an image that would make QEMU open other files is refused before QEMU sees it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hyperflow.kvmhost.images import sources
from hyperflow.kvmhost.stage import BadRequest


def image(path: Path, source_format: str, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", source_format, *options, str(path), "4M"], check=True)
    return path


def test_a_qcow2_with_a_backing_file_is_refused(tmp_path: Path) -> None:
    base = image(tmp_path / "base.qcow2", "qcow2")
    with pytest.raises(BadRequest, match="backing file"):
        sources.require_self_contained(image(tmp_path / "d.qcow2", "qcow2", "-b", str(base), "-F", "qcow2"), "qcow2")


def test_a_qcow2_with_an_external_data_file_is_refused(tmp_path: Path) -> None:
    staged = image(tmp_path / "d.qcow2", "qcow2", "-o", f"data_file={tmp_path / 'data.raw'}")
    with pytest.raises(BadRequest, match="another file"):
        sources.require_self_contained(staged, "qcow2")


def test_a_vmdk_with_a_parent_is_refused(tmp_path: Path) -> None:
    base = image(tmp_path / "base.vmdk", "vmdk")
    with pytest.raises(BadRequest, match="parent"):
        sources.require_self_contained(image(tmp_path / "d.vmdk", "vmdk", "-b", str(base), "-F", "vmdk"), "vmdk")


@pytest.mark.parametrize("name", ["/etc/shadow", "../secret", "link", "missing"])
def test_a_vmdk_descriptor_that_names_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    staged = tmp_path / "d.vmdk"
    staged.write_text(f'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\nRW 8192 FLAT "{name}" 0\n')
    with pytest.raises(BadRequest, match="own folder"):
        sources.require_self_contained(staged, "vmdk")


def test_a_vmdk_descriptor_with_its_extent_beside_it_is_taken(tmp_path: Path) -> None:
    staged = image(tmp_path / "d.vmdk", "vmdk", "-o", "subformat=monolithicFlat")
    sources.require_self_contained(staged, "vmdk")


def test_a_vmdk_of_no_capacity_is_refused_because_qemu_would_follow_its_descriptor(tmp_path: Path) -> None:
    staged = image(tmp_path / "d.vmdk", "vmdk")
    content = bytearray(staged.read_bytes())
    content[12:20] = bytes(8)
    staged.write_bytes(content)
    with pytest.raises(BadRequest, match="capacity of 0"):
        sources.require_self_contained(staged, "vmdk")
