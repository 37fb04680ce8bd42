"""A guest of some megabytes: a file system that looks like a Debian, for tests of the flow around a guest.

It is inspected, converted and defined as any other, in seconds; it has no kernel, and halts in its boot sector. It is
made without root's debootstrap and kept in ``~/.cache/hyperflow/small-<digest of this file>/small.vmdk``.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import tempfile
from pathlib import Path

from lab.kept import kept

CAPACITY = 64 << 20  # bytes
FIRST = 1 << 20  # bytes before the only partition
DATA = 24 << 20  # bytes that do not compress: a download that can be cut, stalled or held back has to have some length
UUID = "5ba11000-0000-4000-8000-000000000001"

HALT = bytes.fromhex("fa f4 eb fd")  # cli; hlt; jmp $-1: a processor that runs through zeros ends in anybody's code

_FILES = {
    "etc/os-release": 'ID=debian\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\nPRETTY_NAME="Debian (small)"\n',
    "etc/debian_version": "12.5\n",
    "etc/hostname": "small\n",
    "etc/fstab": f"UUID={UUID} / ext4 defaults 0 1\n",
    "etc/network/interfaces": "auto lo\niface lo inet loopback\n",
    "var/lib/dpkg/status": "",
}
_FOLDERS = (
    "bin",
    "boot",
    "dev",
    "home",
    "lib/modules",
    "proc",
    "root",
    "sbin",
    "srv",
    "sys",
    "tmp",
    "usr/bin",
    "var/log",
)


def ensure_small_guest() -> Path:
    """Find the VMDK, or make it (a second).

    :return: a streamOptimized VMDK with one disk of :data:`CAPACITY` bytes
    """
    folder = kept("small", hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16], _build)
    return folder / "small.vmdk"


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        for name in _FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)
        for name, text in _FILES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        (root / "srv/data").write_bytes(random.Random(UUID).randbytes(DATA))  # noqa: S311 - the same bytes every time
        disk = Path(scratch, "disk.raw")
        disk.touch()
        os.truncate(disk, CAPACITY)
        table = f"label: dos\nstart={FIRST // 512}, type=83, bootable\n"
        _run("sfdisk", "--quiet", str(disk), stdin=table)
        options = f"offset={FIRST},root_owner=0:0"
        kilobytes = str((CAPACITY - FIRST) // 1024)
        with disk.open("r+b") as file:
            file.write(HALT)
        _run("mke2fs", "-q", "-t", "ext4", "-U", UUID, "-E", options, "-d", str(root), str(disk), kilobytes)
        target = str(folder / "small.vmdk")
        _run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", str(disk), target)


def _run(*command: str, stdin: str = "") -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: exit status {done.returncode}: {done.stderr.strip()}")
