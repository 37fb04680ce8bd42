"""Memory of the stages: of those that move a disk's data, on a small disk and on one eight times as large."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import conversions, data, downloads, guests, stages
from bench.results import Result

GOAL = 256  # MiB
LARGE = 8 << 30  # bytes of data
UNHELD = 1 << 40  # bytes a second: here the server may be as fast as it can
ROOM = 4 << 30  # bytes that have to stay free besides the large disk's image


def measure(small: data.Disk, folder: Path, console: Console) -> Result:
    """Run each stage on both disks, and those that work on a guest on the lab's; the largest memory of any."""
    peaks = {"small": _peaks(small, folder)}
    needed = 3 * LARGE + ROOM  # the disk, its download and its image
    if shutil.disk_usage(folder).free < needed:
        raise stages.BenchError(f"{folder}: needs {needed >> 30} GiB free for the disk of {LARGE >> 30} GiB")
    large = data.large_disk(console, LARGE)
    try:
        peaks["large"] = _peaks(large, folder)
    finally:
        large.path.unlink()
    working = folder / "guest"
    working.mkdir()
    peaks["guest"] = guests.peaks(working, console)
    most = {size: max(of_stages.values()) for size, of_stages in peaks.items()}
    notes = {"stages": peaks, "in_grains": {"small": small.data_bytes, "large": large.data_bytes}, "largest": most}
    return Result("peak_rss_mib", max(most.values()), None, GOAL, "MiB", {"ours": list(most.values())}, notes)


def _peaks(disk: data.Disk, folder: Path) -> dict[str, float]:
    """Peak of each stage in MiB."""
    work = folder / "memory"
    work.mkdir()
    peaks: dict[str, float] = {}

    def ran(name: str, stage: stages.Ran) -> stages.Ran:
        peaks[name] = round(stage.peak_kib / 1024, 1)
        return stage

    try:
        reference = stages.manifest(work, [disk.path])
        ran("checksum", stages.run("checksum", {"manifest": reference, "disk_id": "disk-0"}, work, watch=True))
        for name, (_, form, _arguments) in conversions.KINDS.items():
            made = ran(
                name, conversions.convert(reference, work / "output" / "disk-0", form, work, watch=True)
            ).observed
            keys = ("disk_id", "path", "format", "virtual_bytes", "sha256", "content_sha256")
            options: dict[str, Any] = {"images": [{key: made[key] for key in keys}]}
            ran(f"validate of {name}", stages.run("validate", options, work, watch=True))
            shutil.rmtree(work / "output")
        with downloads.serve(disk.path, work, UNHELD) as server:
            for name in downloads.GOALS:
                target = work / "staging" / "disk-1.vmdk"
                ran(name, downloads.download(name, server, disk, target, work, watch=True))
                shutil.rmtree(target.parent)
    finally:
        shutil.rmtree(work)
    return peaks
