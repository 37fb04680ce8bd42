"""Makes VMDKs that are sound or wrong in one or two things, out of a seed: structure-aware, for fuzzing."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.kvmhost.images import vmdk_writer
from tests.kvmhost.images.vmdk_writer import END_OF_STREAM, FOOTER, GRAIN_DIRECTORY, GRAIN_TABLE, SECTOR, Header

INTERESTING = (0, 1, 2, 3, 7, 8, 127, 128, 129, 511, 512, 513, 2047, 2048, 4096, 65535, 1 << 16, 1 << 31, (1 << 32) - 1)
HUGE = (1 << 33, 1 << 37, 1 << 40, 1 << 55, 1 << 62, 1 << 63, (1 << 64) - 1)
SMALL = (8, 16, 64)  # sectors of grains that are smaller than what our own decoder takes
FRONT = 3  # sectors in front of the first grain: header and descriptor, as small as can be


@dataclass
class _Piece:
    """A part of the stream: a marker with what follows it."""

    value: int
    size: int
    kind: int
    body: bytes
    grain: int | None = None
    entries: list[int] = field(default_factory=list)

    def pack(self) -> bytes:
        if self.size:
            return vmdk_writer.pad(struct.pack("<QI", self.value, self.size) + self.body)
        return struct.pack("<QII", self.value, 0, self.kind).ljust(SECTOR, b"\0") + self.body


def craft(seed: int) -> bytes:
    """Make one file; every other seed gives a sound one, as vSphere or as qemu-img lays it out."""
    choice = random.Random(seed)  # noqa: S311 - the same file every time
    faults = choice.choice((0, 0, 1, 1, 1, 2)) if seed % 2 else 0
    grain = choice.choice((128, 128, 128, 256, 2048))
    if seed % 8 >= 6:  # one sound file and one with faults out of eight
        grain = SMALL[seed // 8 % len(SMALL)]
    capacity = max(1, choice.choice((1, 3, 40, 513, 600, 1100)) * grain - choice.choice((0, 0, 1, 3, grain - 1)))
    header = Header(capacity, grain, version=choice.choice((1, 2, 3)), flags=0x30001 | choice.choice((0, 2, 4)))
    header.descriptor_size, header.overhead = FRONT - 1, FRONT
    numbers = _numbers(choice, -(-capacity // grain))
    if choice.random() < 0.3:
        data = _in_front(choice, header, numbers, faults)
    else:
        data = _behind(choice, header, numbers, faults)
    for _ in range(faults):
        if choice.random() < 0.3:
            data = _spoil_bytes(choice, data)
    return bytes(data)


def _numbers(choice: random.Random, count: int) -> list[int]:
    picked = choice.sample(range(count), min(count, choice.choice((0, 1, 2, 3, 5, 9))))
    return picked if choice.random() < 0.3 else sorted(picked)


def _content(choice: random.Random, size: int, left: int) -> bytes:
    kind = choice.randrange(6)
    if kind == 0:
        data = bytes(size)
    elif kind == 1:
        data = choice.randbytes(64) * (size // 64)
    elif kind == 2:
        data = bytes(choice.randrange(size)) + b"x"
        data = data.ljust(size, b"\0")
    elif kind == 3:
        data = choice.randbytes(choice.choice((480, 495, 500, 501, 1012, 1013))).ljust(size, b"\0")
    else:
        data = (f"line {choice.randrange(1000)}\n".encode() * size)[:size]
    return data[: min(size, left)] if choice.random() < 0.3 else data


def _compress(choice: random.Random, data: bytes) -> bytes:
    level = choice.choice((0, 1, 6, 9))
    return zlib.compress(data, level if len(data) < 70000 else 1)


def _bad_grain(choice: random.Random, compressed: bytes, size: int) -> bytes:
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: compressed[: len(compressed) // 2],
        lambda: compressed[:-1],
        lambda: compressed + b"trailing",
        lambda: zlib.compress(bytes(size + 1)),
        lambda: zlib.compress(bytes(64 << 20), 1)[: size + 512],  # a bomb
        lambda: zlib.compress(b""),
        lambda: zlib.compress(bytes(max(1, size // 2))),
        lambda: bytes(64),
        lambda: compressed[:-4] + b"\1\2\3\4",
    )
    return choice.choice(kinds)()


def _grains(choice: random.Random, header: Header, numbers: list[int], faults: int) -> list[_Piece]:
    pieces = []
    size = header.grain * SECTOR
    for number in numbers:
        left = header.capacity * SECTOR - number * size
        compressed = _compress(choice, _content(choice, size, left))
        if faults and choice.random() < 0.15:
            compressed = _bad_grain(choice, compressed, size)
        pieces.append(_Piece(number * header.grain, len(compressed), 0, compressed, grain=number))
    return pieces


def _descriptor(choice: random.Random, header: Header, faults: int) -> bytes:
    text = (
        f'version=1\nCID=1\nparentCID=ffffffff\ncreateType="streamOptimized"\nRW {header.capacity} SPARSE "g.vmdk"\n'
    ).encode()
    if faults and choice.random() < 0.15:
        odd = (b'parentFileNameHint="/etc/shadow"\n', b'RW 1 FLAT "/etc/shadow"\n', b"\xff\xfe\n", b"=\n", b"RW\n")
        text = choice.choice((text + choice.choice(odd), text.replace(b"ffffffff", b"1"), text[: len(text) // 2], b""))
    return text


def _spoil_header(choice: random.Random, header: Header) -> Header:
    name = choice.choice([name for name in vars(header) if name not in ("magic", "newlines")])
    limit = {"method": 1 << 16, "entries": 1 << 32, "version": 1 << 32, "flags": 1 << 32}.get(name, 1 << 64)
    value = choice.choice([one for one in INTERESTING + HUGE if one < limit] + [vars(header)[name] ^ 1])
    return Header(**{**vars(header), name: value})


def _front(choice: random.Random, header: Header, faults: int) -> bytearray:
    text = _descriptor(choice, header, faults)
    written = _spoil_header(choice, header) if faults and choice.random() < 0.3 else header
    return bytearray(written.pack() + text.ljust(header.descriptor_size * SECTOR, b"\0")[: (FRONT - 1) * SECTOR])


def _behind(choice: random.Random, header: Header, numbers: list[int], faults: int) -> bytearray:
    """Tables behind the grains they list, directory, footer, end: as vSphere writes."""
    data = _front(choice, header, faults)
    tables: dict[int, list[_Piece]] = {}
    for piece in _grains(choice, header, numbers, faults):
        tables.setdefault((piece.grain or 0) // 512, []).append(piece)
    groups = list(tables.items())
    interleaved = choice.random() < 0.3
    pieces: list[_Piece] = []
    if interleaved:
        pieces += [piece for _, group in groups for piece in group]
    for table, group in groups:
        pieces += [] if interleaved else group
        pieces.append(_Piece(4, 0, GRAIN_TABLE, b"", entries=[table]))
    if choice.random() < 0.2:
        pieces.append(_Piece(4, 0, GRAIN_TABLE, bytes(2048)))
    pieces.append(_Piece(0, 0, GRAIN_DIRECTORY, b""))
    pieces.append(_Piece(1, 0, FOOTER, b""))
    pieces.append(_Piece(0, 0, END_OF_STREAM, b""))
    for _ in range(faults):
        _spoil_order(choice, pieces)
    return _lay(choice, data, header, pieces, faults)


def _lay(choice: random.Random, data: bytearray, header: Header, pieces: list[_Piece], faults: int) -> bytearray:
    places: dict[int, int] = {}
    at: dict[int, int] = {}
    directory = 0
    count = -(-header.capacity // (512 * header.grain))
    for piece in pieces:
        sector = len(data) // SECTOR
        if piece.grain is not None:
            places[piece.grain] = sector
        elif piece.kind == GRAIN_TABLE and piece.entries:
            first = piece.entries[0] * 512
            zero = 1 if header.flags & 4 and choice.random() < 0.5 else 0
            entries = [places.get(first + slot, zero if first + slot < header.capacity // header.grain else 0)
                       for slot in range(512)]  # fmt: skip
            piece.body = struct.pack("<512I", *_spoil_entries(choice, entries, faults))
            at[piece.entries[0]] = sector + 1
        elif piece.kind == GRAIN_DIRECTORY:
            listed = _spoil_entries(choice, [at.get(index, 0) for index in range(count)], faults)
            piece.body = vmdk_writer.pad(struct.pack(f"<{len(listed)}I", *listed))
            piece.value = piece.value or len(piece.body) // SECTOR
            directory = sector + 1
        elif piece.kind == FOOTER:
            footer = Header(**{**vars(header), "directory": directory})
            piece.body = (_spoil_header(choice, footer) if faults and choice.random() < 0.1 else footer).pack()
        data += piece.pack()
    return data


def _in_front(choice: random.Random, header: Header, numbers: list[int], faults: int) -> bytearray:
    """Directory and tables in front of the grains, neither footer nor end, zeros to fill up: as qemu-img writes."""
    count = -(-header.capacity // (512 * header.grain))
    sectors = -(-count * 4 // SECTOR)
    header.directory, header.overhead = FRONT, FRONT + sectors + 4 * count
    data = _front(choice, header, faults)
    pieces = _grains(choice, header, numbers, faults)
    for _ in range(faults):
        _spoil_order(choice, pieces)
    entries = [0] * (512 * count)
    body = bytearray()
    for piece in pieces:
        if piece.grain is not None:
            entries[piece.grain] = header.overhead + len(body) // SECTOR
        body += piece.pack()
    directory = [FRONT + sectors + 4 * index for index in range(count)]
    data += vmdk_writer.pad(struct.pack(f"<{count}I", *_spoil_entries(choice, directory, faults)))
    data += struct.pack(f"<{len(entries)}I", *_spoil_entries(choice, entries, faults)) + body
    return data + bytes(choice.choice((0, 0, 512, 4096, 65536)))


def _spoil_order(choice: random.Random, pieces: list[_Piece]) -> None:
    if not pieces or choice.random() < 0.5:
        return
    index = choice.randrange(len(pieces))
    what = choice.randrange(6)
    if what == 0:
        del pieces[index]
    elif what == 1:
        pieces.insert(choice.randrange(len(pieces)), pieces[index])
    elif what == 2:
        pieces.insert(choice.randrange(len(pieces)), pieces.pop(index))
    elif what == 3:
        pieces[index].value = choice.choice(INTERESTING + HUGE)
    elif what == 4:
        pieces[index].size = choice.choice(INTERESTING)
    else:
        pieces[index].kind = choice.choice((0, 1, 2, 3, 4, 1 << 31))


def _spoil_entries(choice: random.Random, entries: list[int], faults: int) -> list[int]:
    if faults and entries and choice.random() < 0.15:
        entries = list(entries)
        value = choice.choice([one for one in INTERESTING if one < 1 << 32] + entries)
        entries[choice.randrange(len(entries))] = value
    return entries


def _spoil_bytes(choice: random.Random, data: bytearray) -> bytearray:
    what = choice.randrange(4)
    place = choice.randrange(len(data))
    if what == 0:
        data[place] ^= 1 << choice.randrange(8)
    elif what == 1:
        del data[place:]
    elif what == 2:
        data[place:place] = bytes(choice.choice((1, 512, 65536)))
    else:
        del data[place : place + choice.choice((1, 512))]
    return data
