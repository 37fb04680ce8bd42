"""A booting guest, watched: every way in which it does not come up is told, by a QEMU that runs for real.

The guests are a boot sector that writes a text to the serial port and halts. The whole boot proof, with the probe that
libguestfs puts into a guest, is in stages/test_boot.py; a guest that comes up is in tests/lab.
"""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost import acceleration
from hyperflow.kvmhost.hardware import Hardware, qemu_arguments
from hyperflow.kvmhost.probe import watch
from hyperflow.kvmhost.probe.machine import Machine
from hyperflow.kvmhost.stage import Job, StageError

from tests.kvmhost.stages.test_boot import saying

NONCE = "00112233445566778899aabbccddeeff"


WRITE = bytes.fromhex("b80103 b90100 ba8000 bb007c cd13 f4")  # int 0x13, ah 3: a sector to the first disk; hlt
HALT = bytes.fromhex("f4 ebfd")  # hlt for ever: woken by an interrupt, a processor runs through zeros to whatever code
RESET = b"\xb0\xfe\xe6\x64\xf4"  # mov al, 0xfe; out 0x64, al (the keyboard's controller pulls the reset); hlt
# Byte 0x50 of the clock's memory, which a reset leaves: where it is 0x42, hlt for ever; else set it, and reset
RESET_ONCE = bytes.fromhex("b050 e670 e471 3c42 7409 b042 e671") + RESET  # and HALT


class Speaking(Machine):
    """A machine whose time counts from when its guest has said something: how long it takes to its first word depends
    on the machine that it runs on, and on what else runs there.
    """

    def listen(self, seconds: float) -> tuple[bytes, bytes]:
        said = super().listen(seconds)
        if not self.console():
            self.started = time.monotonic()
        return said


def failure(folder: Path, console: bytes | None, *, sector: bytes = b"", no_space: bool = False, **changes: Any) -> str:
    """Boot a guest that says this, one without a boot loader when it is None; why it is given up.

    :param sector: code of a boot sector, in place of the one that says something
    :param no_space: there is no room for what the guest writes
    """
    disk = folder / "disk.raw"
    own = (sector + HALT).ljust(510, b"\0") + b"\x55\xaa" if sector else b""
    disk.write_bytes(saying(console) if console is not None else own)
    with disk.open("r+b") as file:
        file.truncate(16 << 20)
    file_node: dict[str, Any] = {"driver": "file", "filename": str(disk)}
    if no_space:
        error = {"event": "pwritev", "errno": errno.ENOSPC}
        file_node = {"driver": "blkdebug", "image": file_node, "inject-error": [error]}
    drive = {"driver": "raw", "file": file_node}
    emulator = str(acceleration.find_emulator())
    job = Job("boot")
    arguments = qemu_arguments(Hardware("bios", 1, 256), [drive], acceleration.detect(job))
    wanted = {"nonce": NONCE, "expect": {}, "macs": [], "timeout": 600, "silence": 300, **changes}
    restarts = bool(wanted.get("restarts"))
    kind = Speaking if console else Machine
    with kind([emulator, *arguments], folder, folder / "console.log", restarts) as machine:
        with pytest.raises(StageError) as raised:
            watch.Watch(machine, watch.Expectation(**wanted), job).until_up()
        assert machine.screenshot(folder / "screenshot.png").stat().st_size > 0
    return str(raised.value)


@pytest.mark.parametrize(
    ("console", "reason"),
    [
        (b"[ 1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n", "kernel panicked"),
        (b"error: no such device: 1234.\r\nEntering rescue mode...\r\ngrub rescue> ", "did not find its files"),
        (b"You are in emergency mode. After logging in, type\r\n", "emergency mode"),
    ],
    ids=["panic", "grub", "emergency"],
)
def test_a_dead_end_is_told_with_the_last_line_before_it(tmp_path: Path, console: bytes, reason: str) -> None:
    told = failure(tmp_path, console)
    assert reason in told
    assert told.endswith(console.decode().rstrip().split("\r\n")[-1])


def test_a_disk_without_a_boot_loader_is_told_from_the_screen(tmp_path: Path) -> None:
    assert "the firmware found nothing to boot" in failure(tmp_path, None)


def test_a_guest_that_restarts_is_told_and_its_screen_is_still_there(tmp_path: Path) -> None:
    assert "switched itself off or reset (QEMU calls it guest-reset)" in failure(tmp_path, None, sector=RESET)


def test_a_guest_that_has_to_restart_may_do_so_once(tmp_path: Path) -> None:
    told = failure(tmp_path, None, sector=RESET_ONCE, restarts=1, silence=5)
    assert "gave no sign of life" in told, "it was let, and came to its end"


def test_a_guest_that_restarts_again_and_again_is_told_though_it_may_once(tmp_path: Path) -> None:
    told = failure(tmp_path, None, sector=RESET, restarts=1)
    assert "the guest switched itself off or reset, more often than it has to" in told


def test_a_guest_that_qemu_stops_for_want_of_room_is_told_at_once(tmp_path: Path) -> None:
    told = failure(tmp_path, None, sector=WRITE, no_space=True)
    assert "QEMU has stopped the guest: found its state io-error, expected running" in told


def test_a_guest_that_says_nothing_is_given_up_after_the_silence_that_is_allowed(tmp_path: Path) -> None:
    assert "gave no sign of life" in failure(tmp_path, b"", silence=5)


def test_a_guest_that_shows_a_login_prompt_is_not_up_until_the_probe_says_so(tmp_path: Path) -> None:
    told = failure(tmp_path, b"\r\nweb01 login: ", timeout=12)
    assert "was not up after" in told
    assert "web01 login:" in told


def test_an_answer_with_another_nonce_proves_nothing(tmp_path: Path) -> None:
    said = b"hyperflow-probe 00ff begin \nhyperflow-probe 00ff state 72756e6e696e67\nhyperflow-probe 00ff end \n"
    assert "was not up after" in failure(tmp_path, said, timeout=12)
