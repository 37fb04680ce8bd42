"""Throw-away overlays: a guest or an appliance writes to them, and the image below is only read."""

from __future__ import annotations

from pathlib import Path

from hyperflow.kvmhost import commands
from hyperflow.kvmhost.stage import StageError

LIMIT = 600.0  # seconds for what takes less than one: the image below is opened, and its size read


def create(image: Path, image_format: str, overlay: Path) -> None:
    """Make a qcow2 overlay over an image.

    :param image_format: of the image; named, never probed: a guest could write another format's header into a
        raw image and so reach files of the host
    :raises StageError: when qemu-img refuses, or does not answer
    """
    try:
        made = commands.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", image_format, "-b", str(image), str(overlay)],
            stdin=commands.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    except commands.TimeoutExpired as fault:
        raise StageError(f"qemu-img create: no answer within {LIMIT:.0f} s") from fault
    if made.returncode != 0:
        raise StageError(f"{image}: no overlay could be made over it: {made.stderr.strip()}")
