"""Writing past the page cache: every byte arrives at its place, whatever the file system and the piece are."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hyperflow.kvmhost.images.data_file import ALIGNMENT, DataFile, resize, write_all, write_back

from tests.kvmhost.images import images

ON_TMPFS = Path("/dev/shm")  # noqa: S108 - a file system that has nothing but the page cache


@pytest.mark.parametrize("offset", [0, ALIGNMENT, 512, 7])
@pytest.mark.parametrize("length", [ALIGNMENT, 3 * ALIGNMENT, 1000, 65536 + 512])
@pytest.mark.parametrize("aligned", [True, False])
def test_a_piece_arrives_wherever_it_lies(tmp_path: Path, offset: int, length: int, aligned: bool) -> None:
    buffer = mmap.mmap(-1, length + ALIGNMENT)
    start = 0 if aligned else 1
    buffer[start : start + length] = images.noise(1, length)

    written = write(tmp_path / "file", memoryview(buffer)[start : start + length], offset)

    assert written == bytes(offset) + images.noise(1, length)


def test_a_file_system_without_direct_writes_takes_the_same_pieces(tmp_path: Path) -> None:
    path = ON_TMPFS / f"hyperflow-test-{os.getpid()}"
    try:
        assert write(path, memoryview(images.noise(2)), ALIGNMENT) == bytes(ALIGNMENT) + images.noise(2)
    finally:
        path.unlink()


@pytest.mark.parametrize("failing", [write_all, write_back])
def test_a_fault_names_the_file(tmp_path: Path, failing: Callable[[int, memoryview, int], None]) -> None:
    path = tmp_path / "file"
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor") as fault:
            failing(descriptor, memoryview(b"x"), 0)
        assert fault.value.filename == str(path)
    finally:
        os.close(descriptor)


def test_a_fault_of_a_nameless_file_names_its_folder(tmp_path: Path) -> None:
    with tempfile.TemporaryFile(dir=tmp_path) as file, pytest.raises(OSError, match="Invalid argument") as fault:
        resize(file.fileno(), -1)
    assert fault.value.filename == str(tmp_path)


def write(path: Path, data: memoryview, offset: int) -> bytes:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        file = DataFile(descriptor)
        file.write(data, offset)
        file.write(data, offset)  # as it goes on after the first way was refused
        file.close()
    finally:
        os.close(descriptor)
    return path.read_bytes()
