"""The host's reader of manifests takes a sound one and lists every fault of another."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost import manifest_file
from hyperflow.kvmhost.stage import BadRequest


def disk(folder: Path, disk_id: str = "disk-0", **changes: Any) -> dict[str, Any]:
    path = folder / f"{disk_id}.vmdk"
    path.write_bytes(disk_id.encode())
    sha256 = hashlib.sha256(disk_id.encode()).hexdigest()
    entry = {
        "id": disk_id,
        "source_format": "vmdk",
        "bytes": len(disk_id),
        "local_path": str(path),
        "checksum": f"sha256:{sha256}",
    }
    return {key: value for key, value in {**entry, **changes}.items() if value is not ...}


def write(folder: Path, document: Any) -> tuple[Path, str]:
    path = folder / "artifact-manifest.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def load(folder: Path, *disks: Any) -> manifest_file.Manifest:
    return manifest_file.load(*write(folder, {"manifest_version": "1.0", "disks": list(disks)}))


def test_a_sound_manifest_is_read_with_its_defaults(tmp_path: Path) -> None:
    manifest = load(tmp_path, disk(tmp_path), disk(tmp_path, "disk-1", checksum=..., virtual_bytes=512))

    first, second = manifest.disks
    assert (first.id, first.source_format, first.bytes) == ("disk-0", "vmdk", 6)
    assert (first.boot_order_hint, first.disk_type, first.virtual_bytes) == (999, "unknown", None)
    assert first.checksum == hashlib.sha256(b"disk-0").hexdigest()
    assert (second.checksum, second.virtual_bytes) == (None, 512)
    assert manifest.disk("disk-1") is second
    assert manifest.document["disks"][0]["id"] == "disk-0"


def test_unknown_keys_are_allowed(tmp_path: Path) -> None:
    assert load(tmp_path, disk(tmp_path, vendor={"x": 1})).disks[0].id == "disk-0"


@pytest.mark.parametrize(
    ("hints", "types", "expected"),
    [
        ((None, None, None), ("unknown", "unknown", "unknown"), "012"),
        ((1, 0, 2), ("unknown", "unknown", "unknown"), "102"),
        ((0, 0, 0), ("data", "data", "boot"), "201"),
        ((5, None, None), ("data", "boot", "unknown"), "012"),
        ((None, None, 0), ("boot", "boot", "data"), "201"),
    ],
)
def test_the_boot_disk_comes_first(
    tmp_path: Path, hints: tuple[int | None, ...], types: tuple[str, ...], expected: str
) -> None:
    entries = [
        disk(tmp_path, str(n), disk_type=kind, boot_order_hint=... if hint is None else hint)
        for n, (hint, kind) in enumerate(zip(hints, types, strict=True))
    ]

    assert "".join(found.id for found in load(tmp_path, *entries).boot_order) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "../disk"),
        ("id", "disk 0"),
        ("id", "disk-0\n"),
        ("id", ""),
        ("id", 5),
        ("id", ...),
        ("source_format", "ova"),
        ("source_format", "VMDK"),
        ("source_format", ...),
        ("bytes", True),
        ("bytes", -1),
        ("bytes", 6.0),
        ("bytes", "6"),
        ("bytes", 7),
        ("bytes", ...),
        ("checksum", None),
        ("checksum", "sha256:abc"),
        ("checksum", "sha256:" + "A" * 64),
        ("checksum", "sha256:" + "a" * 64 + "\n"),
        ("checksum", "md5:" + "a" * 64),
        ("boot_order_hint", -1),
        ("boot_order_hint", True),
        ("boot_order_hint", None),
        ("disk_type", "cdrom"),
        ("virtual_bytes", "1"),
        ("local_path", ""),
        ("local_path", "disk-0.vmdk"),
        ("local_path", "/no/such/file"),
        ("local_path", "/a\0b"),
        ("local_path", "/dev/null"),
        ("local_path", "/"),
        ("local_path", ...),
        ("local_path", ["/"]),
    ],
)
def test_a_disk_that_is_wrong_is_refused_with_its_path(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=rf"disks\[1\]\.{field}"):
        load(tmp_path, disk(tmp_path), disk(tmp_path, "disk-1", **{field: value}))


def test_every_fault_is_listed_at_once(tmp_path: Path) -> None:
    bad = disk(tmp_path, "disk-1", source_format="x", bytes=True, checksum=None, disk_type="y")

    with pytest.raises(BadRequest) as fault:
        load(tmp_path, disk(tmp_path, id="a b"), bad, "no object")

    for path in ("[0].id", "[1].source_format", "[1].bytes", "[1].checksum", "[1].disk_type", "[2]"):
        assert f"disks{path}" in str(fault.value)


@pytest.mark.parametrize("field", ["id", "local_path"])
def test_two_disks_share_neither_id_nor_file(tmp_path: Path, field: str) -> None:
    first = disk(tmp_path)
    second = disk(tmp_path, "disk-1")
    second[field] = first[field]
    if field == "local_path":
        second.update(bytes=first["bytes"])

    with pytest.raises(BadRequest, match="a second time"):
        load(tmp_path, first, second)


def test_a_link_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    entry = disk(tmp_path)
    path = Path(entry["local_path"])
    (tmp_path / "elsewhere").mkdir()
    path.rename(tmp_path / "elsewhere" / "disk")
    path.symlink_to(tmp_path / "elsewhere" / "disk")

    with pytest.raises(BadRequest, match="leaves its folder"):
        load(tmp_path, entry)


def test_a_staging_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    assert load(tmp_path, disk(tmp_path / "link")).disks[0].bytes == 6


def test_a_link_that_points_to_itself_is_refused(tmp_path: Path) -> None:
    entry = disk(tmp_path)
    path = Path(entry["local_path"])
    path.unlink()
    path.symlink_to(path)

    with pytest.raises(BadRequest, match="local_path"):
        load(tmp_path, entry)


@pytest.mark.parametrize("document", ["", "{", "[]", "null", "5", "[" * 100_000, "{}", '{"manifest_version": "1.0"}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, document: str) -> None:
    with pytest.raises(BadRequest):
        manifest_file.load(*write(tmp_path, document))


@pytest.mark.parametrize("version", ["1", "2.0", 1.0, None])
def test_another_version_is_refused(tmp_path: Path, version: Any) -> None:
    with pytest.raises(BadRequest, match="manifest_version"):
        manifest_file.load(*write(tmp_path, {"manifest_version": version, "disks": [disk(tmp_path)]}))


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path) -> None:
    path, sha256 = write(tmp_path, {"manifest_version": "1.0", "disks": [disk(tmp_path)]})
    path.write_text(path.read_text() + " ")

    with pytest.raises(BadRequest, match="changed after it was made"):
        manifest_file.load(path, sha256)


def test_the_digest_may_carry_its_name(tmp_path: Path) -> None:
    path, sha256 = write(tmp_path, {"manifest_version": "1.0", "disks": [disk(tmp_path)]})

    assert manifest_file.load(path, f"sha256:{sha256}").sha256 == sha256


@pytest.mark.parametrize("sha256", ["", "abc", "A" * 64, "md5:" + "a" * 64])
def test_what_is_no_digest_is_refused(tmp_path: Path, sha256: str) -> None:
    path, _ = write(tmp_path, {})

    with pytest.raises(BadRequest, match="64 lowercase hex digits"):
        manifest_file.load(path, sha256)


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "link"])
def test_a_manifest_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    path, sha256 = write(tmp_path, {"manifest_version": "1.0", "disks": [disk(tmp_path)]})
    path.rename(tmp_path / "real")
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(tmp_path / "real")

    with pytest.raises(BadRequest, match="artifact-manifest"):
        manifest_file.load(path, sha256)


def test_a_disk_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="disk-0"):
        load(tmp_path, disk(tmp_path)).disk("disk-9")
