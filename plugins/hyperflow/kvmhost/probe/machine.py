"""A guest that runs as a child of the stage: its consoles, its screen, and how it failed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from hyperflow.kvmhost import commands
from hyperflow.kvmhost.qmp import Qmp, QmpError
from hyperflow.kvmhost.stage import StageError

PORT = "org.hyperflow.probe.0"
CONSOLE_LIMIT = 16 * 1024 * 1024  # bytes of console that are kept: a guest may not fill the host's disk
TAIL = 16 * 1024  # bytes of console that are looked at
PR_SET_PDEATHSIG = 1  # linux/prctl.h
TEXT_SCREEN, TEXT_SIZE = 0xB8000, 80 * 25 * 2  # VGA's text memory: a character and an attribute each

# What a guest says when its boot has come to an end that no waiting changes.
DEAD_ENDS = (
    (
        re.compile(r"\(initramfs\)\s*$", re.M),
        "the guest stopped in its initramfs: it did not find its root file system",
    ),
    (re.compile(r"Kernel panic - not syncing[^\n]*"), "the guest's kernel panicked"),
    (re.compile(r"grub rescue>"), "the boot loader did not find its files"),
    (re.compile(r"^grub>\s*$", re.M), "the boot loader found no menu"),
    (re.compile(r"No bootable (device|option)|^Shell>", re.M), "the firmware found nothing to boot"),
    (
        re.compile(r"You are in (emergency|rescue) mode|Entering emergency mode"),
        "the guest stopped in emergency mode",
    ),
    (
        re.compile(r"Cannot open access to console, the root account is locked"),
        "the guest stopped in emergency mode",
    ),
    (
        re.compile(r"dracut:/#|Generating \"/run/initramfs/rdsosreport.txt\""),
        "the guest stopped in its initramfs",
    ),
)
ESCAPES = re.compile(r"\x1b\[[0-9;?=]*[a-zA-Z]|\x1b[()][A-Z0-9]|\x1b[=>c78]|[\x00-\x08\x0b-\x1f\x7f]")


class Machine:
    """A running QEMU, killed when the block ends, and by the kernel when the stage itself is killed.

    A guest that switches itself off or restarts is stopped there, so that its screen can still be seen; ``restarts``
    lets it restart.

    :param arguments: the emulator and its arguments, without consoles, monitor and the probe's port
    :param folder: where QEMU may leave small files
    :param console_log: takes what comes over the serial console
    """

    def __init__(self, arguments: list[str], folder: Path, console_log: Path, restarts: bool = False) -> None:
        self._arguments = [*arguments, "-display", "none", "-no-shutdown", *([] if restarts else ["-no-reboot"])]
        self._folder = folder
        self._console_log = console_log
        self._console_file: BinaryIO | None = None
        self._console_bytes = 0
        self._sockets: list[socket.socket] = []
        self._console = b""

    def __enter__(self) -> Machine:
        self._console_file = self._console_log.open("wb")
        pairs = {name: socket.socketpair() for name in ("monitor", "console", "probe")}
        self._sockets = [ours for ours, _ in pairs.values()]
        theirs = {name: pair[1] for name, pair in pairs.items()}
        arguments = list(self._arguments)
        for name, end in theirs.items():
            arguments += ["-chardev", f"socket,id={name},fd={end.fileno()}"]
        arguments += ["-mon", "chardev=monitor,mode=control", "-serial", "chardev:console"]
        arguments += ["-device", f"virtserialport,bus=serial.0,chardev=probe,name={PORT}"]
        with (self._folder / "qemu-errors").open("wb") as errors:
            self._process = commands.Started(
                arguments,
                stdin=commands.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[end.fileno() for end in theirs.values()],
                preexec_fn=_die_with_parent,  # the stage has one thread
            )
        for end in theirs.values():
            end.close()
        self.started = time.monotonic()
        try:
            self.qmp = Qmp(self._sockets[0])
        except QmpError as fault:
            self.__exit__(None, None, None)
            raise StageError(f"QEMU did not start: {self.errors() or fault}") from fault
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()  # its disks are thrown away: nothing has to be flushed
        self._process.wait()
        for one in self._sockets:
            one.close()
        if self._console_file is not None:
            self._console_file.close()

    def listen(self, seconds: float) -> tuple[bytes, bytes]:
        """Wait for the guest; what came through the probe's port, and over the console, in that time."""
        _, console, probe = self._sockets
        said = {probe: b"", console: b""}
        for one in select.select([console, probe], [], [], seconds)[0]:
            with contextlib.suppress(OSError):  # QEMU ended; the caller asks has_ended
                said[one] = one.recv(65536)
            if not said[one]:
                time.sleep(0.1)
        self._keep(said[console])
        return said[probe], said[console]

    def console(self) -> list[str]:
        """The last lines of the serial console, without escape sequences and empty lines."""
        return _lines(self._console[-TAIL:].decode(errors="replace"))

    def screen(self) -> list[str]:
        """The lines of the VGA screen while it shows text; nothing while it shows graphics."""
        path = self._folder / "text-screen"
        self.qmp.execute("pmemsave", val=TEXT_SCREEN, size=TEXT_SIZE, filename=str(path))
        memory = path.read_bytes()
        cells, attributes = memory[::2], memory[1::2]
        if len(set(attributes)) > 8 or any(cell not in (0, 255) and cell < 32 for cell in cells):
            return []  # no text: the window shows another part of the video memory
        rows = [cells[start : start + 80] for start in range(0, len(cells), 80)]
        return [
            text for text in (row.decode("ascii", errors="replace").replace("\0", " ").rstrip() for row in rows) if text
        ]

    def dead_end(self, *texts: list[str]) -> str | None:
        """Tell why the guest will never come up, by what its console and screen show; None while it may."""
        for lines in texts:
            text = "\n".join(lines[-40:])
            for pattern, reason in DEAD_ENDS:
                if pattern.search(text):
                    return reason
        return None

    def activity(self) -> int:
        """A number that grows while the guest lives: bytes of console and disk operations."""
        count = self._console_bytes
        for device in self.qmp.execute("query-blockstats"):
            count += device["stats"]["rd_operations"] + device["stats"]["wr_operations"]
        return count

    def screenshot(self, path: Path) -> Path:
        """Save the screen as PNG; as PPM, under that name, by a QEMU older than 7.1. Returns where it is."""
        try:
            self.qmp.execute("screendump", filename=str(path), format="png")
        except QmpError:
            path = path.with_suffix(".ppm")
            self.qmp.execute("screendump", filename=str(path))
        return path

    def has_ended(self) -> bool:
        """Whether QEMU is gone."""
        return self._process.poll() is not None

    def stopped(self) -> str | None:
        """Tell QEMU's state of a guest that runs no more, which no waiting changes; None while it runs.

        ``qmp.shutdown`` is set when it was the guest itself that ended.
        """
        status = str(self.qmp.execute("query-status")["status"])
        return None if status == "running" else status

    def errors(self) -> str:
        """What QEMU itself complained about, in one line."""
        text = (self._folder / "qemu-errors").read_text(errors="replace")
        return " ".join(line for line in text.splitlines() if "warning:" not in line)[-2000:]

    def _keep(self, data: bytes) -> None:
        if self._console_file is not None and self._console_bytes < CONSOLE_LIMIT:
            self._console_file.write(data)
            self._console_file.flush()
        self._console_bytes += len(data)
        self._console = (self._console + data)[-4 * TAIL :]


def _lines(text: str) -> list[str]:
    plain = ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return [line.rstrip() for line in plain.split("\n") if line.strip()]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)  # the stage was killed before the line above
