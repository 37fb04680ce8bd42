"""The lab's guest: a real Debian 12 that lives on VMware, as far as it knows.

Built once by ``ensure_guest`` and kept in ``~/.cache/hyperflow/guest-<digest of the recipe>/``:

* ``web01-disk1.vmdk``, ``web01-disk2.vmdk``: streamOptimized, as vCenter exports them
* ``guest.json``: their sizes and digests, MAC address, kernels
* ``proof-vmware.log``, ``proof-vmware.json``: its boot on pvscsi and vmxnet3, and what was seen there
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from lab.guest import build

__all__ = ["ensure_guest"]


def ensure_guest(say: Callable[[str], None] = print) -> Path:
    """Find the guest, or build it (some minutes).

    :param say: takes a line that tells what is being done
    :return: the cache folder
    :raises build.BuildError: it can not be built
    :raises machine.ConsoleError: it does not boot as it should
    """
    cache = Path.home() / ".cache/hyperflow"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"guest-{build.recipe_digest()}"
    with (cache / "guest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        for leftover in cache.glob("guest-*.partial"):
            shutil.rmtree(leftover)
        partial = folder.with_suffix(".partial")
        partial.mkdir()
        umask = os.umask(0o022)  # the guest's files are made with it
        try:
            build.build(partial, say)
        finally:
            os.umask(umask)
        partial.rename(folder)
    return folder
