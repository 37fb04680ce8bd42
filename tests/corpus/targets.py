"""What a fuzzer feeds: each target takes bytes, and whatever it raises is a defect of ours."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path

from hyperflow.kvmhost import manifest_file
from hyperflow.kvmhost.images import qemu, sources, vmdk
from hyperflow.kvmhost.images.content import ContentMap
from hyperflow.kvmhost.images.decode import DecodeFault, Decoder
from hyperflow.kvmhost.images.qcow2 import Qcow2Writer
from hyperflow.kvmhost.images.vmdk_scanner import Scanner
from hyperflow.kvmhost.stage import BadRequest, StageError
from hyperflow.manifest.load import Manifest, ManifestError, load_manifest, parse_manifest

COMPARED = 1 << 40  # bytes: qemu-img compares disks up to this size in a moment when they are nearly empty
OF_FILES = ("local_path", "bytes")  # what the host's reader says of a manifest's files, which are not here


def scan(data: bytes, window: int) -> str | int:
    """Scan a VMDK in windows: the number of its grains, or the words with which it is refused."""
    scanner = Scanner()
    carried = b""
    try:
        for start in range(0, len(data), window):
            joined = carried + data[start : start + window]
            _, taken = scanner.feed(memoryview(joined))
            carried = joined[taken:]
        scanner.finish(len(carried))
    except vmdk.VmdkError as fault:
        assert "offset" in str(fault), "a fault names its place"
        return str(fault)
    return scanner.grains


def vmdk_file(data: bytes, folder: Path | None = None) -> str:
    """Read a VMDK as download and convert do: refused in our words, or decoded to what qemu-img sees.

    :param folder: for files of a moment
    :return: ``refused: WHY``, ``decoded``, or ``converted`` where that is left to qemu-img
    """
    found = scan(data, 1 << 20)
    assert scan(data, 700) == found, "the size of the windows does not matter"
    if isinstance(found, str):
        return f"refused: {found}"
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source, target = Path(name, "source.vmdk"), Path(name, "target.qcow2")
        source.write_bytes(data)
        try:
            sources.require_self_contained(source, "vmdk")  # convert asks this first
        except StageError as fault:
            return f"refused: {fault}"
        damage, capacity = _decode(source, target)
        if not sources.is_stream_optimized(source):
            assert "grains of" in str(damage), "what the decoder cannot put together it makes no image of"
            return _convert(source, target)
        if damage is not None:
            return f"refused: {damage}"
        if capacity <= COMPARED:
            _compare(source, target)
    return "decoded"


def _convert(source: Path, target: Path) -> str:
    """Have qemu-img make the image, as convert does."""
    if vmdk.read_header(source.read_bytes()[:512]).capacity_bytes <= COMPARED:
        target.unlink()
        try:
            qemu.convert((source, "vmdk"), (target, "qcow2"), [], lambda percent: None)
        except StageError as fault:
            return f"refused: {fault}"
        _compare(source, target)
    return "converted"


def manifest(data: bytes, folder: Path | None = None) -> str:
    """Read a manifest as both planes do; what the control plane takes, the host takes, and it survives a round trip.

    :return: ``refused``, or ``accepted``
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        outcomes = [_load(Path(name, f"manifest{suffix}"), data) for suffix in (".json", ".yaml")]
    for accepted in filter(None, outcomes):
        document = accepted.to_document()
        assert parse_manifest(json.dumps(document)).to_document() == document, "a round trip changes nothing"
        _read_on_host(document, accepted=True)
    with contextlib.suppress(ValueError, RecursionError):  # no JSON: the host says so before it looks at disks
        _read_on_host(json.loads(data), accepted=outcomes[0] is not None)
    return "accepted" if any(outcomes) else "refused"


def _load(path: Path, data: bytes) -> Manifest | None:
    path.write_bytes(data)
    try:
        return load_manifest(path)
    except ManifestError as refused:
        assert refused.faults
        assert len(str(refused)) < 100_000, "a refusal is read by a person"
        return None


def _read_on_host(document: object, *, accepted: bool) -> None:
    try:
        manifest_file.read_disks(document, "manifest")
    except BadRequest as refused:
        said = str(refused).removeprefix("manifest: ").split("; ")
        others = [one for one in said if not any(f".{field}:" in one for field in OF_FILES)]
        assert not (accepted and [one for one in others if one.startswith("disks[")]), str(refused)


def _decode(source: Path, target: Path) -> tuple[DecodeFault | None, int]:
    image = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with source.open("rb", buffering=0) as file:
            decoder = Decoder(
                file.readinto,
                lambda header: Qcow2Writer(image, header.capacity_bytes),
                functools.partial(_content, target.parent),
                lambda count: None,
            )
            try:
                return None, decoder.run().header.capacity_bytes
            except DecodeFault as fault:
                return fault, 0
            finally:
                decoder.close()
    finally:
        os.close(image)


def _content(folder: Path, header: vmdk.Header) -> ContentMap:
    return ContentMap(folder, header.capacity_bytes)


def _compare(source: Path, target: Path) -> None:
    command = ["qemu-img", "compare", "-f", "vmdk", "-F", "qcow2", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"qemu-img sees something else: {done.stdout}{done.stderr}"
