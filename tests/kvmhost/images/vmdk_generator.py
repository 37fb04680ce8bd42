"""Generates sound streamOptimized VMDKs of every shape that writers are known to make, the same ones for a seed.

vSphere and ovftool write the tables behind the grains and a footer; qemu-img writes them in front, no footer and mostly
no end marker. Besides: grains of 64 KiB to 1 MiB, smaller ones if asked for, a capacity that is no multiple of them,
zeros left out, stored or marked in the table, streams that end at, before and behind a sector's edge, grains in any
order, all three versions.
"""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from tests.kvmhost.images import images
from tests.kvmhost.images.vmdk_writer import (
    END_OF_STREAM,
    SECTOR,
    Header,
    Stream,
    descriptor,
    grain,
    marker,
    pad,
)

TABLE = 512  # grains of a grain table
ZERO_GRAINS = 1 << 2
ZERO_ENTRY = 1
EMPTY_BLOCK = b"\0\0\0\xff\xff"  # a stored block of deflate with nothing in it
EDGES = (-1, 0, 1)  # bytes from a sector's edge that a grain, its marker included, ends at


@dataclass(frozen=True)
class Shape:
    """What a VMDK is like.

    :param capacity: sectors of the disk
    :param grain: sectors of a grain
    :param stored: numbers of the grains that have a stream, in the order they are written
    :param marked: grains that are zeros by a mark in their table
    """

    capacity: int
    grain: int
    version: int
    tables_in_front: bool
    has_end: bool
    overhead: int
    stored: list[int]
    marked: list[int]


def write(path: Path, seed: int, grain: int | None = None) -> Shape:
    """Write the VMDK of a seed.

    :param grain: sectors of a grain, where that is not left to the seed
    """
    choice = random.Random(seed)  # noqa: S311 - the same disks every time
    shape, streams = _drawn(choice, grain)
    path.write_bytes(_front(shape, streams) if shape.tables_in_front else _behind(choice, shape, streams))
    return shape


def disk(seed: int, grain: int | None = None) -> bytes:
    """What a guest sees of the VMDK of a seed, by the plainest program."""
    shape, streams = _drawn(random.Random(seed), grain)  # noqa: S311 - as above
    content = bytearray(shape.capacity * SECTOR)
    for number, stream in streams.items():
        start = number * shape.grain * SECTOR
        data = zlib.decompress(stream)[: len(content) - start]
        content[start : start + len(data)] = data
    return bytes(content)


def _drawn(choice: random.Random, grain: int | None) -> tuple[Shape, dict[int, bytes]]:
    shape = _shape(choice, grain)
    return shape, {number: _stream(choice, number, shape) for number in shape.stored}


def _shape(choice: random.Random, grain: int | None) -> Shape:
    drawn = choice.choice((128, 128, 128, 128, 128, 128, 256, 256, 512, 2048))
    size = grain or drawn
    count = choice.choice((1, 2, 3, 5, 8))
    if size <= 128 and choice.random() < 0.06:  # more than one table
        count = choice.choice((511, 512, 513, 1030))
    capacity = count * size - choice.choice((0, 0, 1, 7, 8, 100, size // 2, size - 1)) % size
    candidates = sorted(
        {*range(min(count, 8)), *range(max(0, count - 3), count), *(n for n in (511, 512) if n < count)}
    )
    stored = [number for number in candidates if choice.random() < 0.7]
    in_front = choice.random() < 0.5
    if in_front and choice.random() < 0.3:
        choice.shuffle(stored)
    marked = [number for number in candidates if number not in stored and choice.random() < 0.3]
    return Shape(
        capacity=capacity,
        grain=size,
        version=choice.choice((1, 2, 3)),
        tables_in_front=in_front,
        has_end=not in_front or choice.random() < 0.3,
        overhead=choice.choice((128, 128, 64, 200)),
        stored=stored,
        marked=marked if choice.random() < 0.3 else [],
    )


def _stream(choice: random.Random, number: int, shape: Shape) -> bytes:
    """The zlib stream of a grain; the last one may be as short as the disk, or hold more than it."""
    length = shape.grain * SECTOR
    left = shape.capacity * SECTOR - number * length
    if left < length and choice.random() < 0.5:
        length = left
    kind = choice.choice(("zeros", "noise", "text", "text", "byte", "half"))
    seed = choice.randrange(1 << 30)
    if kind == "zeros":
        content = bytes(length)
    elif kind == "noise":
        return zlib.compress(images.noise(seed, length), choice.choice((0, 1)))
    elif kind == "text":
        content = images.text(seed, length)
    elif kind == "byte":
        content = bytearray(length)
        content[choice.choice((0, length - 1, choice.randrange(length)))] = 7
    else:
        content = images.noise(seed, length // 2 + 1).ljust(length, b"\0")[:length]
        return zlib.compress(content, 1)
    return _at_edge(bytes(content), choice.choice(EDGES)) if choice.random() < 0.5 else zlib.compress(content, 6)


def _at_edge(content: bytes, edge: int) -> bytes:
    """Compress so that marker and stream end ``edge`` bytes from a sector's edge: by empty blocks of 5 bytes."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = deflate.compress(content) + deflate.flush(zlib.Z_SYNC_FLUSH)
    last = b"\1\0\0\xff\xff" + zlib.adler32(content).to_bytes(4, "big")
    fixed = 12 + 2 + len(data) + len(last)
    blocks = next(count for count in range(SECTOR) if (fixed + 5 * count - edge) % SECTOR == 0)
    return b"\x78\x9c" + data + EMPTY_BLOCK * blocks + last


def _header(shape: Shape) -> Header:
    flags = 0x30001 | (ZERO_GRAINS if shape.marked else 0)
    return Header(shape.capacity, shape.grain, version=shape.version, flags=flags, overhead=shape.overhead)


def _behind(choice: random.Random, shape: Shape, streams: dict[int, bytes]) -> bytes:
    """As vSphere writes it. A table with nothing but marks is written when its turn comes, as the others are."""
    stream = Stream(shape.capacity, shape.grain, header=replace(_header(shape), overhead=128))
    marked = set(shape.marked)

    def mark(entries: list[int]) -> list[int]:
        table = next(iter(stream.current)) // TABLE
        return [ZERO_ENTRY if table * TABLE + slot in marked else sector for slot, sector in enumerate(entries)]

    stream.edit_table = mark
    for number in shape.stored:
        stream.add(number, b"", compressed=streams[number])
    return stream.finish()


def _front(shape: Shape, streams: dict[int, bytes]) -> bytes:
    """As qemu-img writes it: descriptor, directory and tables, then the grains; filled up with zeros."""
    tables = -(-shape.capacity // (shape.grain * TABLE))
    directory_sectors = -(-tables * 4 // SECTOR)
    directory = 21
    first_table = directory + directory_sectors
    overhead = max(shape.overhead, first_table + 4 * tables)
    entries = [0] * (tables * TABLE)
    for number in shape.marked:
        entries[number] = ZERO_ENTRY
    body = bytearray()
    for number in shape.stored:
        entries[number] = overhead + len(body) // SECTOR
        body += grain(number * shape.grain, streams[number])
    header = replace(_header(shape), directory=directory, overhead=overhead)
    front = bytearray(overhead * SECTOR)
    front[:SECTOR] = header.pack()
    text = descriptor(shape.capacity)
    front[SECTOR : SECTOR + len(text)] = text
    places = pad(struct.pack(f"<{tables}I", *(first_table + 4 * table for table in range(tables))))
    front[directory * SECTOR : directory * SECTOR + len(places)] = places
    packed = struct.pack(f"<{len(entries)}I", *entries)
    front[first_table * SECTOR : first_table * SECTOR + len(packed)] = packed
    end = marker(END_OF_STREAM, 0) if shape.has_end else b""
    return bytes(front + body) + end + bytes(3 * SECTOR if len(body) % (2 * SECTOR) else 0)
