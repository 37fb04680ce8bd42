"""Disks with as little of a guest on them as inspection takes for one, and manifests for them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

UUID = "6f1a0b52-57c1-4e0e-9d0c-6f6a2f1b7c12"
RELEASE = 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Phony GNU/Linux 12"\n'
GRUB_CFG = "menuentry 'Phony' {\n\tlinux /boot/vmlinuz-6.1.0 root=/dev/sda ro\n}\n"
MODULES = "".join(
    f"kernel/drivers/{name}.ko:\n"
    for name in ("virtio/virtio_pci", "block/virtio_blk", "net/virtio_net", "scsi/virtio_scsi")
)
LINUX = {
    "etc/os-release": RELEASE,
    "etc/debian_version": "12.1\n",
    "etc/hostname": "phony\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/fstab": "/dev/sda / ext4 defaults 0 1\n",
    "bin/true": "",
    "usr/lib/systemd/systemd": "",
    "usr/bin/udevadm": "",
    "boot/vmlinuz-6.1.0": "kernel",
    "boot/initrd.img-6.1.0": "image",
    "boot/grub/grub.cfg": GRUB_CFG,
    "lib/modules/6.1.0/modules.dep": MODULES,
}
FREEBSD = {"etc/fstab": "", "bin/sh": "", "etc/freebsd-update.conf": "", "etc/motd": "FreeBSD 13.1-RELEASE\n"}


def disk(path: Path, files: dict[str, str | bytes], links: dict[str, str] | None = None, uuid: str = UUID) -> Path:
    """Make a raw disk of 256 MiB that is one ext4 with these files and symbolic links."""
    tree = path.with_suffix(".tree")
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, target in (links or {}).items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(target)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-U", uuid, "-d", str(tree), str(path), "256M"], check=True)
    return path


def luks(path: Path) -> Path:
    """Make a raw disk that is a LUKS volume, as far as its first bytes say."""
    header = (
        b"LUKS\xba\xbe\0\1" + b"aes".ljust(32, b"\0") + b"xts-plain64".ljust(32, b"\0") + b"sha256".ljust(32, b"\0")
    )
    header += (4096).to_bytes(4, "big") + (64).to_bytes(4, "big") + bytes(20 + 32) + (1000).to_bytes(4, "big")
    header += UUID.encode().ljust(40, b"\0")
    with path.open("wb") as file:
        file.write(header)
        file.truncate(16 << 20)
    return path


def read(overlay: Path, name: str) -> bytes:
    """Read a file of an ext4 without mounting it: what a guest would find."""
    raw = overlay.with_suffix(".read")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(overlay), str(raw)], check=True)
    try:
        return subprocess.run(["debugfs", "-R", f"cat {name}", str(raw)], check=True, capture_output=True).stdout
    finally:
        raw.unlink()


def manifest(
    folder: Path, paths: list[Path], source_format: str = "raw", configuration: dict[str, Any] | None = None
) -> dict[str, str]:
    """Write a manifest of these disks; the reference that stages take."""
    disks: list[dict[str, Any]] = [
        {
            "id": f"disk-{index}",
            "source_format": source_format,
            "bytes": path.stat().st_size,
            "local_path": str(path),
            "boot_order_hint": index,
        }
        for index, path in enumerate(paths)
    ]
    file = folder / "artifact-manifest.json"
    wanted = {} if configuration is None else {"configuration": configuration}
    file.write_text(json.dumps({"manifest_version": "1.0", "disks": disks, **wanted}))
    return {"path": str(file), "sha256": digest(file)}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
