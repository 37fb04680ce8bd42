"""A manifest of another exporter, converted on the lab's host by the DAG that a person starts."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab import lab
from lab.running import RunningLab
from lab.small_guest import ensure_small_guest

pytestmark = pytest.mark.lab

DAG_ID = "convert_manifest"
HASH = "$6$saltsalt$" + "a" * 86
DISKS = {".vhdx", ".raw", ".vmdk", ".qcow2"}


def run(running_lab: RunningLab, manifest: Path, **asked: Any) -> tuple[str, str]:
    """Convert a manifest to the end; the run's id and its state."""
    conf = {
        "host_connection": lab.HOST_CONNECTION,
        "manifest": str(manifest),
        "staging_directory": str(running_lab.folders.staging),
        **asked,
    }
    run_id = running_lab.start(DAG_ID, conf)
    return run_id, running_lab.wait(DAG_ID, run_id)


def has_hash(path: Path) -> bool:
    """Whether a file has the hash in it; one that Airflow has just removed has nothing."""
    try:
        return HASH.encode() in path.read_bytes()
    except FileNotFoundError:
        return False


def test_a_manifest_without_checksums_is_converted_on_the_host_and_its_disk_is_not_touched(
    running_lab: RunningLab,
) -> None:
    folder = running_lab.folders.images / "foreign"
    folder.mkdir()
    disk = folder / "guest.vhdx"
    subprocess.run(["qemu-img", "convert", "-O", "vhdx", str(ensure_small_guest()), str(disk)], check=True)
    before = hashlib.sha256(disk.read_bytes()).hexdigest()
    document = {
        "manifest_version": "1.0",
        "disks": [
            {"id": "guest", "source_format": "vhdx", "bytes": disk.stat().st_size, "local_path": str(disk)},
        ],
        "pipeline": {"inspect": {"enabled": True}, "convert": {"enabled": True}, "validate": {"enabled": True}},
        "configuration": {"users": {"deploy": {"password_hash": HASH}}},
    }
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(document))
    run_id, state = run(running_lab, manifest, output_format="raw")
    report = running_lab.report(DAG_ID, run_id)
    assert state == "success", report["errors"]
    (artifact,) = report["artifacts"]
    assert artifact["path"] == str(folder / "output/guest.raw"), "beside the manifest, for it names no folder"
    compared = ["qemu-img", "compare", "-f", "vhdx", "-F", "raw", str(disk), artifact["path"]]
    subprocess.run(compared, check=True)
    assert hashlib.sha256(disk.read_bytes()).hexdigest() == before
    assert report["vm"]["guest"]["os"]["product_name"] == "Debian (small)"
    assert any("no checksum" in warning["message"] for warning in report["warnings"])
    assert report["input_manifest"]["checksum"] == f"sha256:{hashlib.sha256(manifest.read_bytes()).hexdigest()}"
    stages = report["pipeline"]["stages"]
    assert stages["fix"]["skipped"] == "disabled in the manifest's pipeline"
    assert [name for name, stage in stages.items() if stage["success"]] == [
        *("preflight", "checksum", "inspect", "convert", "validate", "cleanup")
    ]
    assert report["pipeline"]["success"] is True
    (staging,) = running_lab.folders.staging.glob("convert-*")
    assert [path.name for path in staging.iterdir()] == ["artifact-manifest.json"], "the overlays are gone"
    held = {path for path in running_lab.folders.state.rglob("*") if path.is_file() and path.suffix not in DISKS}
    with_hash = {path for path in held if has_hash(path)}
    assert with_hash == {manifest, staging / "artifact-manifest.json"}, "database, logs and records do not need it"


def test_a_faulty_manifest_is_refused_with_every_fault_and_nothing_is_written(running_lab: RunningLab) -> None:
    folder = running_lab.folders.images / "faulty"
    folder.mkdir()
    manifest = folder / "manifest.yaml"
    manifest.write_text("manifest_version: '1.0'\ndisks: []\nhooks: {pre: rm}\n")
    run_id, state = run(running_lab, manifest)
    assert state == "failed"
    told = running_lab.failure(DAG_ID, run_id, "preflight")
    assert f"{manifest}: disks: found a list of 0" in told
    assert "hooks: found something to run" in told
    assert [path.name for path in folder.iterdir()] == ["manifest.yaml"]
    assert [error["stage"] for error in running_lab.report(DAG_ID, run_id)["errors"]] == ["preflight"]
