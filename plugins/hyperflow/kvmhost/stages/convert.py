"""convert: a staged disk becomes the target's image, with what fix has changed laid over it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hyperflow.kvmhost import domains, manifest_file
from hyperflow.kvmhost.images import codecs, conversion, decoded, files, nbd_reader, qemu, sources
from hyperflow.kvmhost.images.conversion import Compression
from hyperflow.kvmhost.manifest_file import Disk, ManifestReference
from hyperflow.kvmhost.stage import BadRequest, Job

MARGIN = 64 << 20  # bytes to leave on the file system
NAME_LIMIT = 200  # bytes; .NAME.partial and its like must be names as well


@dataclass(frozen=True)
class Options:
    """What ``convert`` is asked to do.

    :param overlay: the qcow2 overlay that fix has made over the staged disk; None when nothing was changed
    :param filename: a bare name in ``output_directory``
    :param compress_level: 1 to 9; None for 1 of zstd, 6 of zlib
    :param hash_image: whether the image is read again for its SHA-256; not needed where ``validate`` follows, which
        reads all of the image and tells its SHA-256 when its content has proven to be what was decoded
    :param uri: the libvirt whose domains may use an image that is there already
    """

    manifest: ManifestReference
    disk_id: str
    output_directory: Path
    filename: str
    format: str
    overlay: Optional[Path] = None  # noqa: UP045 - read at run time, by Python 3.9 too
    compress: bool = False
    compress_level: Optional[int] = None  # noqa: UP045 - as above
    compress_type: str = codecs.ZSTD
    hash_image: bool = True
    uri: str = "qemu:///system"


def run(options: Options, job: Job) -> dict[str, Any]:
    """Make the image under a name of its own, and rename it once everything about it is known.

    :raises BadRequest: wrong options, a changed or hostile source, a file of somebody else's at the target
    """
    compression = _check_options(options)
    qemu.note_version(job)
    manifest = manifest_file.load(options.manifest.path, options.manifest.sha256)
    disk = manifest.disk(options.disk_id)
    options.output_directory.mkdir(parents=True, exist_ok=True)
    target = options.output_directory / options.filename
    working, _ = conversion.working_image(target, options.format)
    identity = _identity(options, compression)
    replaced = os.path.lexists(target)
    held = files.state(target)
    if replaced:
        earlier = _require_ours(target, manifest.vm_id)
        if earlier.get("conversion") == identity:
            decoded.discard(working)
            return _reuse(target, earlier["observed"], job)
        _require_no_domain(target, options.uri)
        _require_unchanged(target, earlier["observed"], job)
        job.log(f"{target}: is of another conversion and no domain uses it; replaced when this one is complete")
    _require_room(disk, options)
    job.creating("partial", *{files.partial_path(working), files.partial_path(target)})
    try:
        observed, inode = _make(options, disk, compression, target=target, job=job)
        if replaced:
            files.remove_earlier(target, held)
        note = {"kind": "hyperflow-image", "vm_id": manifest.vm_id, "conversion": identity, "observed": observed}
        files.put_in_place(target, note, inode)
    finally:
        for path in (working, target):
            files.remove_partial(path)
        decoded.discard(working)
    return observed


def _make(
    options: Options, disk: Disk, compression: Compression | None, *, target: Path, job: Job
) -> tuple[dict[str, Any], int]:
    """Make the partial file of ``target``.

    :return: what it holds, and its inode
    """
    working, working_format = conversion.working_image(target, options.format)
    made = decoded.take_over(disk, working, working_format, compression, job)
    made = made or conversion.make(disk, working, working_format, compression, job)
    with made.content as content:
        changed = 0
        if options.overlay is not None:
            conversion.check_overlay(options.overlay, disk, made.virtual_bytes)
            partial = files.partial_path(working)
            files.require_held(partial, made.inode)
            changed = conversion.lay_over(options.overlay, disk, (partial, working_format), content=content, job=job)
        content_sha256, clusters = content.digest()
    partial, inode = files.partial_path(target), made.inode
    if working != target:
        files.require_held(files.partial_path(working), made.inode)
        inode = conversion.make_partial(target)
        qemu.convert((files.partial_path(working), "qcow2"), (partial, "vdi"), [], lambda _: None)
    job.bytes_read = made.staged_bytes
    sha256 = _hash(partial, f"hash {target.name}", job) if options.hash_image else None
    job.bytes_written = made.bytes_written
    observed = {
        "disk_id": disk.id,
        "path": str(target),
        "format": options.format,
        "bytes": partial.stat().st_size,
        "virtual_bytes": made.virtual_bytes,
        "sha256": sha256,
        "content_sha256": content_sha256,
        "staged_sha256": made.staged_sha256,
        "clusters": clusters,
        "changed_clusters": changed,
        "compress": None if compression is None else {"type": compression.kind, "level": compression.level},
    }
    return observed, inode


def _check_options(options: Options) -> Compression | None:
    """Check what the types do not say; every fault at once."""
    faults = []
    name = options.filename
    if not name or "/" in name or "\0" in name or name.startswith(".") or len(os.fsencode(name)) > NAME_LIMIT:
        faults.append(
            f"filename: found {name!r}, expected a bare name of at most {NAME_LIMIT} bytes, without a leading dot"
        )
    faults += conversion.check_form(options.format, options.compress, options.compress_level, options.compress_type)
    if faults:
        raise BadRequest("; ".join(f"options.{fault}" for fault in faults))
    return Compression(options.compress_type, options.compress_level) if options.compress else None


def _identity(options: Options, compression: Compression | None) -> dict[str, Any]:
    """Describe a conversion so that a later run can tell whether it is the same."""
    return {
        "manifest_sha256": options.manifest.sha256,
        "disk_id": options.disk_id,
        "overlay_sha256": None if options.overlay is None else files.hash_file(options.overlay)[0],
        "format": options.format,
        "compress": None if compression is None else [compression.kind, compression.level],
    }


def _require_ours(target: Path, vm_id: str | None) -> dict[str, Any]:
    """Read the note of the image at the target.

    :param vm_id: the VM at its source; None where the manifest does not tell
    :raises BadRequest: when it is somebody else's, or of another VM
    """
    note = files.read_note(target) or {}
    ours = note.get("kind") == "hyperflow-image" and isinstance(note.get("observed"), dict)
    if not ours or target.is_symlink() or not target.is_file():
        raise BadRequest(f"{target}: exists and is no image of ours; move it away or take another output directory")
    if files.is_of_another_vm(note, vm_id):
        raise BadRequest(
            f"{target}: exists and is of another VM ({note['vm_id']}), expected one of {vm_id}; take another output "
            "directory or name for one of the two, or move it away when that VM is no more"
        )
    return note


def _reuse(target: Path, observed: dict[str, Any], job: Job) -> dict[str, Any]:
    """Take over an image that an earlier run of this very conversion finished."""
    _require_unchanged(target, observed, job)
    files.remove_partial(target)
    job.log(f"{target}: already converted, its digest holds")
    return observed


def _require_unchanged(target: Path, observed: dict[str, Any], job: Job) -> None:
    """Hold an earlier image to the SHA-256 of its file, or, where that was left to validate, to what a guest sees.

    :raises BadRequest: when it is another one
    """
    kind = "sha256" if observed.get("sha256") else "content_sha256"
    size = target.stat().st_size
    if size != observed.get("bytes"):
        _refuse_changed(target, "bytes", size, observed)
    if kind == "sha256":
        found = _hash(target, f"verify the earlier {target.name}", job)
    else:
        found = _read_back(target, observed, job)
    if found != observed.get(kind):
        _refuse_changed(target, kind, found, observed)


def _refuse_changed(target: Path, kind: str, found: object, observed: dict[str, Any]) -> None:
    raise BadRequest(
        f"{target}: found {kind} {found}, expected {observed.get(kind)}; the image was changed since it "
        "was converted (was the VM started?); move it away to convert again"
    )


def _hash(path: Path, what: str, job: Job) -> str:
    progress = job.progress(what, path.stat().st_size)
    sha256, count = files.hash_file(path, progress.advance)
    progress.finish()
    job.bytes_read += count
    return sha256


def _read_back(target: Path, observed: dict[str, Any], job: Job) -> str:
    """Compute the content digest of an earlier image."""
    sources.require_self_contained(target, observed["format"])
    progress = job.progress(f"read back the earlier {target.name}", 0)
    description = nbd_reader.describe(target, observed["format"])
    content, _ = nbd_reader.read_content(description, target.parent, progress.advance)
    progress.finish()
    with content:
        return content.digest()[0]


def _require_no_domain(target: Path, uri: str) -> None:
    """Refuse to replace an image that a domain uses: it may be all that is left of a guest's work.

    :raises BadRequest: naming the domain
    """
    fault = domains.use_fault(target, domains.every_domain(uri))
    if fault is not None:
        raise BadRequest(fault)


def _require_room(disk: Disk, options: Options) -> None:
    """Refuse, before the work starts, what QEMU must not open and what will not fit.

    QEMU has the last word on what an image refers to: it looks for a parent where our own reader does not.
    """
    sources.require_self_contained(disk.path, disk.source_format)
    directory, times = options.output_directory, 1
    if options.format == "vdi":
        times = 2  # the image it is made of is there at the same time
    elif (
        options.overlay is None
        and conversion.is_decoded(disk)
        and files.has_space(directory, conversion.most_bytes(disk) + MARGIN)
    ):
        return  # all of it would fit
    working, _ = conversion.working_image(directory / options.filename, options.format)
    needed = conversion.needed_bytes(disk, options.overlay) - decoded.held_bytes(working)
    files.require_space(directory, times * needed + MARGIN, f"the image of {disk.id}")
