"""The scanner takes what vSphere and qemu-img write, and refuses what is cut, crafted or absurd."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hyperflow.kvmhost.images import vmdk_scanner
from hyperflow.kvmhost.images.vmdk import TruncatedVmdk, UnsupportedVmdk, VmdkError
from hyperflow.kvmhost.images.vmdk_scanner import Scanner

from tests.kvmhost.images import images, vmdk_writer
from tests.kvmhost.images.vmdk_writer import Header, Stream, descriptor

CAPACITY = 128 * 2000  # sectors: 2,000 grains, four grain tables


def scan(data: bytes, window: int = 1 << 20) -> Scanner:
    """Scan a file in windows, as the decoder and the download do."""
    scanner = Scanner()
    carried = b""
    for start in range(0, len(data), window):
        joined = carried + data[start : start + window]
        _, taken = scanner.feed(memoryview(joined))
        carried = joined[taken:]
    scanner.finish(len(carried))
    return scanner


def sound(grains: int = 3) -> Stream:
    stream = Stream(CAPACITY)
    for number in range(grains):
        stream.add(number * 300, images.text(number))
    return stream


def refused(data: bytes, kind: type[VmdkError] = VmdkError) -> str:
    with pytest.raises(kind) as fault:
        scan(data)
    assert "offset" in str(fault.value)
    return str(fault.value)


def test_a_stream_as_vsphere_writes_it_is_taken() -> None:
    scanner = scan(sound(6).finish())

    assert scanner.grains == 6
    assert scanner.ended
    assert scanner.header is not None
    assert scanner.header.capacity_bytes == CAPACITY * 512


def test_a_stream_as_qemu_img_writes_it_is_taken(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(images.text(1) + bytes(100 * 65536) + images.noise(2))

    scanner = scan(images.stream_optimized(raw, tmp_path / "disk.vmdk").read_bytes())

    assert scanner.grains == 2
    assert not scanner.ended


@pytest.mark.parametrize("window", [1, 7, 511, 512, 513, 4096, 65536, 100_000, 1 << 22])
def test_the_size_of_the_windows_does_not_matter(window: int) -> None:
    stream = Stream(128 * 600)
    for number in (0, 1, 511, 512, 599):
        stream.add(number, images.text(number))

    assert scan(stream.finish(), window).grains == 5


def test_an_empty_disk_is_taken() -> None:
    assert scan(Stream(CAPACITY).finish()).grains == 0


def test_grains_may_come_in_any_order_within_a_table() -> None:
    stream = Stream(CAPACITY)
    for number in (5, 3, 400, 0):
        stream.add(number, images.text(number))

    assert scan(stream.finish()).grains == 4


def test_tables_may_all_stand_at_the_end() -> None:
    stream = Stream(CAPACITY)
    places = {}
    for number in (0, 512, 1024):
        stream.current.clear()
        stream.add(number, images.text(number))
        places[number] = dict(stream.current)
    for current in places.values():
        stream.current = current
        stream.flush()

    assert scan(stream.finish()).grains == 3


def test_an_empty_grain_table_may_be_listed() -> None:
    stream = Stream(CAPACITY)
    stream.add(0, images.text(0))
    stream.flush()
    stream.data += vmdk_writer.marker(vmdk_writer.GRAIN_TABLE, 4)
    stream.tables[1] = len(stream.data) // 512
    stream.data += bytes(2048)

    assert scan(stream.finish()).grains == 1


def test_a_cut_file_is_refused_wherever_it_is_cut() -> None:
    whole = sound().finish()

    for end in [*range(0, len(whole), 4096), len(whole) - 512, len(whole) - 1]:
        refused(whole[:end], TruncatedVmdk)


def test_a_file_of_qemu_img_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(images.text(1) * 3 + images.noise(2))
    whole = images.stream_optimized(raw, tmp_path / "disk.vmdk").read_bytes()

    for end in [*range(0, len(whole.rstrip(b"\0")), 4096), len(whole.rstrip(b"\0")) - 512]:
        refused(whole[:end], TruncatedVmdk)


def test_bytes_behind_the_end_are_refused() -> None:
    assert "after the end" in refused(sound().finish() + bytes(512))


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("magic", b"COWD", "magic"),
        ("magic", b"\x7fELF", "magic"),
        ("version", 0, "version"),
        ("version", 4, "version"),
        ("newlines", b"\n \n\n", "newline"),
        ("method", 0, "compression"),
        ("method", 2, "compression"),
        ("capacity", 0, "capacity"),
        ("capacity", (64 << 40) // 512 + 1, "capacity"),
        ("capacity", 2**64 - 1, "capacity"),
        ("grain", 0, "grain size"),
        ("grain", 4, "grain size"),
        ("grain", 127, "grain size"),
        ("grain", 4096, "grain size"),
        ("grain", 2**63, "grain size"),
        ("capacity", 2**63, "capacity"),
        ("entries", 0, "entries"),
        ("entries", 511, "entries"),
        ("entries", 2**32 - 1, "entries"),
        ("descriptor_offset", 0, "descriptor"),
        ("descriptor_offset", 120, "descriptor"),
        ("descriptor_offset", 2**63, "descriptor"),
        ("descriptor_size", 0, "descriptor size"),
        ("descriptor_size", 1 << 20, "descriptor size"),
        ("overhead", 0, "descriptor"),
        ("overhead", 20, "descriptor"),
        ("directory", 0, "directory"),
        ("directory", 128, "directory"),
        ("directory", 2**63, "directory"),
    ],
)
def test_an_absurd_header_is_refused(field: str, value: object, word: str) -> None:
    header = Header(CAPACITY)
    setattr(header, field, value)

    assert word in refused(Stream(CAPACITY, header=header).finish())


@pytest.mark.parametrize(
    ("field", "value"), [("flags", 1), ("flags", 0x10001), ("flags", 0x20001), ("overhead", 1 << 40)]
)
def test_another_kind_of_vmdk_is_left_to_others(field: str, value: int) -> None:
    header = Header(CAPACITY)
    setattr(header, field, value)

    refused(Stream(CAPACITY, header=header).finish(), UnsupportedVmdk)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (descriptor(CAPACITY, parent="12345678"), "parentcid"),
        (descriptor(CAPACITY, extra='parentFileNameHint="/etc/shadow"'), "parentfilenamehint"),
        (descriptor(CAPACITY, create_type="monolithicFlat"), "createtype"),
        (descriptor(CAPACITY, create_type="custom"), "createtype"),
        (descriptor(CAPACITY, extra='RW 128 FLAT "/dev/sda" 0'), "2 extents"),
        (descriptor(CAPACITY).replace(b"SPARSE", b"FLAT"), "extent"),
        (descriptor(CAPACITY).replace(b"generated-stream.vmdk", b"../../other.vmdk"), "bare name"),
        (descriptor(CAPACITY).replace(b"generated-stream.vmdk", b"/etc/shadow"), "bare name"),
        (descriptor(CAPACITY + 1), "sectors"),
        (descriptor(1), "sectors"),
        (b"", "createtype"),
        (b"\xff" * 5000, "createtype"),
        (b'createType="streamOptimized"\n', "0 extents"),
        (descriptor(CAPACITY, extra='RW\t1\tFLAT\t"/etc/shadow"\t0'), "2 extents"),
        (descriptor(CAPACITY).replace(str(CAPACITY).encode(), b"9" * 5000), "extent"),
    ],
)
def test_a_descriptor_that_points_elsewhere_is_refused(text: bytes, word: str) -> None:
    assert word in refused(Stream(CAPACITY, text=text).finish())


def test_a_grain_behind_the_end_of_the_disk_is_refused() -> None:
    stream = sound()
    stream.add(2000, images.text(1))

    assert "behind the end of the disk" in refused(stream.finish())


@pytest.mark.parametrize("lba", [1, 127, 129, 2**64 - 1, 2**63])
def test_a_grain_at_no_grains_place_is_refused(lba: int) -> None:
    stream = sound()
    stream.add(7, images.text(1), lba=lba)

    assert f"sector {lba}" in refused(stream.finish())


def test_a_grain_that_comes_twice_is_refused() -> None:
    stream = sound(1)
    stream.add(0, images.text(9))

    assert "second grain" in refused(stream.finish())


def test_a_grain_that_comes_again_behind_its_table_is_refused() -> None:
    stream = sound(1)
    stream.flush()
    stream.add(0, images.text(9))

    assert "behind the grain table" in refused(stream.finish())


@pytest.mark.parametrize("size", [70_000, 1 << 20, 2**32 - 1])
def test_a_grain_larger_than_any_compressed_grain_is_refused(size: int) -> None:
    stream = sound()
    stream.data += struct.pack("<QI", 128 * 7, size) + bytes(500)

    assert f"{size} bytes" in refused(stream.finish())


@pytest.mark.parametrize("kind", [4, 5, 2**31, 2**32 - 1])
def test_an_unknown_marker_is_refused(kind: int) -> None:
    stream = sound()
    stream.data += vmdk_writer.marker(kind, 1)

    assert "marker of type" in refused(stream.finish())


@pytest.mark.parametrize("sectors", [0, 3, 5, 2**40, 2**64 - 1])
def test_a_table_of_another_length_is_refused(sectors: int) -> None:
    stream = sound()
    stream.data += vmdk_writer.marker(vmdk_writer.GRAIN_TABLE, sectors)

    assert "sectors after a marker" in refused(stream.finish())


@pytest.mark.parametrize(
    "edit",
    [
        lambda entries: [0] * 512,
        lambda entries: [entry + 1 if entry else 0 for entry in entries],
        lambda entries: entries[1:] + entries[:1],
        lambda entries: [*entries[:-1], 4096],
        lambda entries: [2**32 - 1] * 512,
    ],
)
def test_a_table_that_lists_other_grains_is_refused(edit: Callable[[list[int]], list[int]]) -> None:
    stream = sound()
    stream.edit_table = edit

    refused(stream.finish())


@pytest.mark.parametrize(
    "edit",
    [
        lambda entries: [0] * len(entries),
        lambda entries: [entry + 1 for entry in entries],
        lambda entries: entries[::-1],
        lambda entries: [*entries[:-1], 1],
    ],
)
def test_a_directory_that_lists_other_tables_is_refused(edit: Callable[[list[int]], list[int]]) -> None:
    stream = sound()
    stream.edit_directory = edit

    assert "directory points" in refused(stream.finish())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("capacity", CAPACITY + 128),
        ("grain", 256),
        ("directory", 5),
        ("directory", AT_END := 2**64 - 1),
        ("magic", b"XXXX"),
    ],
)
def test_a_footer_that_is_not_the_headers_is_refused(field: str, value: object) -> None:
    stream = sound()
    stream.edit_footer = lambda header: Header(**{**vars(header), field: value})

    refused(stream.finish())


def test_a_footer_with_another_reading_of_table_entries_is_refused() -> None:
    """QEMU takes the footer for the header: an entry of 1 would be a grain to it and zeros to us, or the reverse."""
    stream = sound()
    stream.edit_footer = lambda header: Header(**{**vars(header), "flags": header.flags | 4})

    assert "flags" in refused(stream.finish())


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_is_taken(version: int) -> None:
    stream = Stream(CAPACITY, header=Header(CAPACITY, version=version))
    stream.add(0, images.text(0))

    assert scan(stream.finish()).grains == 1


def test_small_grains_of_a_huge_disk_are_refused_for_what_their_tables_cost() -> None:
    assert "grains of the disk" in refused(Stream(1 << 36, header=Header(1 << 36, grain=8)).finish())


def test_a_missing_footer_is_refused() -> None:
    assert "footer" in refused(sound().finish(footer=False))


def test_a_missing_end_is_refused() -> None:
    assert "end-of-stream" in refused(sound().finish(end=False), TruncatedVmdk)


def test_an_end_before_the_directory_is_refused() -> None:
    stream = sound()
    stream.data += vmdk_writer.marker(vmdk_writer.END_OF_STREAM, 0)

    assert "without a footer" in refused(bytes(stream.data))


def test_a_second_directory_is_refused() -> None:
    stream = sound()
    stream.finish(footer=False, end=False)

    refused(stream.finish())


def test_a_grain_behind_the_directory_is_refused() -> None:
    stream = sound()
    stream.finish(footer=False, end=False)
    stream.add(1999, images.text(1))

    assert "behind the grain directory" in refused(bytes(stream.data))


def test_markers_of_empty_tables_without_an_end_are_refused_for_what_they_cost() -> None:
    stream = sound()
    for _ in range(1000):
        stream.data += vmdk_writer.marker(vmdk_writer.GRAIN_TABLE, 4) + bytes(2048)

    assert "more empty grain tables than the disk has" in refused(stream.finish())


def test_grains_of_ever_new_tables_are_refused_for_what_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmdk_scanner, "PENDING_LIMIT", 3)
    stream = Stream(CAPACITY)
    for number in (0, 512, 1024, 1536):
        stream.current.clear()
        stream.add(number, images.text(number))

    assert "without a table" in refused(bytes(stream.data))


def in_front(directory: list[int], capacity: int = CAPACITY, **fields: int) -> bytes:
    """A file with its tables in front, as qemu-img writes it: the directory at sector 32, tables from sector 48 on."""
    header = Header(capacity, directory=32, **fields)
    data = bytearray(Stream(capacity, header=header).data)
    data[32 * 512 : 32 * 512 + 4 * len(directory)] = struct.pack(f"<{len(directory)}I", *directory)
    data[48 * 512 : 48 * 512 + 4] = struct.pack("<I", 128)  # the first grain of the table at sector 48
    return bytes(data) + vmdk_writer.grain(0, zlib.compress(images.text(1)))


def test_tables_in_front_are_taken_and_empty_ones_may_be_one_and_the_same() -> None:
    assert scan(in_front([48, 0, 64, 64])).grains == 1


@pytest.mark.parametrize("directory", [[48, 48, 0, 0], [48, 45, 0, 0], [48, 51, 0, 0]])
def test_tables_in_front_that_list_a_grain_twice_are_refused(directory: list[int]) -> None:
    data = bytearray(in_front(directory))
    data[51 * 512 : 51 * 512 + 4] = data[45 * 512 : 45 * 512 + 4] = struct.pack("<I", 128)

    assert "where another one lies" in refused(bytes(data))


def test_a_disk_of_64_tebibytes_without_grains_takes_no_memory_for_its_tables() -> None:
    """A directory of 8 MiB would stand for tables of 4 GiB."""
    capacity = (64 << 40) // 512
    front = bytearray(Header(capacity, directory=128, overhead=128 + (8 << 20) // 512).pack())
    text = descriptor(capacity)
    front += text.ljust(127 * 512, b"\0") + bytes(8 << 20)
    tracemalloc.start()
    try:
        assert scan(bytes(front) + bytes(512)).grains == 0
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def of_qemu_img(folder: Path, disk: bytes) -> bytes:
    """A VMDK as qemu-img writes it, without the zeros at its end."""
    raw = folder / "disk.raw"
    raw.write_bytes(disk)
    data = images.stream_optimized(raw, folder / "disk.vmdk").read_bytes()
    end = len(data.rstrip(b"\0"))
    return data[: -(-end // 512) * 512]


def test_a_grain_that_qemu_imgs_tables_do_not_list_is_refused(tmp_path: Path) -> None:
    data = of_qemu_img(tmp_path, images.text(1) + bytes(65536))

    assert "grain table points" in refused(data + vmdk_writer.grain(128, zlib.compress(images.text(2))))


@pytest.mark.parametrize("padding", [0, 512, 1024, 65024, 65536])
def test_the_zeros_that_qemu_img_fills_up_with_are_passed_over(tmp_path: Path, padding: int) -> None:
    assert scan(of_qemu_img(tmp_path, images.text(1)) + bytes(padding)).grains == 1


@pytest.mark.parametrize("behind", [bytes(65536 + 512), bytes(512) + b"x" * 512, bytes(512) + b"\0" * 511 + b"x"])
def test_anything_else_behind_the_end_is_refused(tmp_path: Path, behind: bytes) -> None:
    assert "after the end" in refused(of_qemu_img(tmp_path, images.text(1)) + behind)
