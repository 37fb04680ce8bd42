"""The content map and the reading that fills it: what goes wrong names the file."""

from __future__ import annotations

import os
import struct
import subprocess
from io import FileIO
from pathlib import Path

import pytest
from hyperflow.kvmhost.images.content import CHUNK, ContentMap

from tests.kvmhost.images import images
from tests.kvmhost.stages import running

ROOT = Path(__file__).resolve().parents[3]
# Run by the host's own Python, which has libnbd.
READ = """
import sys
from pathlib import Path
from hyperflow.kvmhost.images import nbd_reader
from hyperflow.kvmhost.stage import StageError
try:
    nbd_reader.read_content(nbd_reader.describe(Path(sys.argv[1]), "qcow2"), Path(sys.argv[2]), lambda done: None)
except StageError as fault:
    print(fault)
"""


def test_a_map_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "content"
    content = ContentMap(tmp_path, 4 * CHUNK, FileIO(os.open(path, os.O_WRONLY | os.O_CREAT), "w"))
    content.set(0, b"x" * 32)
    for read in (lambda: content.get(0), lambda: list(content.present())):
        with pytest.raises(OSError, match="Bad file descriptor") as fault:
            read()
        assert fault.value.filename == str(path)
    content.close()


def test_an_image_with_a_cluster_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    raw, image = tmp_path / "raw", tmp_path / "disk.qcow2"
    raw.write_bytes(b"".join(images.noise(number) for number in range(4)))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    with image.open("r+b") as file:
        file.seek(40)  # of the header: where the first-level table is
        (first,) = struct.unpack(">Q", file.read(8))
        file.seek(first)
        (second,) = struct.unpack(">Q", file.read(8))
        file.seek((second & 0x00FFFFFFFFFFFE00) + 8)  # the second cluster's entry: nowhere near a cluster
        file.write(struct.pack(">Q", 1 << 63 | 0x12345600))
    done = subprocess.run(
        [running.PYTHON, "-c", READ, image, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT / "plugins")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{image}: reading it through qemu-nbd failed: "), done.stdout + done.stderr
