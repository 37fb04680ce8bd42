"""libguestfs' appliance: a small virtual machine, the only place in which a guest's disks are touched.

A guest's file systems are made by somebody else. Mounting them and running the guest's own programs happens inside
the appliance, which has no network and sees nothing of the host but the overlays it was given.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hyperflow.kvmhost import acceleration, processes
from hyperflow.kvmhost.progress import size
from hyperflow.kvmhost.stage import Job, StageError, TryAgain
from hyperflow.kvmhost.watchdog import Watchdog

MEMORY_MB = 1280  # mkinitramfs of a large kernel and its compressor fit; libguestfs' default is 768 or 1280
MOST_CPUS = 4
LIMIT = 3600.0  # seconds; a program of a hostile guest may run for ever
# Seconds from the start of its QEMU until it must be up: some 5, emulated on a busy machine up to 60. One was seen that
# had its processor at work for twelve minutes and never came up; another try did in seconds.
LAUNCH_LIMIT = 600.0
QEMU = ("qemu-system-", "qemu-kvm")  # what its process is called; qemu-img and qemu-nbd are others
# Seconds that supermin may take to make it, once for each kernel and user: some ten, and whoever else needs it waits
# for the one who does. It asks dpkg or rpm what is installed, and has no limit of its own.
BUILD_LIMIT = 1800.0
SUPERMIN = ("supermin",)
# Bytes left on it at which the appliance is ended: QEMU stops a machine whose disk cannot grow until somebody makes
# room, and guestfs waits for it.
LEAST_FREE = 8 << 20

# QEMU before 8 translates code for the address it runs at: with random addresses each new process of a shell script is
# translated again. Measured with QEMU 7.2: /bin/true in 12 ms instead of 58, an initramfs in 17 s instead of 48.
SAME_ADDRESSES = "norandmaps"

# What guestfs raises: RuntimeError for every fault, and UnicodeDecodeError where a name or a message of the guest is
# no UTF-8, which its Python binding demands.
FAULTS = (RuntimeError, UnicodeError)
DIED = "appliance closed the connection unexpectedly"  # in guestfs' words for a virtual machine that has gone


class Appliance:
    """A context manager that starts the appliance with overlays as its disks and gives the guestfs handle.

    The disks are ``/dev/sda``, ``/dev/sdb``, ... in the order given. At the end of the block everything is unmounted
    and the appliance shut down, with every error of that raised; a block that failed only closes it.

    :param overlays: qcow2 files; their format is never probed
    :param limit: seconds after which the appliance is killed; it is killed too when its overlays cannot grow any more
    :raises TryAgain: it was not made within :data:`BUILD_LIMIT` seconds, or not up within :data:`LAUNCH_LIMIT`
    :raises StageError: for every fault of guestfs inside the block, with its message
    """

    def __init__(self, overlays: Sequence[Path], job: Job, limit: float = LIMIT) -> None:
        self._overlays = overlays
        self._job = job
        self._limit = limit
        self._handle: Any = None
        self._watch: Watchdog | None = None

    def __enter__(self) -> Any:
        os.environ["LIBGUESTFS_BACKEND"] = "direct"  # libvirt's would run the appliance as another user
        try:
            import guestfs
        except ImportError as fault:
            raise StageError("no guestfs for Python; install python3-guestfs or python3-libguestfs") from fault
        accelerator = acceleration.detect(self._job)
        self._handle = guestfs.GuestFS(python_return_dict=True, close_on_exit=True)
        self._watch = launch = Watchdog(_Launch().hangs)
        try:
            self._start(accelerator)
        except FAULTS as fault:
            self._close()
            raise launch.killed_for or StageError(f"libguestfs did not start its appliance: {fault}") from fault
        launch.end()
        version = self._handle.version()
        self._job.tools["libguestfs"] = ".".join(str(version[part]) for part in ("major", "minor", "release"))
        self._watch = Watchdog(_Work(self._handle.get_pid(), self._overlays[0].parent, self._limit).is_hopeless)
        return self._handle

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if fault is None:
                self._handle.umount_all()
                self._handle.sync()
                self._handle.shutdown()  # unlike close, it says when a disk could not be written
        except FAULTS as late:
            raise self._killed_for or StageError(f"the guest's disks were not closed cleanly: {late}") from late
        finally:
            self._close()
        if self._killed_for:
            raise self._killed_for from fault
        if isinstance(fault, FAULTS) and DIED in str(fault):
            raise StageError(
                "libguestfs' appliance ended in the middle of its work: a damaged file system of the guest made its "
                "kernel panic, or this host's kernel killed its QEMU (see journalctl -k). Check the file systems in "
                "the source VM (fsck), and export it again"
            ) from fault
        if isinstance(fault, FAULTS):
            raise StageError(f"in the guest: {fault}") from fault

    def _start(self, accelerator: str) -> None:
        handle = self._handle
        handle.set_backend("direct")
        if accelerator == acceleration.TCG:
            handle.set_backend_settings(["force_tcg"])
            handle.set_append(SAME_ADDRESSES)
        handle.set_memsize(MEMORY_MB)
        handle.set_smp(max(1, min(MOST_CPUS, len(os.sched_getaffinity(0)))))
        handle.set_network(False)
        for overlay in self._overlays:
            # unsafe: an overlay counts only when it is complete, and is synced then
            handle.add_drive_opts(str(overlay), format="qcow2", cachemode="unsafe")
        handle.launch()

    @property
    def _killed_for(self) -> StageError | None:
        return self._watch.killed_for if self._watch else None

    def _close(self) -> None:
        if self._watch is not None:
            self._watch.end()
        self._handle.close()


class _Launch:
    """An appliance that comes up: which process it is, guestfs does not tell until it has."""

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}

    def hangs(self) -> tuple[int, StageError] | None:
        now = time.monotonic()
        builds, machines = processes.children(*SUPERMIN), processes.children(*QEMU)
        self._seen = {pid: self._seen.get(pid, now) for pid in (*builds, *machines)}
        for pid, since in self._seen.items():
            if pid in builds and now - since > BUILD_LIMIT:
                said = f"supermin had not made libguestfs' appliance after {BUILD_LIMIT:.0f} s, and was ended"
                return pid, TryAgain(said)
            if pid not in builds and now - since > LAUNCH_LIMIT:
                return pid, TryAgain(f"libguestfs' appliance was not up after {LAUNCH_LIMIT:.0f} s, and was ended")
        return None


class _Work:
    """An appliance that is up and works on a guest's disks.

    :param folder: where its overlays grow
    """

    def __init__(self, pid: int, folder: Path, limit: float) -> None:
        self._pid, self._folder, self._limit = pid, folder, limit
        self._began = time.monotonic()

    def is_hopeless(self) -> tuple[int, StageError] | None:
        found = os.statvfs(self._folder)
        if found.f_bavail * found.f_frsize < LEAST_FREE:
            free = size(found.f_bavail * found.f_frsize)
            fault = StageError(f"{self._folder}: {free} free, and the guest's changes still grow; make room there")
            return self._pid, fault
        if time.monotonic() - self._began > self._limit:
            return self._pid, StageError(f"stopped after {self._limit:.0f} s: a program of the guest did not end")
        return None
