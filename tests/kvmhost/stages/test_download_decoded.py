"""A disk that is decoded while it is downloaded, and the conversion that takes the result over."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost.images import decode, receive
from hyperflow.kvmhost.stage import BadRequest, Job, StageError, TryAgain
from hyperflow.kvmhost.stages import download
from hyperflow.kvmhost.stages.download import DecodeTo

from tests.kvmhost.images import images, vmdk_writer
from tests.kvmhost.stages import running, staged, tls_server
from tests.kvmhost.stages.tls_server import Handler, Server

GRAINS = 700
CAPACITY = GRAINS * images.GRAIN
SKIPPED = "decoded while it was downloaded"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls_server.make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def vmdk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("vmdk") / "disk.vmdk"
    grains = [(n, images.noise(n) if n % 3 else images.text(n)) for n in range(0, GRAINS, 7)]
    return vmdk_writer.write(path, CAPACITY, grains).read_bytes()


def send(data: bytes, length: int | None = None) -> tls_server.Answer:
    def answer(handler: Handler) -> None:
        handler.start(len(data) if length is None else length)
        handler.wfile.write(data)

    return answer


@pytest.fixture
def server(certificate: Path, vmdk: bytes) -> Iterator[Server]:
    with tls_server.serve(certificate, send(vmdk)) as serving:
        yield serving


def downloaded(server: Server, folder: Path, **decode: Any) -> Path:
    """Download and decode; the staged file."""
    target = folder / "staging" / "web01-disk1.vmdk"
    form = {"image": folder / "output" / "disk-0.qcow2", "format": "qcow2", **decode}
    options = download.Options(
        url=server.url,
        target=target,
        disk_id="disk-0",
        thumbprints=[server.sha256],
        capacity_bytes=CAPACITY,
        source="vm-1 snapshot-2 run-3",
        timeout_seconds=20.0,
        decode=DecodeTo(**form),
    )
    observed = download.run(options, Job("download"))
    assert observed["sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    return target


def converted(folder: Path, source: Path, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """Convert the staged file; the image, held to the source by qemu-img, and the stage's result."""
    asked = {
        "manifest": staged.manifest(source.parent, source),
        "disk_id": "disk-0",
        "output_directory": str(folder / "output"),
        "filename": "disk-0.qcow2",
        "format": "qcow2",
        **changes,
    }
    result = running.run("convert", asked)
    assert result["exit_status"] == 0, result["log"]
    image = folder / "output" / asked["filename"]
    images.assert_same(source, "vmdk", image, asked["format"])
    assert result["observed"]["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert sorted(path.name for path in image.parent.iterdir()) == [f".{image.name}.json", image.name]
    return image, result


@pytest.mark.parametrize(
    "form",
    [
        {"format": "qcow2"},
        {"format": "raw"},
        {"format": "vdi"},
        {"format": "qcow2", "compress": True, "compress_type": "zstd", "compress_level": 3},
        {"format": "qcow2", "compress": True, "compress_type": "zlib"},
    ],
    ids=lambda form: "-".join(map(str, form.values())),
)
def test_convert_takes_over_what_was_decoded_in_every_form(
    server: Server, tmp_path: Path, form: dict[str, Any]
) -> None:
    source = downloaded(server, tmp_path, **form)
    image, result = converted(tmp_path, source, **form)
    assert SKIPPED in result["log"]

    image.unlink()
    image.with_name(f".{image.name}.json").unlink()
    _, again = converted(tmp_path, source, **form)
    assert SKIPPED not in again["log"]
    for fact in ("content_sha256", "clusters", "virtual_bytes", "staged_sha256", "sha256"):
        if fact != "sha256" or form["format"] != "vdi":  # in which qemu-img writes a random UUID
            assert again["observed"][fact] == result["observed"][fact]


@pytest.mark.parametrize("grain_sectors", [8, 16, 64])
@pytest.mark.parametrize("form", [{"format": "qcow2"}, {"format": "raw"}, {"format": "qcow2", "compress": True}])
def test_grains_below_64_kib_are_left_to_convert_and_nothing_of_the_disk_is_lost(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: dict[str, Any], grain_sectors: int
) -> None:
    size = grain_sectors * vmdk_writer.SECTOR
    grains = [(n, images.noise(n, size) if n % 3 else images.text(n, size)) for n in (*range(0, 600, 7), 601, 602)]
    disk = vmdk_writer.write(tmp_path / "small.vmdk", CAPACITY, grains, grain_sectors)
    server.answer = send(disk.read_bytes())

    source = downloaded(server, tmp_path, **form)

    assert source.read_bytes() == disk.read_bytes()
    assert f"grains of {size} bytes" in capsys.readouterr().out
    assert list((tmp_path / "output").iterdir()) == []
    _, result = converted(tmp_path, source, **form)
    assert SKIPPED not in result["log"]
    assert result["observed"]["content_sha256"] == images.content_digest(plain(grains, size))


def plain(grains: list[tuple[int, bytes]], size: int) -> bytes:
    """The disk that a guest sees."""
    disk = bytearray(CAPACITY)
    for number, content in grains:
        disk[number * size : number * size + len(content)] = content
    return bytes(disk)


def small_grains(folder: Path) -> bytes:
    """A disk in grains of 8 KiB."""
    return vmdk_writer.write(
        folder / "small", CAPACITY, [(n, images.noise(n, 8192)) for n in range(99)], 16
    ).read_bytes()


def test_grains_below_64_kib_that_come_in_pieces_arrive_whole(server: Server, tmp_path: Path) -> None:
    disk = small_grains(tmp_path)

    def answer(handler: Handler) -> None:
        handler.start(None, Transfer_Encoding="chunked")
        for start, end in itertools.pairwise((0, 5, 511, 512, 513, 70_000, len(disk))):
            handler.chunk(disk[start:end])
            handler.wfile.flush()
        handler.chunk(b"")

    server.answer = answer
    source = downloaded(server, tmp_path)
    assert source.read_bytes() == disk
    converted(tmp_path, source)


@pytest.mark.parametrize("length", [300, 600, 200_000])
def test_grains_below_64_kib_that_are_cut_leave_nothing(server: Server, tmp_path: Path, length: int) -> None:
    disk = small_grains(tmp_path)
    server.answer = send(disk[:length], len(disk))
    with pytest.raises(TryAgain, match=f"ended after {length} of"):
        downloaded(server, tmp_path)
    assert list((tmp_path / "output").iterdir()) == list((tmp_path / "staging").iterdir()) == []


def test_what_an_older_version_has_decoded_of_grains_below_64_kib_is_not_taken_over(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds nothing but zeros, and its note and digests agree with it."""
    for module in (decode, receive):
        monkeypatch.setattr(module, "require_whole_chunks", lambda header: None)
    server.answer = send(small_grains(tmp_path))
    source = downloaded(server, tmp_path)
    note = json.loads((tmp_path / "output/.disk-0.qcow2.decoded.partial/note").read_text())
    assert note["clusters"] == 0

    _, result = converted(tmp_path, source)

    assert SKIPPED not in result["log"]
    assert "is not taken" in result["log"]
    assert result["observed"]["clusters"] > 0


@pytest.mark.parametrize("grain_sectors", [256, 2048])
def test_grains_of_several_chunks_are_decoded_on_their_way(server: Server, tmp_path: Path, grain_sectors: int) -> None:
    size = grain_sectors * vmdk_writer.SECTOR
    last = (CAPACITY - 1) // size  # it reaches behind the end of the disk
    disk = vmdk_writer.write(
        tmp_path / "large", CAPACITY, [(n, images.noise(n, size)) for n in (0, 1, last)], grain_sectors
    )
    server.answer = send(disk.read_bytes())
    source = downloaded(server, tmp_path)
    _, result = converted(tmp_path, source)
    assert SKIPPED in result["log"]


@pytest.mark.parametrize("grain_sectors", [4, 96, 192, 4096])
def test_grains_of_a_size_that_the_format_does_not_have_are_refused(
    server: Server, tmp_path: Path, grain_sectors: int
) -> None:
    """Among them those of more than 64 KiB that are no multiple of it."""
    stream = vmdk_writer.Stream(CAPACITY // vmdk_writer.SECTOR, grain_sectors)
    stream.add(0, images.noise(0, grain_sectors * vmdk_writer.SECTOR))
    server.answer = send(stream.finish())
    with pytest.raises(StageError, match=f"grain size: found {grain_sectors} sectors"):
        downloaded(server, tmp_path)
    assert list((tmp_path / "output").iterdir()) == list((tmp_path / "staging").iterdir()) == []


def test_fixes_are_laid_over_what_was_decoded(server: Server, tmp_path: Path) -> None:
    source = downloaded(server, tmp_path)
    overlay = source.with_name("overlay.qcow2")
    images.qemu_img("create", "-q", "-f", "qcow2", "-b", source, "-F", "vmdk", overlay)
    images.qemu_io(overlay, "write -P 7 70000 200000", "write -z 655360 65536")
    asked = {
        "manifest": staged.manifest(source.parent, source),
        "disk_id": "disk-0",
        "output_directory": str(tmp_path / "output"),
        "filename": "disk-0.qcow2",
        "format": "qcow2",
        "overlay": str(overlay),
    }
    result = running.run("convert", asked)
    assert result["exit_status"] == 0, result["log"]
    assert SKIPPED in result["log"]
    images.assert_same(overlay, "qcow2", tmp_path / "output" / "disk-0.qcow2", "qcow2")


def test_another_form_is_decoded_anew(server: Server, tmp_path: Path) -> None:
    source = downloaded(server, tmp_path)
    _, result = converted(tmp_path, source, compress=True)
    assert SKIPPED not in result["log"]
    assert "another form" in result["log"]


@pytest.mark.parametrize("name", ["image", "content", "note"])
def test_what_was_changed_since_is_decoded_anew(server: Server, tmp_path: Path, name: str) -> None:
    source = downloaded(server, tmp_path)
    path = tmp_path / "output" / ".disk-0.qcow2.decoded.partial" / name
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"!!!!")
    _, result = converted(tmp_path, source)
    assert SKIPPED not in result["log"]


def test_another_disks_bytes_are_never_taken_for_this_ones(server: Server, tmp_path: Path) -> None:
    source = downloaded(server, tmp_path)
    other = vmdk_writer.write(tmp_path / "other.vmdk", CAPACITY, [(1, images.noise(99))]).read_bytes()
    source.write_bytes(other)
    _, result = converted(tmp_path, source)
    assert SKIPPED not in result["log"]


def test_a_link_in_the_decoded_folders_place_is_not_followed(server: Server, tmp_path: Path) -> None:
    source = downloaded(server, tmp_path)
    folder = tmp_path / "output" / ".disk-0.qcow2.decoded.partial"
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    _, result = converted(tmp_path, source)
    assert SKIPPED not in result["log"]
    assert sorted(path.name for path in elsewhere.iterdir()) == ["content", "image", "note"]


@pytest.mark.parametrize("length", [700, 100_000, 3_000_000])
def test_a_download_that_is_cut_leaves_nothing_decoded(
    server: Server, tmp_path: Path, vmdk: bytes, length: int
) -> None:
    server.answer = send(vmdk[:length], len(vmdk))
    with pytest.raises(TryAgain, match=f"ended after {length} of"):
        downloaded(server, tmp_path)
    assert list((tmp_path / "output").iterdir()) == list((tmp_path / "staging").iterdir()) == []


def test_a_flipped_bit_in_a_grain_is_noticed_on_its_way_and_tried_again(
    server: Server, tmp_path: Path, vmdk: bytes
) -> None:
    middle = len(vmdk) // 2
    server.answer = send(vmdk[:middle] + bytes([vmdk[middle] ^ 1]) + vmdk[middle + 1 :])
    with pytest.raises(TryAgain, match=r"damaged.*grain \d+ \(disk offset \d+\)"):
        downloaded(server, tmp_path)
    assert list((tmp_path / "output").iterdir()) == list((tmp_path / "staging").iterdir()) == []


def test_what_is_no_vmdk_is_refused_before_all_of_it_came(server: Server, tmp_path: Path) -> None:
    server.answer = send(b"<html>" + bytes(50_000_000))
    with pytest.raises(StageError, match="no streamOptimized VMDK"):
        downloaded(server, tmp_path)
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_disk_of_another_size_is_refused(server: Server, tmp_path: Path, vmdk: bytes) -> None:
    other = vmdk_writer.write(tmp_path / "other.vmdk", CAPACITY * 2, [(1, images.noise(1))])
    server.answer = send(other.read_bytes())
    with pytest.raises(BadRequest, match="capacity"):
        downloaded(server, tmp_path)


def test_a_form_that_does_not_exist_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"options\.decode\.format: found 'qcow3'"):
        downloaded(server, tmp_path, format="qcow3")
    assert list((tmp_path / "staging").iterdir()) == []


def test_an_output_directory_that_takes_nothing_ends_the_download_and_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "output").touch()
    with pytest.raises(StageError, match=rf"{tmp_path}/output"):
        downloaded(server, tmp_path)
    assert list((tmp_path / "staging").iterdir()) == []
