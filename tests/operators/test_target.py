"""What the proof of a boot expects is what inspection found."""

from __future__ import annotations

from typing import Any

from hyperflow.operators.target import expectations

ROOT = {"uuid": "1111", "device": "/dev/sda1", "fstype": "ext4", "disk_id": "disk-0"}


def mount(path: str, options: str = "defaults", **changes: str) -> dict[str, Any]:
    about = {"spec": f"UUID={path}", "fstype": "ext4", "device": "/dev/sdb1", "uuid": "2222", "disk_id": "disk-1"}
    return {"path": path, "options": options, **about, **changes}


def test_a_mount_is_expected_with_its_options_which_tell_whether_a_boot_mounts_it() -> None:
    mounts = [mount("/data"), mount("/backup", "noauto,user"), mount("none", fstype="swap")]
    found = expectations({"root": ROOT, "network": [], "mounts": mounts})
    assert found["mounts"] == [
        {"path": "/data", "uuid": "2222", "fstype": "ext4", "options": "defaults"},
        {"path": "/backup", "uuid": "2222", "fstype": "ext4", "options": "noauto,user"},
    ]
