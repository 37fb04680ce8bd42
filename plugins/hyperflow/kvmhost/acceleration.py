"""Whether KVM works on this host, found by running a guest with it.

That ``/dev/kvm`` exists proves nothing: inside some virtual machines QEMU aborts on an MSR, or the virtual
CPU never starts. So a boot sector is run; what it says on its serial port is the proof.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import selectors
import shutil
import stat
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hyperflow.kvmhost import commands
from hyperflow.kvmhost.stage import Job, StageError, write_atomically

KVM = "kvm"
TCG = "tcg"

LIMIT = 45.0  # seconds; a working KVM answers in less than one, on a host that does nothing else
DOUBT = 3600.0  # seconds after which a "no" is asked again: the host may have been busy, or kvm loaded since
CACHE = Path("/run/hyperflow")
DEVICE = Path("/dev/kvm")
EMULATORS = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm")  # Debian and Fedora; RHEL keeps it off the PATH
WORD = b"KVM-RUNS"


@dataclass(frozen=True)
class Acceleration:
    """How guests run here: ``kind`` is ``kvm`` or ``tcg``, ``reason`` says in a sentence why."""

    kind: str
    reason: str


def detect(job: Job) -> str:
    """Find the accelerator for guests on this host: ``kvm`` or ``tcg``.

    The first call in a boot of the host takes up to :data:`LIMIT` seconds, further ones read what it found: who is told
    a "no" by a host that was only busy has guests emulated, and domains that stay so.

    :raises StageError: when there is no QEMU
    """
    return explain(job).kind


def explain(job: Job, cache: Path = CACHE) -> Acceleration:
    """Like :func:`detect`, with the reason.

    :param cache: the folder that keeps the answer; one that is not ours alone is not believed
    :raises StageError: when there is no QEMU
    """
    emulator = find_emulator()
    if emulator is None:
        raise StageError("no QEMU for x86-64; install qemu-system-x86 (Debian, Ubuntu) or qemu-kvm (RHEL, Fedora)")
    trusted = _is_ours(cache)
    known = _recall(cache, emulator) if trusted else None
    if known is not None:
        return known
    found = _find(emulator)
    job.log(f"acceleration: {found.kind}, {found.reason}")
    if trusted:
        record = {**asdict(found), "key": _key(emulator), "at": time.time()}
        with contextlib.suppress(OSError):  # a full /run costs the next stage another try, nothing else
            write_atomically(cache / "acceleration.json", json.dumps(record), mode=0o600)
    return found


def _find(emulator: str) -> Acceleration:
    if not DEVICE.exists():
        return Acceleration(TCG, "there is no /dev/kvm: kvm is not loaded, or virtualization is off")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Acceleration(TCG, "/dev/kvm may not be opened; run as root, or add the user to the group kvm")
    return try_kvm(emulator, limit=LIMIT)


def find_emulator() -> str | None:
    """Find the path of QEMU for x86-64 guests; None when it is not installed."""
    return next((path for path in map(shutil.which, EMULATORS) if path is not None), None)


def try_kvm(emulator: str, accelerator: str = KVM, *, limit: float) -> Acceleration:
    """Run the boot sector and wait until it speaks.

    :param limit: seconds; QEMU is killed after them
    """
    with tempfile.TemporaryDirectory(prefix="hyperflow-kvm-") as name:
        disk = Path(name, "boot-sector")
        disk.write_bytes(boot_sector())
        os.truncate(disk, 16 << 20)  # SeaBIOS reads no disk of a single sector
        with Path(name, "errors").open("w+b") as errors:
            process = commands.Started(
                _arguments(emulator, accelerator, disk),
                stdin=commands.DEVNULL,
                stdout=commands.PIPE,
                stderr=errors,
            )
            try:
                spoke, hung = _listen(process, limit)
            finally:
                _end(process)
            errors.seek(0)
            complaint = errors.read(65536).decode(errors="replace")
    if spoke:
        return Acceleration(accelerator, f"a guest ran with {accelerator}")
    if hung:
        return Acceleration(TCG, f"/dev/kvm is there, but a guest with KVM did nothing for {limit:.0f} s")
    lines = [line for line in complaint.splitlines() if line.strip() and "warning:" not in line]
    why = lines[0].strip() if lines else "the guest reset itself"
    return Acceleration(TCG, f"/dev/kvm is there, but QEMU with KVM failed: {why}")


def boot_sector() -> bytes:
    """Make a boot sector that enters 64-bit mode, counts to 2^26, writes :data:`WORD` to COM1 and halts.

    In 64-bit mode, because real mode alone ran on a host where QEMU with the host's own CPU model aborts. It counts,
    because there are hosts (virtual machines, whose own hypervisor has no nested virtualization) where KVM emulates
    each instruction: a guest runs, and Linux in it does not come up. There QEMU with KVM has not counted so far within
    60 s; with TCG it was started, had counted and spoken after 1.5 s, on a busy machine.
    """
    code = bytes.fromhex(
        "fc fa 31c0 8ed8 8ec0 8ed0 bc007c"  # cld; cli; ds = es = ss = 0; sp = 0x7c00
        "bf0010 b90018 f3ab"  # clear 0x1000 to 0x3fff for the page tables
        "c70600100320 c70600200330 c70600308300"  # one PML4, one PDPT, one page of 2 MiB at 0
        "66b800100000 0f22d8"  # cr3 = 0x1000
        "66b820000000 0f22e0"  # cr4 = PAE
        "66b9800000c0 0f32 0d0001 0f30"  # EFER |= LME
        "0f0116907c 0f20c0 660d01000080 0f22c0"  # lgdt [0x7c90]; cr0 |= PG | PE
        "ea5c7c0800"  # jmp 8:0x7c5c, the next instruction, now 64-bit
        "b900000004 ffc9 75fc"  # mov ecx, 2^26; count: dec ecx; jnz count
        "be967c0000 66baf803"  # mov esi, 0x7c96: the text, behind the tables; mov dx, COM1
        "ac 84c0 7403 ee ebf8"  # next: lodsb; test al, al; jz end; out dx, al; jmp next
        "f4 ebfd"  # end: hlt; jmp end
        "00000000000000"
        "0000000000000000 00000000009a2000"  # 0x7c80: the GDT: null, 64-bit code
        "0f00 807c0000"  # 0x7c90: its limit and address
    )
    return (code + WORD + b"\0").ljust(510, b"\0") + b"\x55\xaa"


def _arguments(emulator: str, accelerator: str, disk: Path) -> list[str]:
    return [
        emulator,
        *("-nodefaults", "-no-user-config", "-machine", "q35", "-accel", accelerator, "-m", "64"),
        *("-cpu", "host" if accelerator == KVM else "max"),
        *("-display", "none", "-vga", "none", "-serial", "stdio", "-no-reboot"),
        *("-drive", f"file={disk},format=raw,if=none,id=disk", "-device", "virtio-blk-pci,drive=disk"),
    ]


def _listen(process: commands.Started, limit: float) -> tuple[bool, bool]:
    """Read the guest's serial port; whether it said the word, and whether it was silent at the limit."""
    assert process.stdout is not None  # noqa: S101 - it was started with a pipe
    said = b""
    deadline = time.monotonic() + limit
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                break
            piece = os.read(process.stdout.fileno(), 4096)
            said += piece
            if WORD in said:
                return True, False
            if not piece:
                return False, False
    return False, True


def _end(process: commands.Started) -> None:
    process.kill()
    with contextlib.suppress(commands.TimeoutExpired):  # stuck in the kernel
        process.wait(5)
    if process.stdout is not None:
        process.stdout.close()


def _is_ours(folder: Path) -> bool:
    """Make the folder, or see that nobody else can write in it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _key(emulator: str) -> str:
    """What the answer depends on: this boot of the host, this QEMU, whether the device may be opened, and the proof."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    opens = os.access(DEVICE, os.R_OK | os.W_OK)
    proof = hashlib.sha256(boot_sector()).hexdigest()[:16]
    return f"{boot} {emulator} {Path(emulator).stat().st_mtime_ns} {opens} {proof}"


def _recall(cache: Path, emulator: str) -> Acceleration | None:
    try:
        record = json.loads((cache / "acceleration.json").read_text())
        if record["key"] != _key(emulator):
            return None
        if record["kind"] == TCG and not 0 <= time.time() - record["at"] < DOUBT:
            return None
        return Acceleration(record["kind"], record["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
