"""Makes images, decodes them as convert does, and asks qemu-img what it thinks of them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
from pathlib import Path

from hyperflow.kvmhost.images import codecs, conversion, files
from hyperflow.kvmhost.images.content import ContentMap
from hyperflow.kvmhost.images.decode import Decoded, Decoder
from hyperflow.kvmhost.images.qcow2 import CompressedQcow2Writer, ImageWriter, Qcow2Writer, RawWriter
from hyperflow.kvmhost.images.vmdk import Header
from hyperflow.kvmhost.manifest_file import Disk
from hyperflow.kvmhost.stage import Job

ROOT = Path(__file__).resolve().parents[3]
KINDS = ("qcow2", "raw", "zstd", "zlib")
GRAIN = 65536


def noise(seed: int, length: int = GRAIN) -> bytes:
    """Bytes that do not compress."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(length)


def text(seed: int, length: int = GRAIN) -> bytes:
    """Bytes that compress well."""
    line = f"line {seed} of a log that a guest has written\n".encode()
    return (line * (length // len(line) + 1))[:length]


def qemu_img(*arguments: str | Path) -> str:
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def qemu_io(image: Path, *commands: str) -> None:
    """Write into a qcow2 image as a guest does."""
    arguments = [part for command in commands for part in ("-c", command)]
    subprocess.run(["qemu-io", "-d", "unmap", "-f", "qcow2", *arguments, image], check=True, capture_output=True)


def assert_same(first: Path, first_format: str, second: Path, second_format: str) -> None:
    """Both images show a guest the same."""
    qemu_img("compare", "-f", first_format, "-F", second_format, first, second)


def assert_sound(image: Path) -> None:
    """``qemu-img check`` finds no error, no leak, and no fragmentation but that of compressed clusters."""
    found = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", image))
    for key in ("corruptions", "leaks", "check-errors"):
        assert found.get(key, 0) == 0, found
    if not found.get("compressed-clusters"):
        assert found.get("fragmented-clusters", 0) == 0, found


def stream_optimized(raw: Path, target: Path) -> Path:
    """A VMDK as qemu-img writes it: tables in front, no footer, no end marker."""
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, target)
    return target


def decode(source: Path, target: Path, kind: str = "qcow2") -> tuple[Decoded, str]:
    """Decode a VMDK; what the pass found, and the content digest."""
    image = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        with source.open("rb", buffering=0) as file:
            decoder = Decoder(
                file.readinto,
                functools.partial(writer, image, kind),
                lambda header: ContentMap(target.parent, header.capacity_bytes),
                lambda count: None,
            )
            try:
                decoded = decoder.run()
                with decoder.content:
                    return decoded, decoder.content.digest()[0]
            finally:
                decoder.close()
    finally:
        os.close(image)


def convert_all(folder: Path) -> dict[str, str]:
    """Make ``NAME.qcow2`` of each ``NAME.vmdk`` as convert does, whoever it leaves that to; content digests by NAME.

    In one process of the host's own Python, which has libnbd.
    """
    program = f"from tests.kvmhost.images import images; images.convert_here({str(folder)!r})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}
    subprocess.run(["/usr/bin/python3", "-c", program], check=True, capture_output=True, env=environment)
    digests: dict[str, str] = json.loads((folder / "digests.json").read_text())
    return digests


def convert_here(folder: str) -> None:
    """Do the work of :func:`convert_all`."""
    digests = {}
    for source in Path(folder).glob("*.vmdk"):
        data = source.read_bytes()
        disk = Disk("disk-0", "vmdk", len(data), source, hashlib.sha256(data).hexdigest(), 0, "boot", None)
        target = source.with_suffix(".qcow2")
        made = conversion.make(disk, target, "qcow2", None, Job("convert"))
        files.partial_path(target).rename(target)
        with made.content as content:
            digests[source.stem] = content.digest()[0]
    Path(folder, "digests.json").write_text(json.dumps(digests))


def writer(image: int, kind: str, header: Header) -> ImageWriter:
    if kind == "raw":
        return RawWriter(image, header.capacity_bytes)
    if kind == "qcow2":
        return Qcow2Writer(image, header.capacity_bytes)
    return CompressedQcow2Writer(image, header.capacity_bytes, kind, lambda: codecs.make_compressor(kind, None, GRAIN))


def content_digest(disk: bytes) -> str:
    """The content digest as docs/content-digest.md defines it, by the plainest program."""
    total = hashlib.sha256()
    for index in range(-(-len(disk) // GRAIN)):
        chunk = disk[index * GRAIN : (index + 1) * GRAIN].ljust(GRAIN, b"\0")
        if chunk != bytes(GRAIN):
            total.update(index.to_bytes(8, "big") + hashlib.sha256(chunk).digest())
    return total.hexdigest()
