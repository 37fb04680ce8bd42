"""Decoding: what QEMU sees in the VMDK is what it sees in the image, for every kind of image and of disk."""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import random
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from hyperflow.kvmhost.images import codecs, decode
from hyperflow.kvmhost.images.content import ContentMap
from hyperflow.kvmhost.images.decode import DecodeFault

from tests.kvmhost.images import images, vmdk_writer
from tests.kvmhost.images.vmdk_writer import Stream

GRAIN = images.GRAIN
ROOT = Path(__file__).resolve().parents[3]


def disk_of(seed: int, chunks: int, tail: int) -> bytes:
    """A disk of noise, text, zeros and single bytes, whose last chunk has ``tail`` bytes."""
    choice = random.Random(seed)  # noqa: S311 - the same disk every time
    parts = []
    for index in range(chunks):
        kind = choice.choice(("zeros", "zeros", "noise", "text", "text", "byte"))
        if kind == "zeros":
            parts.append(bytes(GRAIN))
        elif kind == "noise":
            parts.append(images.noise(seed * 1000 + index))
        elif kind == "text":
            parts.append(images.text(index))
        else:
            chunk = bytearray(GRAIN)
            chunk[choice.randrange(512)] = 7
            parts.append(bytes(chunk))
    disk = b"".join(parts)
    return disk[: len(disk) - GRAIN + tail]


@pytest.mark.parametrize("kind", images.KINDS)
@pytest.mark.parametrize(("seed", "chunks", "tail"), [(1, 1, 512), (2, 40, GRAIN), (3, 150, 1024), (4, 700, 65024)])
def test_the_image_shows_what_the_vmdk_of_qemu_img_shows(
    tmp_path: Path, kind: str, seed: int, chunks: int, tail: int
) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(disk_of(seed, chunks, tail))
    source = images.stream_optimized(raw, tmp_path / "disk.vmdk")
    image = tmp_path / "image"

    decoded, content = images.decode(source, image, kind)

    form = "raw" if kind == "raw" else "qcow2"
    images.assert_same(raw, "raw", image, form)
    if form == "qcow2":
        images.assert_sound(image)
    assert decoded.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert decoded.bytes == source.stat().st_size
    assert content == images.content_digest(raw.read_bytes())


@pytest.mark.parametrize("kind", images.KINDS)
@pytest.mark.parametrize("grain_sectors", [128, 256, 2048])
def test_the_image_shows_what_a_vmdk_of_vsphere_shows(tmp_path: Path, kind: str, grain_sectors: int) -> None:
    size = grain_sectors * 512
    capacity = 700 * size + 3 * 512  # no multiple of a grain
    grains = [(number, images.text(number, size)) for number in (0, 1, 2, 3, 17, 18, 511, 512, 513, 699)]
    grains.append((700, images.noise(700, size)))  # reaches behind the end of the disk
    source = vmdk_writer.write(tmp_path / "disk.vmdk", capacity, grains, grain_sectors)
    image = tmp_path / "image"

    images.decode(source, image, kind)

    images.assert_same(source, "vmdk", image, "raw" if kind == "raw" else "qcow2")
    if kind != "raw":
        images.assert_sound(image)


@pytest.mark.parametrize("kind", images.KINDS)
@pytest.mark.parametrize("grain_sectors", [8, 16, 32, 64])
def test_grains_that_are_no_whole_chunks_are_refused_whatever_called_for_them(
    tmp_path: Path, kind: str, grain_sectors: int
) -> None:
    size = grain_sectors * 512
    source = vmdk_writer.write(
        tmp_path / "disk.vmdk", 600 * size, [(n, images.text(n, size)) for n in range(9)], grain_sectors
    )

    with pytest.raises(DecodeFault, match=f"grains of {size} bytes") as fault:
        images.decode(source, tmp_path / "image", kind)

    assert fault.value.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_last_grain_may_hold_no_more_than_the_disk_has(tmp_path: Path) -> None:
    source = vmdk_writer.write(tmp_path / "disk.vmdk", GRAIN + 1024, [(0, images.text(1)), (1, images.noise(2, 1024))])

    _, content = images.decode(source, tmp_path / "image.qcow2")

    assert content == images.content_digest(images.text(1) + images.noise(2, 1024))


def test_bytes_behind_the_end_of_the_disk_are_no_content(tmp_path: Path) -> None:
    source = vmdk_writer.write(tmp_path / "disk.vmdk", GRAIN + 1024, [(1, bytes(1024) + images.noise(2, GRAIN - 1024))])

    _, content = images.decode(source, tmp_path / "image.qcow2")

    assert content == images.content_digest(b"")


@pytest.mark.parametrize("kind", images.KINDS)
@pytest.mark.parametrize("level", [0, 1, 6])
def test_grains_of_zeros_are_not_stored(tmp_path: Path, kind: str, level: int) -> None:
    stream = Stream(128 * 64)
    for number in range(64):
        content = bytes(GRAIN) if number % 3 else images.noise(number)
        stream.add(number, b"", compressed=zlib.compress(content, level))  # level 0 is found only when inflated
    source = tmp_path / "disk.vmdk"
    source.write_bytes(stream.finish())
    image = tmp_path / "image"

    decoded, _ = images.decode(source, image, kind)

    assert decoded.bytes_written == 22 * GRAIN
    images.assert_same(source, "vmdk", image, "raw" if kind == "raw" else "qcow2")
    if kind != "raw":
        assert "No errors were found" in images.qemu_img("check", "-f", "qcow2", image)


@pytest.mark.parametrize("kind", images.KINDS)
def test_an_empty_disk_makes_an_empty_image(tmp_path: Path, kind: str) -> None:
    source = vmdk_writer.write(tmp_path / "disk.vmdk", 3 << 30, [])
    image = tmp_path / "image"

    decoded, content = images.decode(source, image, kind)

    assert decoded.bytes_written == 0
    assert content == hashlib.sha256(b"").hexdigest()
    images.assert_same(source, "vmdk", image, "raw" if kind == "raw" else "qcow2")


@pytest.mark.parametrize("kind", ["qcow2", "zstd", "zlib"])
def test_a_disk_of_many_tebibytes_costs_what_its_data_costs(tmp_path: Path, kind: str) -> None:
    last = (10 << 40) // GRAIN - 1
    source = vmdk_writer.write(tmp_path / "disk.vmdk", 10 << 40, [(0, images.text(1)), (last, images.noise(2))])
    image = tmp_path / "image.qcow2"

    images.decode(source, image, kind)

    assert image.stat().st_blocks * 512 < 4 << 20
    images.assert_sound(image)


@pytest.mark.parametrize("kind", images.KINDS)
def test_the_same_vmdk_makes_the_same_file_every_time(tmp_path: Path, kind: str) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(disk_of(5, 300, GRAIN))
    source = images.stream_optimized(raw, tmp_path / "disk.vmdk")

    made = set()
    for _ in range(3):
        images.decode(source, tmp_path / "image", kind)
        made.add(hashlib.sha256((tmp_path / "image").read_bytes()).hexdigest())

    assert len(made) == 1


def test_without_libdeflate_the_standard_zlib_does_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(disk_of(6, 100, 512))
    source = images.stream_optimized(raw, tmp_path / "disk.vmdk")
    monkeypatch.setattr(decode, "make_inflater", codecs.ZlibInflater)

    images.decode(source, tmp_path / "image.qcow2")

    images.assert_same(raw, "raw", tmp_path / "image.qcow2", "qcow2")


@pytest.mark.parametrize("inflater", ["libdeflate", "zlib"])
@pytest.mark.parametrize(
    ("name", "compressed", "word"),
    [
        ("bomb", zlib.compress(bytes(GRAIN * 1000), 9)[:60000], "more than 65536"),
        ("one byte too many", zlib.compress(bytes(GRAIN) + b"x"), "more than 65536"),
        ("cut stream", zlib.compress(images.text(1))[:-9], "damaged"),
        (
            "flipped byte",
            zlib.compress(images.noise(1))[:-2000] + b"\0" + zlib.compress(images.noise(1))[-1999:],
            "damaged",
        ),
        ("wrong checksum", zlib.compress(images.text(1))[:-4] + b"\1\2\3\4", "damaged"),
        ("no zlib at all", b"this is no compressed data", "damaged"),
        ("too short a grain", zlib.compress(bytes(100) + b"x" * 4000), "inflates to 4100 bytes"),
        ("nothing in it", zlib.compress(b""), "inflates to 0 bytes"),
    ],
)
def test_a_grain_that_is_damaged_or_a_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, inflater: str, name: str, compressed: bytes, word: str
) -> None:
    if inflater == "zlib":
        monkeypatch.setattr(decode, "make_inflater", codecs.ZlibInflater)
    stream = Stream(128 * 100)
    stream.add(0, images.text(1))
    stream.add(50, b"", compressed=compressed)
    source = tmp_path / "disk.vmdk"
    source.write_bytes(stream.finish())

    with pytest.raises(DecodeFault, match=word) as fault:
        images.decode(source, tmp_path / "image.qcow2")

    assert "grain 50 (disk offset 3276800)" in str(fault.value), name
    assert fault.value.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", images.KINDS)
def test_a_fault_far_into_the_stream_ends_every_kind_of_pass(tmp_path: Path, kind: str) -> None:
    stream = Stream(128 * 400)
    for number in range(300):
        stream.add(number, images.noise(number))
    stream.add(350, b"", compressed=b"damaged")
    source = tmp_path / "disk.vmdk"
    source.write_bytes(stream.finish())

    with pytest.raises(DecodeFault, match="grain 350"):
        images.decode(source, tmp_path / "image", kind)


@pytest.mark.parametrize("read_on", [False, True])
def test_a_digest_that_fails_ends_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_on: bool) -> None:
    """Its thread gives the buffers back, without which the reader would wait for ever."""
    monkeypatch.setattr(decode, "WINDOW", 1 << 16)  # more of them than there are buffers
    stream = Stream(128 * 400)
    for number in range(300):
        stream.add(number, images.noise(number))
    source, faults = io.BytesIO(bytes(stream.finish())), []

    class Failing:
        def update(self, data: memoryview) -> None:
            raise MemoryError

        def hexdigest(self) -> str:
            return ""

    def run() -> None:
        with (tmp_path / "image").open("w+b") as image:
            decoder = decode.Decoder(
                source.readinto,
                functools.partial(images.writer, image.fileno(), "raw"),
                lambda header: ContentMap(tmp_path, header.capacity_bytes),
                lambda count: None,
                digest=Failing(),
                read_on=read_on,
            )
            try:
                decoder.run()
            except MemoryError as fault:
                faults.append(fault)
            finally:
                decoder.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert len(faults) == 1


@pytest.mark.parametrize("length", [0, 1, 511, 512, 4096])
def test_a_file_that_is_hardly_there_is_told_as_cut(tmp_path: Path, length: int) -> None:
    source = tmp_path / "disk.vmdk"
    source.write_bytes(Stream(128).finish()[:length])

    with pytest.raises(DecodeFault, match="offset"):
        images.decode(source, tmp_path / "image.qcow2")


@pytest.mark.parametrize("kind", images.KINDS)
def test_a_file_system_that_is_full_ends_the_pass(tmp_path: Path, kind: str) -> None:
    """A limit on the size of files, in a process of its own, stands for the full file system."""
    source = vmdk_writer.write(tmp_path / "disk.vmdk", 100 * GRAIN, [(n, images.noise(n)) for n in range(100)])
    program = (
        "import resource, signal, sys; from pathlib import Path; from tests.kvmhost.images import images;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20));"
        f"images.decode(Path({str(source)!r}), Path({str(tmp_path / 'image')!r}), {kind!r})"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False, timeout=120
    )

    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert str(tmp_path / "image") in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("kind", images.KINDS)
def test_a_write_that_fails_on_its_way_to_the_disk_ends_the_pass_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source = vmdk_writer.write(tmp_path / "disk.vmdk", 9 * GRAIN, [(n, images.noise(n)) for n in range(9)])

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match="Input/output error") as fault:
        images.decode(source, tmp_path / "image", kind)

    assert fault.value.filename == str(tmp_path / "image")
