"""The data that is measured with: a real file system of real files, exported as vSphere exports a disk.

Built once, by what any Linux machine has: files of ``/usr``, mke2fs and qemu-img. Kept below ``~/.cache/hyperflow``
under the digest of this file, so a change of the recipe makes new data.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

DISK_BYTES = 2 << 30
FILES_BYTES = 1_300_000_000  # of files on that disk
LARGEST = 64 << 20  # bytes of one file: no single library is to decide how the data compresses
SECTOR = 512
GRAIN_SECTORS = 128
TABLE_ENTRIES = 512
AT_END = 0xFFFFFFFFFFFFFFFF
FLAGS = 0x30001
FRONT_SECTORS = 128  # header and descriptor, before the first grain


@dataclass(frozen=True)
class Disk:
    """A streamOptimized VMDK.

    :param virtual_bytes: size of the guest's disk
    :param data_bytes: of the disk, held in grains
    """

    path: Path
    virtual_bytes: int
    data_bytes: int


def cache() -> Path:
    """Name the folder that this recipe's data lies in."""
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    return Path.home() / ".cache" / "hyperflow" / f"bench-{key}"


def disk(console: Console) -> Disk:
    """Give the disk of real files, made by qemu-img; built where it is not there yet."""
    target = cache() / "disk.vmdk"
    if not target.exists():
        console.print("building the data: an ext4 file system of files of /usr, exported by qemu-img (about 2 min)")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            folder = Path(name)
            tree = folder / "tree"
            tree.mkdir()
            _copy_files(tree)
            raw = folder / "disk.raw"
            subprocess.run(
                ["mke2fs", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", tree, raw, str(DISK_BYTES // 1024) + "k"],
                check=True,
            )
            vmdk = folder / "disk.vmdk"
            options = ["-O", "vmdk", "-o", "subformat=streamOptimized"]  # no -W: exports have their grains in order
            subprocess.run(["qemu-img", "convert", "-f", "raw", *options, raw, vmdk], check=True)
            vmdk.rename(target)
    return Disk(target, DISK_BYTES, sum(1 for _ in _grains(target)) * GRAIN_SECTORS * SECTOR)


def large_disk(console: Console, data_bytes: int) -> Disk:
    """Give a disk with at least ``data_bytes`` of data: the grains of :func:`disk`, one copy behind the other.

    Written as vSphere writes it, tables behind the grains: qemu-img would compress for many minutes.
    """
    target = cache() / f"disk-{data_bytes >> 30}-GiB.vmdk"
    small = disk(console)
    copies = -(-data_bytes // small.data_bytes)
    virtual = copies * small.virtual_bytes
    if not target.exists():
        console.print(f"building a disk with {data_bytes >> 30} GiB of data out of {copies} copies of the same grains")
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            made = Path(name) / "disk.vmdk"
            _repeat(small, made, copies)
            made.rename(target)
    return Disk(target, virtual, copies * small.data_bytes)


def _copy_files(tree: Path) -> None:
    """Copy files of /usr, picked at random and always the same ones, until there are :data:`FILES_BYTES`."""
    names = sorted(str(Path(folder, name)) for folder, _, names in os.walk("/usr") for name in names)
    random.Random(1).shuffle(names)  # noqa: S311 - a choice of test data
    left = FILES_BYTES
    for path in map(Path, names):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > min(left, LARGEST):
            continue
        target = tree / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        left -= found.st_size


def _grains(vmdk: Path) -> Iterator[tuple[int, bytes]]:
    """Yield first sector and zlib stream of each grain of a VMDK by qemu-img."""
    with vmdk.open("rb") as file:
        header = file.read(SECTOR)
        file.seek(struct.unpack_from("<Q", header, 64)[0] * SECTOR)
        while len(front := file.read(12)) == 12:
            sector, size = struct.unpack("<QI", front)
            if not size:
                return  # the padding at the end of the file
            yield sector, file.read(size)
            file.seek(-(12 + size) % SECTOR, os.SEEK_CUR)


def _repeat(small: Disk, target: Path, copies: int) -> None:
    capacity = copies * small.virtual_bytes // SECTOR
    tables: dict[int, int] = {}  # grain table -> its sector
    with target.open("wb") as file:
        file.write(_front(capacity))
        current: dict[int, int] = {}
        for copy in range(copies):
            for sector, compressed in _grains(small.path):
                number = sector // GRAIN_SECTORS + copy * small.virtual_bytes // (GRAIN_SECTORS * SECTOR)
                if current and number // TABLE_ENTRIES != next(iter(current)) // TABLE_ENTRIES:
                    _write_table(file, current, tables)
                current[number] = file.tell() // SECTOR
                grain = struct.pack("<QI", number * GRAIN_SECTORS, len(compressed)) + compressed
                file.write(grain + bytes(-len(grain) % SECTOR))
        _write_table(file, current, tables)
        entries = [tables.get(table, 0) for table in range(-(-capacity // (TABLE_ENTRIES * GRAIN_SECTORS)))]
        directory = struct.pack(f"<{len(entries)}I", *entries)
        directory += bytes(-len(directory) % SECTOR)
        file.write(_marker(2, len(directory) // SECTOR))
        place = file.tell() // SECTOR
        file.write(directory + _marker(3, 1) + _header(capacity, place) + _marker(0, 0))


def _write_table(file: BinaryIO, current: dict[int, int], tables: dict[int, int]) -> None:
    table = next(iter(current)) // TABLE_ENTRIES
    entries = [current.get(table * TABLE_ENTRIES + slot, 0) for slot in range(TABLE_ENTRIES)]
    file.write(_marker(1, 4))
    tables[table] = file.tell() // SECTOR
    file.write(struct.pack(f"<{TABLE_ENTRIES}I", *entries))
    current.clear()


def _front(capacity: int) -> bytes:
    text = (
        '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="streamOptimized"\n'
        f'RW {capacity} SPARSE "disk.vmdk"\nddb.adapterType = "lsilogic"\n'
    ).encode()
    return (_header(capacity, AT_END) + text).ljust(FRONT_SECTORS * SECTOR, b"\0")


def _header(capacity: int, directory: int) -> bytes:
    values = (b"KDMV", 3, FLAGS, capacity, GRAIN_SECTORS, 1, 20, TABLE_ENTRIES, 0, directory, FRONT_SECTORS, 0)
    return struct.pack("<4sIIQQQQIQQQB4sH", *values, b"\n \r\n", 1).ljust(SECTOR, b"\0")


def _marker(kind: int, sectors: int) -> bytes:
    return struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0")
