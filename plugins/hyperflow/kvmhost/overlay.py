"""Throw-away overlays: a guest or an appliance writes to them, and the image below is only read."""

from __future__ import annotations

from pathlib import Path

from hyperflow.kvmhost import commands
from hyperflow.kvmhost.stage import StageError


def create(image: Path, image_format: str, overlay: Path) -> None:
    """Make a qcow2 overlay over an image.

    :param image_format: of the image; named, never probed: a guest could write another format's header into a
        raw image and so reach files of the host
    :raises StageError: when qemu-img refuses
    """
    made = commands.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", image_format, "-b", str(image), str(overlay)],
        stdin=commands.DEVNULL,
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        raise StageError(f"{image}: no overlay could be made over it: {made.stderr.strip()}")
