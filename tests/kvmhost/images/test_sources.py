"""Sources: an image that would make QEMU open other files is refused before QEMU sees it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hyperflow.kvmhost.images import sources
from hyperflow.kvmhost.stage import BadRequest

from tests.kvmhost.images import vmdk_writer

DESCRIPTOR = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"


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


@pytest.mark.parametrize("line", [
    'RW\t8192\tFLAT\t"{0}"\t0',
    'RW\t8192 FLAT "{0}" 0',
    'RW\v8192 FLAT "{0}" 0',
    'RW\n8192\nFLAT\n"{0}"\n0',
    'RW 8192 FLAT\f"{0}" 0',
    'RW 8192 FLAT "{0}" 0 more',
    'RW 8192 FLAT "\u2028/../{0}" 0',
    'RW 8192 FLAT "\x85{0}" 0',
    'RW 8192 FLAT "file:{0}" 0',
    'RW 8192 FLAT "json:{{}}" 0',
])  # fmt: skip
def test_a_vmdk_descriptor_is_not_read_otherwise_than_qemu_reads_it(tmp_path: Path, line: str) -> None:
    """To QEMU, which takes extents by sscanf, every blank is as good as another."""
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    secret.write_bytes(b"secret".ljust(8192 * 512))
    (tmp_path / "staging" / "\u2028").mkdir(parents=True)
    staged = tmp_path / "staging" / "d.vmdk"
    staged.write_text(DESCRIPTOR + line.format(secret if line.startswith("RW") else "../elsewhere/secret") + "\n")
    with pytest.raises(BadRequest, match="extent"):
        sources.require_self_contained(staged, "vmdk")


def test_an_extent_that_is_itself_a_descriptor_is_refused_because_qemu_would_follow_it(tmp_path: Path) -> None:
    inner = (DESCRIPTOR + 'RW 8192 FLAT "/etc/shadow" 0\n').encode()
    header = vmdk_writer.Header(0, flags=3, directory=0, method=0)
    (tmp_path / "inner.vmdk").write_bytes(header.pack() + inner.ljust(20 * 512, b"\0"))
    staged = tmp_path / "d.vmdk"
    staged.write_text(DESCRIPTOR + 'RW 8192 SPARSE "inner.vmdk"\n')
    with pytest.raises(BadRequest, match=r"inner.vmdk: the sparse header has a capacity of 0"):
        sources.require_self_contained(staged, "vmdk")


def test_a_line_that_is_no_descriptors_is_refused(tmp_path: Path) -> None:
    staged = tmp_path / "d.vmdk"
    staged.write_text(DESCRIPTOR + "and this\n")
    with pytest.raises(BadRequest, match="and this"):
        sources.require_self_contained(staged, "vmdk")


@pytest.mark.parametrize("offset", [1 << 20, 2**63, 2**64 - 1])
def test_a_descriptor_behind_the_end_of_the_file_is_refused(tmp_path: Path, offset: int) -> None:
    staged = tmp_path / "d.vmdk"
    staged.write_bytes(vmdk_writer.Header(8192, flags=3, descriptor_offset=offset).pack())
    with pytest.raises(BadRequest, match="behind the file's end"):
        sources.require_self_contained(staged, "vmdk")


@pytest.mark.parametrize("subformat", ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "monolithicSparse"])
def test_every_vmdk_of_qemu_img_that_lies_in_its_own_folder_is_taken(tmp_path: Path, subformat: str) -> None:
    staged = image(tmp_path / "d.vmdk", "vmdk", "-o", f"subformat={subformat}")
    sources.require_self_contained(staged, "vmdk")
    assert not sources.is_stream_optimized(staged)


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


def test_the_extents_of_a_descriptor_are_listed_and_an_image_of_one_file_has_none(tmp_path: Path) -> None:
    flat = image(tmp_path / "d.vmdk", "vmdk", "-o", "subformat=monolithicFlat")
    assert sources.extents(flat, "vmdk") == [tmp_path / "d-flat.vmdk"]
    assert sources.extents(flat, "raw") == [], "as raw it is a file like any other"
    for subformat in ("monolithicSparse", "streamOptimized"):
        assert sources.extents(image(tmp_path / "one.vmdk", "vmdk", "-o", f"subformat={subformat}"), "vmdk") == []
    assert sources.extents(image(tmp_path / "d.qcow2", "qcow2"), "qcow2") == []


def test_extents_are_listed_once_and_in_the_order_of_the_descriptor(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_bytes(bytes(512))
    staged = tmp_path / "d.vmdk"
    staged.write_text(DESCRIPTOR + 'RW 1 FLAT "b" 0\nRW 1 ZERO\nRW 1 FLAT "a" 0\nRW 1 FLAT "b" 0\n')
    assert sources.extents(staged, "vmdk") == [tmp_path / "b", tmp_path / "a"]


@pytest.mark.parametrize("name", ["/etc/shadow", "missing"])
def test_no_extents_are_listed_of_a_descriptor_that_is_refused(tmp_path: Path, name: str) -> None:
    staged = tmp_path / "d.vmdk"
    staged.write_text(DESCRIPTOR + f'RW 1 FLAT "{name}" 0\n')
    with pytest.raises(BadRequest, match="own folder"):
        sources.extents(staged, "vmdk")
