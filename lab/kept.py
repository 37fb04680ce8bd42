"""Keeps what takes time to build: below ``~/.cache/hyperflow``, built by one process while the others wait."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def kept(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Find the folder ``KIND-KEY``, or have it built; whole or not at all.

    :param key: names all that decides what is built
    :param build: fills an empty folder
    """
    cache = Path.home() / ".cache/hyperflow"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{kind}-{key}"
    with (cache / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial = Path(tempfile.mkdtemp(dir=cache, prefix=f"{kind}-", suffix=".partial"))
            try:
                build(partial)
                partial.rename(folder)
            except BaseException:
                shutil.rmtree(partial)
                raise
    return folder
