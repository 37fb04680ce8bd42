"""QEMU machines for the lab's guest, and the serial console through which a person, or a proof, talks to them."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MAC = "00:50:56:9a:10:01"
MEMORY_MB = 1024
USER, PASSWORD = "root", "hyperflow"
PATIENCE = 300.0  # seconds for an answer of an emulated guest, on a machine that may do other things besides


class ConsoleError(Exception):
    """The guest did not say what was waited for."""


@dataclass(frozen=True)
class Disk:
    """A disk image of a machine.

    :param format: QEMU's name of the image format
    """

    path: Path
    format: str


@dataclass(frozen=True)
class Kernel:
    """A kernel that QEMU loads itself, for a disk without boot loader."""

    vmlinuz: Path
    initramfs: Path
    command_line: str


def vmware_hardware(disks: Sequence[Disk]) -> list[str]:
    """QEMU arguments of the machine that an ESXi host shows to a guest.

    The network card sits behind a PCIe port with slot number 192, as on VMware, so that udev calls it ens192.
    That takes native PCIe hot plug: with QEMU's default, hot plug by ACPI, slots are numbered otherwise.

    The processor still says QEMU. With that hidden (-cpu qemu64,-hypervisor) systemd sees VMware and starts vmtoolsd,
    which then fails: QEMU answers only a part of VMware's backdoor calls.
    """
    arguments = [
        *("-smbios", "type=1,manufacturer=VMware,, Inc.,product=VMware Virtual Platform"),
        *("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"),
        *("-device", "pcie-root-port,id=port192,chassis=1,slot=192"),
        *("-device", f"vmxnet3,bus=port192,netdev=net0,mac={MAC}"),
        *("-device", "pvscsi,id=scsi0"),
    ]
    for number, disk in enumerate(disks):
        arguments += [
            *("-drive", _drive(number, disk)),
            *("-device", f"scsi-hd,bus=scsi0.0,scsi-id={number},drive=disk{number},vendor=VMware,product=Virtual disk"),
        ]
    return arguments


def _drive(number: int, disk: Disk) -> str:
    # QEMU splits at commas and reads a doubled one as itself. Nothing here has to survive a power cut: unsafe.
    path = str(disk.path).replace(",", ",,")
    return f"if=none,id=disk{number},format={disk.format},cache=unsafe,file={path}"


@contextmanager
def overlays(disks: Sequence[Path], folder: Path) -> Iterator[list[Disk]]:
    """Put a throw-away qcow2 in front of each VMDK; a machine writes there, never to the VMDK.

    :param folder: where the overlays live as long as the context does
    """
    made = [folder / f".{disk.stem}.overlay.{os.getpid()}.qcow2" for disk in disks]
    try:
        for disk, overlay in zip(disks, made, strict=True):
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "vmdk", "-b", str(disk.resolve()), str(overlay)],
                check=True,
            )
        yield [Disk(overlay, "qcow2") for overlay in made]
    finally:
        for overlay in made:
            overlay.unlink(missing_ok=True)


@contextmanager
def started(hardware: Sequence[str], log: Path, kernel: Kernel | None = None) -> Iterator[Console]:
    """Run a machine as long as the context lives.

    Its network card sees a network of its own, 192.0.2.0/24, that leads nowhere.

    :param log: takes every byte of the serial console
    """
    command = [
        *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", str(MEMORY_MB), "-smp", "1"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-vga", "std"),
        *("-netdev", "user,id=net0,restrict=on,net=192.0.2.0/24,host=192.0.2.1,dns=192.0.2.3"),
        *hardware,
    ]
    if kernel is not None:
        command += ["-kernel", str(kernel.vmlinuz), "-initrd", str(kernel.initramfs)]
        command += ["-append", kernel.command_line]
    with (
        log.open("wb") as sink,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield Console(process, sink.fileno())
        finally:
            process.kill()


class Console:
    """The serial console of a running machine.

    :param process: QEMU, with the serial port on its standard input and output
    :param log: file descriptor that takes what the guest says
    """

    def __init__(self, process: subprocess.Popen[bytes], log: int) -> None:
        self._process = process
        self._log = log
        self._unread = ""
        self._said = bytearray()

    @property
    def text(self) -> str:
        """All that the guest has said so far."""
        return self._said.decode(errors="replace")

    def expect(self, pattern: str, seconds: float) -> re.Match[str]:
        """Wait until the guest says something, and take it and all before it as read.

        :param pattern: regular expression; . matches line ends, too
        :param seconds: how long to wait
        :raises ConsoleError: it was not said in this time, or the machine ended
        """
        deadline = time.monotonic() + seconds
        expression = re.compile(pattern, re.DOTALL)
        while (match := expression.search(self._unread)) is None:
            self._receive(pattern, deadline)
        self._unread = self._unread[match.end() :]
        return match

    def send(self, line: str) -> None:
        """Type a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def log_in(self, seconds: float = 4 * PATIENCE) -> None:
        """Log in as root and quieten the terminal, so that only answers are said.

        :param seconds: how long the boot may take
        """
        self.expect("login: ", seconds)
        self.send(USER)
        self.expect("Password: ", PATIENCE)
        self.send(PASSWORD)
        self.expect("# ", PATIENCE)
        # Kernel messages and readline's echo would stand amid the answers.
        self.send("dmesg -n 1; stty -echo; bind 'set enable-bracketed-paste off'; PS1=; echo qui''et")
        self.expect("quiet\r\n", PATIENCE)

    def run(self, command: str, seconds: float = PATIENCE) -> str:
        """Run a command in the logged-in shell.

        :return: what it said, stripped
        :raises ConsoleError: it failed, or did not end in time
        """
        self.send(f"echo '<''<<'; {{ {command}\n}} 2>&1; echo \"$?>\"'>>'")
        match = self.expect(r"<<<(.*?)(\d+)>>>", seconds)
        answer, status = match.group(1).replace("\r\n", "\n").strip(), int(match.group(2))
        if status != 0:
            raise ConsoleError(f"in the guest, `{command}` failed with status {status}: {answer}")
        return answer

    def power_off(self, seconds: float = 2 * PATIENCE) -> None:
        """Shut the guest down in order and wait for the machine's end."""
        self.send("systemctl poweroff")
        deadline = time.monotonic() + seconds
        while self._receive("the machine's end", deadline, end_is_expected=True):
            pass
        if self._process.wait(timeout=PATIENCE) != 0:
            raise ConsoleError(f"QEMU ended with status {self._process.returncode}")

    def _receive(self, awaited: str, deadline: float, *, end_is_expected: bool = False) -> bool:
        """Read what is there, or wait for it. :return: False when the machine has ended."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(max(0.0, deadline - time.monotonic()))
        if not ready:
            raise ConsoleError(f"waited in vain for {awaited!r}; last said: {self.text[-500:]!r}")
        piece = os.read(self._process.stdout.fileno(), 65536)
        if not piece and not end_is_expected:
            raise ConsoleError(f"the machine ended before {awaited!r}; last said: {self.text[-500:]!r}")
        os.write(self._log, piece)
        self._said += piece
        self._unread += piece.decode(errors="replace")
        return bool(piece)
