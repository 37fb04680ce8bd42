"""Thousands of generated VMDKs: what QEMU shows of each is what the decoded image shows.

qemu-img puts the disks of a batch one behind the other, once from the VMDKs and once from the images, and compares.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import random
from pathlib import Path

import pytest
from hyperflow.kvmhost.images.decode import DecodeFault

from tests.kvmhost.images import images, vmdk_generator
from tests.kvmhost.images.vmdk_generator import SECTOR

BATCH = 100
BATCHES = 24
BY_QEMU_IMG = 120
SMALL = 20  # of each size of grains below 64 KiB
FORMAT = {"qcow2": "qcow2", "raw": "raw", "zstd": "qcow2", "zlib": "qcow2"}


@pytest.mark.parametrize("kind", images.KINDS)
def test_generated_vmdks_are_decoded_to_what_qemu_shows_of_them(tmp_path: Path, kind: str) -> None:
    mine = [batch for batch in range(BATCHES) if images.KINDS[batch % len(images.KINDS)] == kind]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda batch: check_batch(tmp_path / str(batch), batch, kind), mine))


def check_batch(folder: Path, batch: int, kind: str) -> None:
    folder.mkdir()
    disks = []
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        source = folder / f"{seed}.vmdk"
        shape = vmdk_generator.write(source, seed)
        disks.append((source, shape.capacity * SECTOR))
    hold_to_qemu(folder, disks, kind)


@pytest.mark.parametrize("grain", [8, 16, 32, 64])
def test_generated_vmdks_of_grains_below_64_kib_are_refused_here_and_shown_whole_by_what_qemu_img_makes(
    tmp_path: Path, grain: int
) -> None:
    for seed in range(SMALL):
        vmdk_generator.write(tmp_path / f"{seed}.vmdk", seed, grain)
        with pytest.raises(DecodeFault, match="grains of"):
            images.decode(tmp_path / f"{seed}.vmdk", tmp_path / "image")

    digests = images.convert_all(tmp_path)

    raw = tmp_path / "raw"
    for seed in range(SMALL):
        raw.write_bytes(vmdk_generator.disk(seed, grain))
        images.assert_same(raw, "raw", tmp_path / f"{seed}.qcow2", "qcow2")
        assert digests[str(seed)] == images.content_digest(raw.read_bytes()), seed


def test_vmdks_of_qemu_img_are_decoded_to_what_it_put_into_them(tmp_path: Path) -> None:
    def make(seed: int) -> tuple[Path, int]:
        choice = random.Random(seed)  # noqa: S311 - the same disks every time
        parts = [choice.choice((bytes(images.GRAIN), images.text(n), images.noise(seed + n))) for n in range(9)]
        raw = tmp_path / f"{seed}.raw"
        raw.write_bytes(b"".join(parts)[: choice.randrange(1, 9 * 128) * SECTOR])
        return images.stream_optimized(raw, tmp_path / f"{seed}.vmdk"), raw.stat().st_size

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        disks = list(pool.map(make, range(BY_QEMU_IMG)))

    hold_to_qemu(tmp_path, disks, "qcow2")


def hold_to_qemu(folder: Path, disks: list[tuple[Path, int]], kind: str) -> None:
    """Decode each disk; together they show what QEMU shows of their VMDKs, and each has the digests it should."""
    made = []
    for source, _ in disks:
        decoded, content = images.decode(source, source.with_suffix(".image"), kind)
        assert decoded.sha256 == hashlib.sha256(source.read_bytes()).hexdigest(), source
        made.append(content)
    joined, ours = folder / "joined.raw", folder / "ours.raw"
    images.qemu_img("convert", "-f", "vmdk", "-O", "raw", *(source for source, _ in disks), joined)
    pictures = [source.with_suffix(".image") for source, _ in disks]
    images.qemu_img("convert", "-f", FORMAT[kind], "-O", "raw", *pictures, ours)
    with joined.open("rb") as file:
        for (source, size), content in zip(disks, made, strict=True):
            assert content == images.content_digest(file.read(size)), source
    images.assert_same(joined, "raw", ours, "raw")
    if kind != "raw":
        assert "No errors were found" in images.qemu_img("check", "-f", "qcow2", pictures[0])
    for path in (joined, ours, *pictures, *(source for source, _ in disks)):
        path.unlink()
