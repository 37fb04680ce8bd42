"""The boot proof, with QEMU and libguestfs for real.

The guests here are a root file system whose first sector is a program: it writes a text to the serial port and
halts. One that comes up is in tests/lab; more ways in which one does not are in kvmhost/test_watch.py.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost import acceleration

from tests.kvmhost.stages import running

UUID = "6f1a0b52-57c1-4e0e-9d0c-6f6a2f1b7c11"
TEXT_AT = acceleration.boot_sector().index(acceleration.WORD)  # where the text of the boot sector starts


def saying(console: bytes) -> bytes:
    """Make a boot sector that writes ``console`` to the serial port."""
    sector = acceleration.boot_sector()[:TEXT_AT] + console + b"\0"
    assert len(sector) <= 510
    return sector.ljust(510, b"\0") + b"\x55\xaa"


def image(folder: Path, console: bytes, systemd: bool = True) -> Path:
    """Make a root file system that writes ``console`` when it is booted."""
    tree = folder / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "usr/lib/systemd").mkdir(parents=True)
    if systemd:
        (tree / "usr/lib/systemd/systemd").write_text("")
    path = folder / "disk.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-U", UUID, "-d", str(tree), str(path), "64M"], check=True)
    with path.open("r+b") as file:
        file.write(saying(console))  # ext4 leaves its first 1024 bytes to boot loaders
    return path


def options(disk: Path, **changes: Any) -> dict[str, Any]:
    return {
        "images": [{"path": str(disk), "format": "raw", "disk_id": "disk-0"}],
        "work_directory": str(disk.parent / "work"),
        "artifacts_directory": str(disk.parent / "boot"),
        "hardware": {"firmware": "bios", "cpus": 1, "memory_mb": 256, "nics": [{"mac": "00:50:56:9a:10:01"}]},
        "expect": {"root": {"uuid": UUID, "device": "/dev/sda1", "fstype": "ext4"}},
        "timeout_seconds": 600,
        **changes,
    }


def emulators(work: Path) -> list[int]:
    """List the QEMU processes that have a file below ``work`` on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if command.startswith(b"/usr/bin/qemu-system") and str(work).encode() in command:
            found.append(int(path.parent.name))
    return found


def test_a_guest_at_a_dead_end_fails_at_once_with_the_reason(tmp_path: Path) -> None:
    console = b"Begin: Mounting root\r\nALERT! /dev/sda1 does not exist.\r\n(initramfs) "
    disk = image(tmp_path, console)
    before = hashlib.sha256(disk.read_bytes()).hexdigest()

    result = running.run("boot", options(disk))

    assert result["exit_status"] == 1
    assert "stopped in its initramfs" in result["error"]["message"]
    assert result["error"]["message"].endswith("ALERT! /dev/sda1 does not exist. | (initramfs)")
    assert (tmp_path / "boot/screenshot.png").read_bytes().startswith(b"\x89PNG")
    assert console in (tmp_path / "boot/console.log").read_bytes()
    assert hashlib.sha256(disk.read_bytes()).hexdigest() == before
    assert not (tmp_path / "work/boot").exists()


def test_a_guest_without_systemd_is_believed_by_its_login_prompt_with_a_warning(tmp_path: Path) -> None:
    result = running.run("boot", options(image(tmp_path, b"\r\nweb01 login: ", systemd=False)))

    assert result["exit_status"] == 0, result["log"]
    assert result["observed"]["evidence"]["state"] == "login prompt"
    assert result["observed"]["accelerator"] in ("kvm", "tcg")
    assert any("no systemd" in warning for warning in result["warnings"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_the_guest_ends_with_the_stage(tmp_path: Path, number: signal.Signals) -> None:
    disk = image(tmp_path, b"still here")
    process = running.start("boot", options(disk), tmp_path / "result.json")
    console = tmp_path / "boot/console.log"
    while not (console.exists() and b"still here" in console.read_bytes()):
        assert process.poll() is None
        time.sleep(0.1)
    assert emulators(tmp_path)

    process.send_signal(number)
    process.communicate()

    while emulators(tmp_path):
        time.sleep(0.1)
    if number == signal.SIGTERM:
        assert not (tmp_path / "work/boot").exists()
        return
    again = running.run("boot", options(disk, timeout_seconds=5))
    assert "was not up after" in again["error"]["message"], "a rerun starts over the leftovers"


def test_a_root_file_system_that_no_image_has_is_named(tmp_path: Path) -> None:
    other = {"root": {"uuid": "00000000-0000-4000-8000-000000000000"}}

    result = running.run("boot", options(image(tmp_path, b""), expect=other))

    assert "none of the images has the root file system with UUID 00000000" in result["error"]["message"]


def test_hardware_that_cannot_be_is_a_bad_request_with_every_fault(tmp_path: Path) -> None:
    hardware = {"firmware": "efi", "cpus": 0, "memory_mb": 256, "nics": [{"mac": "00:50"}]}

    result = running.run("boot", options(tmp_path / "no-such-disk", hardware=hardware))

    assert result["exit_status"] == 64
    for fault in ("firmware", "cpus", "MAC '00:50'", "no-such-disk: found no regular file"):
        assert fault in result["error"]["message"]


def test_what_an_earlier_boot_left_is_not_shown_as_this_ones(tmp_path: Path) -> None:
    left = [tmp_path / "boot" / name for name in ("console.log", "screenshot.png", "screenshot.ppm")]
    left[0].parent.mkdir()
    for path in left:
        path.write_bytes(b"an earlier boot's")

    result = running.run("boot", options(tmp_path / "no-such-disk"))

    assert result["exit_status"] == 64
    assert not [path for path in left if path.exists()]
