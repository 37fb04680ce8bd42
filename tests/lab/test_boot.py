"""The boot proof with the lab's guest as it left vSphere: it must fail. Fixed, it comes up in test_migration.py."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab import guest
from tests.kvmhost.stages import running

pytestmark = pytest.mark.lab


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    """Stage the lab's guest as export does: its disks and their manifest."""
    built = guest.ensure_guest()
    disks = []
    for number, name in enumerate(("web01-disk1.vmdk", "web01-disk2.vmdk")):
        path = tmp_path / name
        shutil.copyfile(built / name, path)
        disks.append(
            {
                "id": f"disk-{number}",
                "source_format": "vmdk",
                "bytes": path.stat().st_size,
                "local_path": str(path),
                "boot_order_hint": number,
            }
        )
    path = tmp_path / "artifact-manifest.json"
    path.write_text(json.dumps({"manifest_version": "1.0", "disks": disks}))
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def boot_options(folder: Path, images: list[str], facts: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "images": [{"path": path, "format": kind} for path in images],
        "work_directory": str(folder / "work"),
        "artifacts_directory": str(folder / "boot"),
        "hardware": {
            "firmware": facts["firmware"],
            "cpus": 1,
            "memory_mb": 1024,
            "nics": [{"mac": "00:50:56:9a:10:01"}],
        },
        "expect": {
            "root": facts["root"],
            "networks": [{"name": "ens192", "mac": "00:50:56:9a:10:01", "addresses": ["192.0.2.10/24"]}],
            "mounts": [mount for mount in facts["mounts"] if mount["path"].startswith("/")],
        },
        "timeout_seconds": 1200,
    }


def test_the_guest_as_it_left_vsphere_fails_with_the_reason(tmp_path: Path, manifest: dict[str, Any]) -> None:
    disks = json.loads(Path(manifest["path"]).read_text())["disks"]
    overlays = []
    for number, disk in enumerate(disks):
        overlays.append(str(tmp_path / f"disk-{number}.qcow2"))
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "vmdk", "-b", disk["local_path"], overlays[-1]]
        subprocess.run(create, check=True)
    facts = {"firmware": "bios", "root": {"device": "/dev/sda1", "fstype": "ext4"}, "mounts": []}

    result = running.run("boot", boot_options(tmp_path, overlays, facts, "qcow2"))

    assert result["exit_status"] == 1
    assert "did not find its root file system" in result["error"]["message"]
    assert "/dev/sda1 does not exist" in result["error"]["message"]
