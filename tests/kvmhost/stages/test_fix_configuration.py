"""fix applies the manifest's configuration, reads it back, and does nothing when all is as it should be."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.kvmhost.guest import phony
from tests.kvmhost.stages import running
from tests.kvmhost.stages.test_fix import options

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1lZ2VudGx5T2ZUaGVMYWJzT3duS2V5Rm9yVGVzdHMx me"
HASH = "$6$saltsalt$" + "a" * 86
GUEST = {
    **phony.LINUX,
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\nann:!:19000:0:99999:7:::\n",
    "etc/group": "root:x:0:\nann:x:1000:\n",
    "etc/gshadow": "root:*::\nann:!::\n",
    "etc/skel/.profile": "# a profile\n",
    "etc/sudoers": "root ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n",
    "etc/sudoers.d/README": "",
    "home/ann/.ssh/authorized_keys": "ssh-rsa AAAAB3Nz ann's own\n",
    "etc/network/interfaces": "auto lo ens192\niface lo inet loopback\niface ens192 inet dhcp\n",
    "sbin/ifup": "",
    "usr/bin/sudo": "",
}
WANTED = {
    "users": {"deploy": {"ssh_keys": [KEY], "password_hash": HASH, "sudo": "password"}, "ann": {"ssh_keys": [KEY]}},
    "hostname": {"hostname": "app01", "domain": "example.com", "hosts": {"192.0.2.7": ["db"]}},
    "network": {
        "interfaces": {"ens192": {"addresses": ["192.0.2.10/24"], "gateway": "192.0.2.1", "dns": ["192.0.2.53"]}}
    },
}


def test_configuration_is_applied_kept_in_a_backup_and_changes_nothing_the_second_time(tmp_path: Path) -> None:
    disk = phony.disk(tmp_path / "a.raw", GUEST)
    first = running.run("fix", options(tmp_path, [disk], configuration=WANTED))
    assert first["succeeded"], first["log"]
    told = first["observed"]["configuration"]
    deploy, ann = told["users"]
    assert (deploy["name"], deploy["uid"], deploy["created"], deploy["password_set"]) == ("deploy", 1001, True, True)
    assert deploy["sudo"] == "password"
    assert (ann["created"], ann["password_set"], ann["sudo"]) == (False, False, None)
    assert told["hostname"]["before"] == "phony"
    assert told["network"][0]["addresses"] == ["192.0.2.10/24"]
    assert first["observed"]["network"][0]["name"] == "ens192", "the interface's name is kept as for any other"

    overlay = Path(first["observed"]["overlays"]["disk-0"])
    kept = {one["path"]: one["backup"] for one in first["observed"]["changed_files"]}
    assert phony.read(overlay, kept["/etc/shadow"]) == str(GUEST["etc/shadow"]).encode()
    assert f"deploy:{HASH}:".encode() in phony.read(overlay, "/etc/shadow")
    assert phony.read(overlay, "/home/ann/.ssh/authorized_keys").decode().splitlines() == [
        "ssh-rsa AAAAB3Nz ann's own",
        KEY,
    ]
    assert phony.read(overlay, "/home/deploy/.profile") == b"# a profile\n"
    assert phony.read(overlay, "/etc/hostname") == b"app01\n"
    assert b"127.0.1.1 app01.example.com app01\n" in phony.read(overlay, "/etc/hosts")
    assert phony.read(overlay, "/etc/resolv.conf") == b"nameserver 192.0.2.53\n"
    for path, mode, owner in (
        ("/home/deploy/.ssh/authorized_keys", "0600", "1001"),
        ("/home/deploy/.ssh", "0700", "1001"),
        ("/etc/sudoers.d/hyperflow-deploy", "0440", "0"),
        ("/etc/shadow", "0644", "0"),  # as mke2fs made it: its mode is not ours to change
    ):
        assert (mode, owner) == mode_and_owner(overlay, path), path

    fixed = tmp_path / "fixed.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(overlay), str(fixed)], check=True)
    second = running.run("fix", options(tmp_path, [fixed], configuration=WANTED))
    assert second["succeeded"], second["log"]
    changed = {one["path"] for one in second["observed"]["changed_files"] if one["change"] in ("changed", "created")}
    assert changed == set()
    again: dict[str, Any] = second["observed"]["configuration"]
    assert [one["created"] for one in again["users"]] == [False, False]


def test_hostile_values_are_a_bad_request_before_anything_is_made(tmp_path: Path) -> None:
    disk = tmp_path / "a.raw"
    disk.write_bytes(bytes(512))
    hostile = {"users": {"x\nroot2:x:0:0": {}}, "services": {"mask": ["../ssh.service"]}}
    result = running.run("fix", options(tmp_path, [disk], configuration=hostile))
    assert result["exit_status"] == 64
    assert "configuration.users" in result["error"]["message"]
    assert "configuration.services.mask" in result["error"]["message"]
    assert not (tmp_path / "work").exists()


def mode_and_owner(overlay: Path, name: str) -> tuple[str, str]:
    """Mode and user id of a file of an ext4, by debugfs."""
    raw = overlay.with_suffix(".read")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(overlay), str(raw)], check=True)
    try:
        said = subprocess.run(["debugfs", "-R", f"stat {name}", str(raw)], check=True, capture_output=True, text=True)
    finally:
        raw.unlink()
    words = said.stdout.split()
    return words[words.index("Mode:") + 1], words[words.index("User:") + 1]
