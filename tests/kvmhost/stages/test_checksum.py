"""The checksum of a staged disk."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hyperflow.kvmhost.manifest_file import ManifestReference
from hyperflow.kvmhost.stage import BadRequest, Job
from hyperflow.kvmhost.stages import checksum

from tests.kvmhost.images import images
from tests.kvmhost.stages import running, staged


def staged_disk(folder: Path) -> Path:
    path = folder / "disk.vmdk"
    path.write_bytes(images.noise(1, 3_000_001))
    return path


def ask(reference: dict[str, str]) -> checksum.Options:
    return checksum.Options(ManifestReference(Path(reference["path"]), reference["sha256"]), "disk-0")


def test_a_disk_that_is_what_the_manifest_says_matches(tmp_path: Path) -> None:
    path = staged_disk(tmp_path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    result = running.run("checksum", {"manifest": staged.manifest(tmp_path, path), "disk_id": "disk-0"})

    assert result["exit_status"] == 0, result["log"]
    assert result["observed"] == {
        "disk_id": "disk-0",
        "path": str(path),
        "bytes": 3_000_001,
        "sha256": sha256,
        "matches": True,
        "expected": sha256,
    }
    assert result["bytes_read"] == 3_000_001
    assert result["warnings"] == []


@pytest.mark.parametrize("offset", [0, 1_500_000, 3_000_000])
def test_a_changed_byte_is_found(tmp_path: Path, offset: int) -> None:
    path = staged_disk(tmp_path)
    reference = staged.manifest(tmp_path, path)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))

    with pytest.raises(BadRequest, match="export the disk again"):
        checksum.run(ask(reference), Job("checksum"))


@pytest.mark.parametrize("change", [-1, 1])
def test_another_size_is_found(tmp_path: Path, change: int) -> None:
    path = staged_disk(tmp_path)
    reference = staged.manifest(tmp_path, path)
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"x")

    with pytest.raises(BadRequest, match=rf"found {len(data) + change} bytes"):
        checksum.run(ask(reference), Job("checksum"))


def test_a_disk_without_a_checksum_is_a_warning(tmp_path: Path) -> None:
    path = staged_disk(tmp_path)
    job = Job("checksum")

    observed = checksum.run(ask(staged.manifest(tmp_path, path, checksum=None)), job)

    assert observed["matches"] is None
    assert observed["expected"] is None
    assert len(job.warnings) == 1
    assert observed["sha256"] in job.warnings[0]


def test_a_bad_request_is_never_retried(tmp_path: Path) -> None:
    reference = staged.manifest(tmp_path, staged_disk(tmp_path))

    result = running.run("checksum", {"manifest": reference, "disk_id": "disk-7"})

    assert result["exit_status"] == 64
    assert "disk-7" in result["error"]["message"]


def test_extents_that_the_checksum_does_not_cover_are_told(tmp_path: Path) -> None:
    """The manifest vouches for the descriptor's text; what the extent holds may be anything."""
    path = tmp_path / "disk.vmdk"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", str(path), "4M"], check=True
    )
    reference = staged.manifest(tmp_path, path)
    with (tmp_path / "disk-flat.vmdk").open("r+b") as file:
        file.write(b"changed")
    job = Job("checksum")

    observed = checksum.run(ask(reference), job)

    assert observed["matches"] is True
    (warning,) = job.warnings
    assert warning.startswith(
        "disk disk-0: 1 extent(s) of disk.vmdk are not covered by its checksum: disk-flat.vmdk; a disk in one file"
    )


def test_of_many_extents_some_are_named(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    names = [f"disk-f{number:03}.vmdk" for number in range(30)]
    for name in names:
        (tmp_path / name).write_bytes(bytes(512))
    path.write_text("# Disk DescriptorFile\n" + "".join(f'RW 1 FLAT "{name}" 0\n' for name in names))
    job = Job("checksum")

    checksum.run(ask(staged.manifest(tmp_path, path)), job)

    (warning,) = job.warnings
    assert f"30 extent(s) of disk.vmdk are not covered by its checksum: {', '.join(names[:10])}, ...;" in warning


def test_a_descriptor_of_files_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    path.write_text('# Disk DescriptorFile\nRW 1 FLAT "/etc/shadow" 0\n')

    with pytest.raises(BadRequest, match="expected a bare name in the disk's own folder"):
        checksum.run(ask(staged.manifest(tmp_path, path)), Job("checksum"))
