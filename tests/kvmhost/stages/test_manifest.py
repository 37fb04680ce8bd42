"""Writing the manifest and the OVF descriptor beside the staged disks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost.stage import BadRequest, Job
from hyperflow.kvmhost.stages import manifest


def document(folder: Path, **changes: Any) -> dict[str, Any]:
    path = folder / "web \u00fc-disk1.vmdk"
    path.write_bytes(b"staged")
    entry = {"id": "disk-0", "source_format": "vmdk", "bytes": 6, "local_path": str(path), **changes}
    return {"manifest_version": "1.0", "disks": [entry], "notes": ["\u00fcber", "\ud800 alone"]}


def test_the_manifest_and_its_digest_are_what_lies_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "artifact-manifest.json"

    observed = manifest.run(manifest.Options(path, document(tmp_path)), Job("manifest"))

    content = path.read_bytes()
    assert json.loads(content) == document(tmp_path)
    assert observed == {
        "path": str(path),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "disks": 1,
    }


def test_the_ovf_is_written_beside_it(tmp_path: Path) -> None:
    ovf = tmp_path / "web [01].ovf"
    options = manifest.Options(tmp_path / "artifact-manifest.json", document(tmp_path), ovf, "<Envelope/>\n")

    manifest.run(options, Job("manifest"))

    assert ovf.read_text() == "<Envelope/>\n"


def test_it_can_be_written_again_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "artifact-manifest.json"
    ovf = tmp_path / "web [01].ovf"
    (tmp_path / ".artifact-manifest.json.77.tmp").write_text("of a killed run")
    (tmp_path / ".web [01].ovf.77.tmp").write_text("of a killed run")

    for _ in range(2):
        manifest.run(manifest.Options(path, document(tmp_path), ovf, "<Envelope/>"), Job("manifest"))

    names = sorted(found.name for found in tmp_path.iterdir())
    assert names == ["artifact-manifest.json", "web [01].ovf", "web \u00fc-disk1.vmdk"]


@pytest.mark.parametrize(
    "change",
    [{"bytes": 7}, {"bytes": 0}, {"local_path": "/no/such/file"}, {"id": "a/b"}, {"source_format": "ova"}],
)
def test_nothing_is_written_when_a_disk_is_not_what_it_says(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "artifact-manifest.json"
    options = manifest.Options(path, document(tmp_path, **change), tmp_path / "web01.ovf", "<Envelope/>")

    with pytest.raises(BadRequest):
        manifest.run(options, Job("manifest"))

    assert [found.suffix for found in tmp_path.iterdir()] == [".vmdk"]


@pytest.mark.parametrize(("ovf_path", "ovf"), [(None, "<Envelope/>"), ("web01.ovf", None)])
def test_an_ovf_needs_its_path_and_the_reverse(tmp_path: Path, ovf_path: str | None, ovf: str | None) -> None:
    place = None if ovf_path is None else tmp_path / ovf_path

    with pytest.raises(BadRequest, match="ovf"):
        manifest.run(manifest.Options(tmp_path / "m.json", document(tmp_path), place, ovf), Job("manifest"))
