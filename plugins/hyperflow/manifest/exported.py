"""Makes the manifest of an export that lies in a folder: an OVF descriptor with its disks, or disk images alone."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hyperflow.manifest.builder import ManifestBuilder
from hyperflow.manifest.documents import read_text
from hyperflow.manifest.faults import DocumentError, Fault, show
from hyperflow.manifest.models import ExportWarning, Manifest
from hyperflow.manifest.ovf_reader import OvfVm, read_ovf
from hyperflow.manifest.verify import ProgressCallback, VerifiedDisk, verify_manifest

FORMATS = {
    ".vmdk": "vmdk",
    ".qcow2": "qcow2",
    ".raw": "raw",
    ".img": "raw",
    ".vhd": "vhd",
    ".vpc": "vhd",
    ".vhdx": "vhdx",
    ".vdi": "vdi",
}
MF_LIMIT = 1024 * 1024  # bytes of an OVF's list of digests

_DESCRIPTOR = b"# Disk DescriptorFile"
_DESCRIPTOR_LIMIT = 64 * 1024  # bytes
_EXTENT = re.compile(r'^(?:RW|RDONLY|NOACCESS)[ \t]+[0-9]+[ \t]+[A-Z]+[ \t]+"([^"]*)"', re.MULTILINE)


@dataclass(frozen=True)
class _Image:
    path: Path  # absolute
    size: int  # bytes
    label: str | None = None
    virtual_bytes: int | None = None
    extents: tuple[str, ...] = ()  # other files that hold its content


def build_from_export(
    export: Path, *, made: datetime, checksums: bool = True, progress: ProgressCallback | None = None
) -> Manifest:
    """Make the manifest of what an exporter left.

    :param export: an OVF descriptor, or a folder with one, or a folder with disk images
    :param made: now; an aware time
    :param checksums: read every disk for its SHA-256, and compare it with the descriptor's ``.mf`` file
    :param progress: told of every block read
    :raises DocumentError: everything that is wrong
    """
    descriptor = _descriptor(export)
    folder = Path(os.path.abspath(export if export.is_dir() else export.parent))  # noqa: PTH100 - links stay links
    vm = read_ovf(descriptor) if descriptor else None
    images = _images_of_ovf(vm, folder, str(descriptor)) if vm else _images_in(folder)
    name = vm.name if vm else folder.name
    first = _build(name, vm, images, made, {})
    seen = verify_manifest(first, folder=folder, progress=progress, always_read=checksums)
    faults = [Fault(each.path, each.found, each.expected) for each in seen if not each.good]
    faults += _differing(descriptor, folder, seen) if descriptor and checksums else []
    if faults:
        raise DocumentError(str(export), faults)
    return _build(name, vm, images, made, {each.disk_id: each.sha256 for each in seen})


def _build(
    name: str, vm: OvfVm | None, images: list[_Image], made: datetime, digests: Mapping[str, str | None]
) -> Manifest:
    builder = ManifestBuilder(name).source(export_method="ovf" if vm else "images").made(made)
    if vm is not None:
        builder.hardware(cpu=vm.cpu, memory_mb=vm.memory_mb, firmware=vm.firmware, secureboot=vm.secureboot)
        builder.guest(vm.guest_id, vm.guest_full_name)
        for index, nic in enumerate(vm.nics):
            builder.nic(f"nic-{index}", mac=nic.mac, network=nic.network)
    for index, image in enumerate(images):
        disk_id = f"disk-{index}"
        builder.disk(
            disk_id,
            str(image.path),
            image.size,
            source_format=FORMATS[image.path.suffix.lower()],
            sha256=digests.get(disk_id),
            label=image.label,
            virtual_bytes=image.virtual_bytes,
        )
        if image.extents:
            said = (
                f"{disk_id}: {image.path.name} only describes the disk; no checksum covers {', '.join(image.extents)}"
            )
            builder.warn(ExportWarning(stage="manifest", message=said))
    return builder.build()


def _descriptor(export: Path) -> Path | None:
    if not export.is_dir():
        return export
    found = sorted(path for path in export.iterdir() if path.suffix.lower() == ".ovf")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DocumentError(str(export), [Fault("(folder)", names, "one OVF descriptor; name the one that is meant")])
    return found[0] if found else None


def _images_of_ovf(vm: OvfVm, folder: Path, source: str) -> list[_Image]:
    images, faults = [], []
    for disk in vm.disks:
        try:
            images.append(_image(folder / disk.href, disk.label, disk.capacity_bytes))
        except DocumentError as error:
            faults += error.faults
    if faults:
        raise DocumentError(source, faults)
    return images


def _images_in(folder: Path) -> list[_Image]:
    """Find the images of a folder in natural order (disk2 before disk10), without the extents of others."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in FORMATS and not path.name.startswith(".")]
    images: list[_Image] = []
    broken: dict[str, list[Fault]] = {}
    for path in sorted(files, key=_natural):
        try:
            images.append(_image(path))
        except DocumentError as error:
            broken[path.name] = error.faults
    extents = {name for image in images for name in image.extents if name != image.path.name}
    images = [image for image in images if image.path.name not in extents]
    faults = [fault for name, found in broken.items() if name not in extents for fault in found]
    if not images and not faults:
        expected = f"an OVF descriptor or disk images ({', '.join(FORMATS)})"
        faults.append(Fault("(folder)", "neither", expected))
    if faults:
        raise DocumentError(str(folder), faults)
    return images


def _natural(path: Path) -> list[tuple[str, int]]:
    parts = re.split("([0-9]{1,18})", path.name)
    return list(zip(parts[::2], [*map(int, parts[1::2]), 0], strict=True))


def _image(path: Path, label: str | None = None, virtual_bytes: int | None = None) -> _Image:
    """Look at a file: that it is there, and begins as its name says.

    :raises DocumentError: what is wrong with it
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise DocumentError(str(path), [Fault(str(path), f"a {show(suffix)} file", f"one of {', '.join(FORMATS)}")])
    try:
        # Without O_NONBLOCK a FIFO waits for a writer; what is no regular file is refused when it is verified.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as fault:
        raise DocumentError(
            str(path), [Fault(str(path), fault.strerror or str(fault), "a file that can be read")]
        ) from None
    try:
        size, mode = os.fstat(descriptor).st_size, os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise DocumentError(str(path), [Fault(str(path), "no regular file", "a disk image")])
        begin = os.pread(descriptor, _DESCRIPTOR_LIMIT, 0)
        end = os.pread(descriptor, 512, max(0, size - 512))
    except OSError as fault:
        raise DocumentError(
            str(path), [Fault(str(path), fault.strerror or str(fault), "a file that can be read")]
        ) from None
    finally:
        os.close(descriptor)
    if not _BEGINS[FORMATS[suffix]](begin, end):
        found = f"a file that does not begin as {FORMATS[suffix]} does"
        raise DocumentError(str(path), [Fault(str(path), found, f"{FORMATS[suffix]}, as the name says")])
    extents = _EXTENT.findall(begin.decode(errors="replace")) if begin.startswith(_DESCRIPTOR) else []
    if virtual_bytes is None and FORMATS[suffix] == "raw":
        virtual_bytes = size
    return _Image(path, size, label, virtual_bytes, tuple(extents))


# The first bytes and the last 512 of each format; a raw disk may begin with anything.
_BEGINS: Mapping[str, Callable[[bytes, bytes], bool]] = {
    "vmdk": lambda begin, _: begin.startswith((b"KDMV", b"COWD", _DESCRIPTOR)),
    "qcow2": lambda begin, _: begin.startswith(b"QFI\xfb"),
    "raw": lambda begin, _: True,
    "vhd": lambda begin, end: b"conectix" in (begin[:8], end[:8]),
    "vhdx": lambda begin, _: begin.startswith(b"vhdxfile"),
    "vdi": lambda begin, _: begin[0x40:0x44] == b"\x7f\x10\xda\xbe",
}


def _differing(descriptor: Path, folder: Path, seen: list[VerifiedDisk]) -> list[Fault]:
    """Compare the digests with those that the exporter wrote beside the descriptor, where they are SHA-256."""
    listing = descriptor.with_suffix(".mf")
    if not listing.exists():
        return []
    text = read_text(listing, MF_LIMIT)
    written = dict(
        re.findall(r"^SHA256[ \t]*\(([^)\r\n]+)\)[ \t]*=[ \t]*([0-9a-fA-F]{64})[ \t]*\r?$", text, re.MULTILINE)
    )
    faults = []
    for each in seen:
        expected = written.get(os.path.relpath(each.path, folder))
        if expected is not None and expected.lower() != each.sha256:
            faults.append(Fault(each.path, f"SHA-256 {each.sha256}", f"{expected.lower()}, as {listing.name} says"))
    return faults
