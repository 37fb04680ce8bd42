"""validate: the finished images, read back by another program than the one that made them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hyperflow.kvmhost.images import files, nbd_reader, qemu, sources
from hyperflow.kvmhost.stage import Job, StageError, TryAgain


@dataclass(frozen=True)
class Image:
    """One image and what ``convert`` said of it.

    :param virtual_bytes: size of the guest's disk
    :param sha256: of the file; None where ``convert`` left it to this stage
    :param content_sha256: of what the guest sees, see docs/content-digest.md
    """

    disk_id: str
    path: Path
    format: str
    virtual_bytes: int
    content_sha256: str
    sha256: Optional[str] = None  # noqa: UP045 - read at run time, by Python 3.9 too


@dataclass(frozen=True)
class Options:
    """What ``validate`` is asked to do.

    :param check_image_integrity: whether ``qemu-img check`` is to be run
    """

    images: list[Image]
    check_image_integrity: bool = True


def run(options: Options, job: Job) -> dict[str, Any]:
    """Hold every image to what ``convert`` observed.

    :raises TryAgain: an image could not be looked at now
    :raises StageError: naming every image that differs, and in what
    """
    qemu.note_version(job)
    observed, faults = [], []
    for image in options.images:
        try:
            observed.append(_validate(image, options.check_image_integrity, job))
        except TryAgain:
            raise  # of the host, and not of the image
        except StageError as fault:
            faults.append(f"disk {image.disk_id}: {fault}")
    if faults:
        raise StageError("; ".join(faults))
    return {"images": observed}


def _validate(image: Image, check: bool, job: Job) -> dict[str, Any]:
    progress = job.progress(f"hash {image.path.name}", image.path.stat().st_size if image.path.exists() else 0)
    sha256, count = files.hash_file(image.path, progress.advance)
    progress.finish()
    job.bytes_read += count
    if image.sha256 is not None and sha256 != image.sha256:
        raise StageError(f"{image.path}: found SHA-256 {sha256}, expected {image.sha256}: changed after its conversion")
    sources.require_self_contained(image.path, image.format)
    checked = _check(image) if check else {"done": False, "reason": "check_image_integrity is off"}
    size = int(qemu.info(image.path, image.format)["virtual-size"])
    if size != image.virtual_bytes:
        raise StageError(f"{image.path}: found a disk of {size} bytes, expected {image.virtual_bytes}")
    progress = job.progress(f"read back {image.path.name}", 0)
    description = nbd_reader.describe(image.path, image.format)
    content, _ = nbd_reader.read_content(description, image.path.parent, progress.advance)
    progress.finish()
    with content:
        found, clusters = content.digest()
    if found != image.content_sha256:
        raise StageError(
            f"{image.path}: found the content digest {found}, expected {image.content_sha256}: "
            "a guest would see other data than was decoded"
        )
    job.log(f"{image.path}: whole, and a guest sees exactly what was decoded ({clusters} clusters)")
    return {
        "disk_id": image.disk_id,
        "path": str(image.path),
        "format": image.format,
        "bytes": count,
        "virtual_bytes": size,
        "sha256": sha256,
        "content_sha256": found,
        "content_matches": True,
        "clusters": clusters,
        "check": checked,
    }


def _check(image: Image) -> dict[str, Any]:
    """Run qemu-img check.

    :raises StageError: when it finds anything; a fresh image has no leaks either
    """
    if image.format == "raw":
        return {"done": False, "reason": "a raw image has no tables to check"}
    found = qemu.check(image.path, image.format, image.virtual_bytes)
    counts = {key: int(found.get(key, 0)) for key in ("corruptions", "leaks", "check-errors")}
    if found["exit_status"] or any(counts.values()):
        told = ", ".join(f"{count} {key}" for key, count in counts.items())
        raise StageError(f"{image.path}: qemu-img check found {told} (exit status {found['exit_status']})")
    return {"done": True, **counts, "fragmented_clusters": int(found.get("fragmented-clusters", 0))}
