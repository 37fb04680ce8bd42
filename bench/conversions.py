"""Conversion of a staged VMDK: the stage, against the commands that do the same by hand."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench import data, stages
from bench.results import Result, of_pair

ROUNDS = 5
# name -> goal, convert's options, qemu-img's arguments
KINDS: dict[str, tuple[float, dict[str, Any], list[str]]] = {
    "convert_qcow2": (0.20, {"format": "qcow2"}, ["-m", "16", "-W", "-O", "qcow2"]),
    "convert_zstd": (0.15, {"format": "qcow2", "compress": True}, ["-c", "-m", "16", "-W", "-O", "qcow2"]),
    "convert_raw": (0.30, {"format": "raw"}, ["-m", "16", "-W", "-O", "raw"]),
}


def measure(name: str, disk: data.Disk, folder: Path) -> Result:
    """Convert by both ways in turns; the images show the same, or it is an error."""
    goal, options, arguments = KINDS[name]
    ours: list[float] = []
    peer: list[float] = []
    cpu: list[float] = []
    notes: dict[str, Any] = {}
    reference = stages.manifest(folder, [disk.path])
    image, other = folder / "ours" / "disk-0", folder / "peer"
    for _ in range(ROUNDS):
        stages.digest(disk.path)
        ran = convert(reference, image, options, folder)
        ours.append(ran.seconds)
        cpu.append(ran.cpu_seconds)
        copying: list[str | Path] = ["qemu-img", "convert", "-f", "vmdk", *arguments, disk.path, other]
        peer.append(stages.timed(["sha256sum", disk.path], copying))
        stages.timed(["qemu-img", "compare", "-f", options["format"], "-F", options["format"], image, other])
        notes["image_bytes"] = {"ours": _allocated(image), "peer": _allocated(other)}
        other.unlink()
        _forget(image)
    notes |= {"cpu_seconds": round(statistics.median(cpu), 3), "data": _described(disk)}
    return of_pair(name, ours, peer, goal, notes)


def convert(
    reference: dict[str, str], image: Path, form: dict[str, Any], folder: Path, *, watch: bool = False
) -> stages.Ran:
    """Run the stage as a migration does: the image's own SHA-256 is validate's work, which reads the image anyway."""
    options = {
        "manifest": reference,
        "disk_id": "disk-0",
        "output_directory": str(image.parent),
        "filename": image.name,
        "hash_image": False,
        **form,
    }
    return stages.run("convert", options, folder, watch=watch)


def _forget(image: Path) -> None:
    for path in (image, image.with_name(f".{image.name}.json")):
        path.unlink()


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def _described(disk: data.Disk) -> dict[str, int]:
    return {"vmdk": disk.path.stat().st_size, "virtual": disk.virtual_bytes, "in_grains": disk.data_bytes}
