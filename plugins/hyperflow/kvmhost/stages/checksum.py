"""checksum: a staged disk is byte for byte what the manifest says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hyperflow.kvmhost import manifest_file
from hyperflow.kvmhost.images import sources
from hyperflow.kvmhost.images.files import hash_file
from hyperflow.kvmhost.manifest_file import ManifestReference
from hyperflow.kvmhost.stage import BadRequest, Job

NAMED = 10  # files in a warning


@dataclass(frozen=True)
class Options:
    """What ``checksum`` is asked to do.

    :param disk_id: which of the manifest's disks
    """

    manifest: ManifestReference
    disk_id: str


def run(options: Options, job: Job) -> dict[str, Any]:
    """Read the staged file once and compare its SHA-256 with the manifest's.

    A disk of several files has the checksum of its descriptor, which vouches for none of the others: a warning.

    :raises BadRequest: when it differs: the file was changed after its download, reading it again will not help; or
        when it is a descriptor of files that are not taken
    """
    disk = manifest_file.load(options.manifest.path, options.manifest.sha256).disk(options.disk_id)
    progress = job.progress(f"checksum {disk.id}", disk.bytes)
    found, count = hash_file(disk.path, progress.advance)
    progress.finish()
    job.bytes_read = count
    if count != disk.bytes:
        raise BadRequest(f"{disk.path}: found {count} bytes, expected {disk.bytes}; the staged file was changed")
    if disk.checksum is None:
        job.warn(
            f"disk {disk.id}: the manifest has no checksum, so its bytes were not verified; they have SHA-256 {found}"
        )
    elif found != disk.checksum:
        raise BadRequest(
            f"{disk.path}: found SHA-256 {found}, expected {disk.checksum}; "
            "the staged file was changed after its download: export the disk again"
        )
    beside = [path.name for path in sources.extents(disk.path, disk.source_format)]
    if beside:
        more = ", ..." if len(beside) > NAMED else ""
        job.warn(
            f"disk {disk.id}: {len(beside)} extent(s) of {disk.path.name} are not covered by its checksum: "
            f"{', '.join(beside[:NAMED])}{more}; a disk in one file is covered whole"
        )
    return {
        "disk_id": disk.id,
        "path": str(disk.path),
        "bytes": count,
        "sha256": found,
        "matches": None if disk.checksum is None else True,
        "expected": disk.checksum,
    }
