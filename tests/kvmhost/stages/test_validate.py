"""Validation of finished images: each way in which one can be wrong is found and named."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kvmhost.images import images
from tests.kvmhost.stages import running, staged

KEYS = ("disk_id", "path", "format", "virtual_bytes", "sha256", "content_sha256")


def image(folder: Path, image_format: str = "qcow2", **changes: Any) -> dict[str, Any]:
    """A converted image, as convert describes it to validate."""
    (folder / "disk.raw").write_bytes(b"".join(images.text(n) for n in range(50)) + bytes(9 * images.GRAIN + 512))
    source = images.stream_optimized(folder / "disk.raw", folder / "disk.vmdk")
    result = running.run(
        "convert",
        {
            "manifest": staged.manifest(folder, source),
            "disk_id": "disk-0",
            "output_directory": str(folder / "output"),
            "filename": f"disk-0.{image_format}",
            "format": image_format,
            **changes,
        },
    )
    assert result["exit_status"] == 0, result["log"]
    return {key: result["observed"][key] for key in KEYS}


def refresh(described: dict[str, Any]) -> dict[str, Any]:
    """Describe the file as it is now, so that only its inside is wrong."""
    done = subprocess.run(["sha256sum", described["path"]], check=True, capture_output=True, text=True)
    return {**described, "sha256": done.stdout.split()[0]}


def refused(described: dict[str, Any], *words: str, check: bool = True) -> None:
    result = running.run("validate", {"images": [described], "check_image_integrity": check})
    assert result["exit_status"] != 0, result["log"]
    for word in words:
        assert word in result["error"]["message"]


@pytest.mark.parametrize("image_format", ["qcow2", "raw", "vdi"])
@pytest.mark.parametrize("compress", [False, True])
def test_a_sound_image_is_validated(tmp_path: Path, image_format: str, compress: bool) -> None:
    described = image(tmp_path, image_format, compress=compress and image_format == "qcow2")

    result = running.run("validate", {"images": [described], "check_image_integrity": True})

    assert result["exit_status"] == 0, result["log"]
    (found,) = result["observed"]["images"]
    assert found["content_matches"] is True
    assert found["content_sha256"] == images.content_digest((tmp_path / "disk.raw").read_bytes())
    assert found["clusters"] == 50
    if image_format == "raw":
        assert found["check"] == {"done": False, "reason": "a raw image has no tables to check"}
    else:
        assert found["check"]["done"] is True
        assert found["check"]["corruptions"] == found["check"]["leaks"] == 0


def test_the_hash_that_convert_left_to_it_is_told(tmp_path: Path) -> None:
    described = image(tmp_path, hash_image=False)
    assert described["sha256"] is None

    result = running.run("validate", {"images": [described], "check_image_integrity": True})

    (found,) = result["observed"]["images"]
    assert found["sha256"] == hashlib.sha256(Path(described["path"]).read_bytes()).hexdigest()


def test_an_image_that_reads_from_another_file_is_refused_though_it_shows_the_same(tmp_path: Path) -> None:
    described = image(tmp_path, hash_image=False)
    aside = tmp_path / "aside.qcow2"
    Path(described["path"]).rename(aside)
    images.qemu_img("create", "-q", "-f", "qcow2", "-b", aside, "-F", "qcow2", described["path"])

    refused(described, "backing file")


def test_the_check_can_be_turned_off_and_says_so(tmp_path: Path) -> None:
    result = running.run("validate", {"images": [image(tmp_path)], "check_image_integrity": False})

    assert result["observed"]["images"][0]["check"] == {"done": False, "reason": "check_image_integrity is off"}


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    described = image(tmp_path)
    with Path(described["path"]).open("r+b") as file:
        file.seek(400_000)
        file.write(b"changed")

    refused(described, "disk-0", "changed after its conversion")


@pytest.mark.parametrize("image_format", ["qcow2", "raw", "vdi"])
def test_other_content_is_found_by_reading_it_back(tmp_path: Path, image_format: str) -> None:
    described = image(tmp_path, image_format)
    command = ["qemu-io", "-f", image_format, "-c", "write -P 1 100000 512", described["path"]]
    subprocess.run(command, check=True, capture_output=True)

    refused(refresh(described), "content digest")


def test_content_where_there_was_none_is_found(tmp_path: Path) -> None:
    described = image(tmp_path)
    command = ["qemu-io", "-f", "qcow2", "-c", f"write -P 1 {58 * images.GRAIN} 512", described["path"]]
    subprocess.run(command, check=True, capture_output=True)

    refused(refresh(described), "content digest")


def test_a_damaged_table_is_found_by_the_check(tmp_path: Path) -> None:
    described = image(tmp_path)
    path = Path(described["path"])
    data = bytearray(path.read_bytes())
    blocks = int.from_bytes(data[48:56], "big")  # the refcount table's offset
    block = int.from_bytes(data[blocks : blocks + 8], "big")
    data[block + 8 : block + 12] = bytes(4)  # two clusters in use counted as free
    path.write_bytes(data)

    refused(refresh(described), "qemu-img check found", "corruptions")


def test_a_leak_is_found_by_the_check(tmp_path: Path) -> None:
    described = image(tmp_path)
    path = Path(described["path"])
    data = bytearray(path.read_bytes())
    level1 = int.from_bytes(data[40:48], "big")
    table = int.from_bytes(data[level1 : level1 + 8], "big") & 0x00FFFFFFFFFFFE00
    data[table : table + 8] = bytes(8)  # the first cluster is counted, and nothing points to it
    path.write_bytes(data)

    refused(refresh(described), "1 leaks")


@pytest.mark.parametrize("kind", ["missing", "cut", "folder"])
def test_an_image_that_is_not_there_or_cut_is_found(tmp_path: Path, kind: str) -> None:
    described = image(tmp_path)
    path = Path(described["path"])
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:1000])
        described = refresh(described)
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()

    refused(described, "disk-0", str(path))


def test_another_size_is_found(tmp_path: Path) -> None:
    described = image(tmp_path)

    refused({**described, "virtual_bytes": described["virtual_bytes"] + 512}, "found a disk of")


def test_every_bad_image_is_named(tmp_path: Path) -> None:
    described = image(tmp_path)
    bad = [{**described, "disk_id": f"disk-{n}", "sha256": "0" * 64} for n in range(3)]

    result = running.run("validate", {"images": [*bad, described]})

    assert result["exit_status"] == 1
    for number in range(3):
        assert f"disk-{number}" in result["error"]["message"]


def test_no_server_outlives_the_stage(tmp_path: Path) -> None:
    described = image(tmp_path)
    running.run("validate", {"images": [described]})

    listed = subprocess.run(["pgrep", "-fa", f"qemu-nbd.*{tmp_path}"], capture_output=True, text=True, check=False)
    assert listed.stdout == ""
