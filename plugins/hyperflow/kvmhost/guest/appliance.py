"""libguestfs' appliance: a small virtual machine, the only place in which a guest's disks are touched.

A guest's file systems are made by somebody else. Mounting them and running the guest's own programs happens inside
the appliance, which has no network and sees nothing of the host but the overlays it was given.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hyperflow.kvmhost import acceleration
from hyperflow.kvmhost.progress import size
from hyperflow.kvmhost.stage import Job, StageError

MEMORY_MB = 1280  # mkinitramfs of a large kernel and its compressor fit; libguestfs' default is 768 or 1280
MOST_CPUS = 4
LIMIT = 3600.0  # seconds; a program of a hostile guest may run for ever
LOOK = 1.0  # seconds between two looks at the file system of the overlays
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
    :raises StageError: for every fault of guestfs inside the block, with its message
    """

    def __init__(self, overlays: Sequence[Path], job: Job, limit: float = LIMIT) -> None:
        self._overlays = overlays
        self._job = job
        self._limit = limit
        self._handle: Any = None
        self._watch: threading.Thread | None = None
        self._ended = threading.Event()
        self._killed_for = ""

    def __enter__(self) -> Any:
        os.environ["LIBGUESTFS_BACKEND"] = "direct"  # libvirt's would run the appliance as another user
        try:
            import guestfs
        except ImportError as fault:
            raise StageError("no guestfs for Python; install python3-guestfs or python3-libguestfs") from fault
        accelerator = acceleration.detect(self._job)
        self._handle = guestfs.GuestFS(python_return_dict=True, close_on_exit=True)
        try:
            self._start(accelerator)
        except FAULTS as fault:
            self._close()
            raise StageError(f"libguestfs did not start its appliance: {fault}") from fault
        version = self._handle.version()
        self._job.tools["libguestfs"] = ".".join(str(version[part]) for part in ("major", "minor", "release"))
        self._watch = threading.Thread(target=self._watch_over, args=[self._handle.get_pid()], daemon=True)
        self._watch.start()
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
            raise StageError(self._killed_for or f"the guest's disks were not closed cleanly: {late}") from late
        finally:
            self._close()
        if self._killed_for:
            raise StageError(self._killed_for) from fault
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

    def _watch_over(self, pid: int) -> None:
        """Kill the appliance when there is no hope that it ends by itself."""
        folder = self._overlays[0].parent
        began = time.monotonic()
        while not self._ended.wait(LOOK):
            found = os.statvfs(folder)
            if found.f_bavail * found.f_frsize < LEAST_FREE:
                free = size(found.f_bavail * found.f_frsize)
                self._killed_for = f"{folder}: {free} free, and the guest's changes still grow; make room there"
            elif time.monotonic() - began > self._limit:
                self._killed_for = f"stopped after {self._limit:.0f} s: a program of the guest did not end"
            else:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return

    def _close(self) -> None:
        self._ended.set()
        if self._watch is not None:
            self._watch.join()
        self._handle.close()
