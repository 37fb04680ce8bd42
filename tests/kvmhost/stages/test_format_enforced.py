"""What is no streamOptimized VMDK goes through qemu-img, which is always told the format and never left to guess."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.kvmhost.images import images
from tests.kvmhost.stages import running, staged
from tests.kvmhost.stages.test_convert import options

WRAPPER = """#!/bin/sh
for one in "$0" "$@"; do printf '%s\\0' "$one"; done >> {log}
printf '\\n' >> {log}
exec {real} "$@"
"""
TAKES_A_FORMAT = ("info", "check", "convert", "measure", "map", "compare")


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """A folder that stands first in PATH: its qemu-img writes down how it was called, and is the real one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("qemu-img", "qemu-nbd"):
        program = folder / name
        program.write_text(WRAPPER.format(log=folder / "log", real=f"/usr/bin/{name}"))
        program.chmod(0o755)
    return folder


def trap(folder: Path) -> bytes:
    """The first bytes of a qcow2 whose backing file is somebody's secret."""
    (folder / "secret").write_bytes(b"secret".ljust(1 << 20, b"s"))
    path = folder / "trap.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-b", folder / "secret", "-F", "raw", path)
    return path.read_bytes()


def convert(folder: Path, calls: Path, source: Path, source_format: str) -> dict[str, Any]:
    reference = staged.manifest(folder, source, source_format=source_format)
    path = {"PATH": f"{calls}:{os.environ['PATH']}"}
    return running.run("convert", options(folder, reference), path)


def commands(calls: Path) -> list[list[str]]:
    return [line.strip("\0").split("\0")[1:] for line in (calls / "log").read_text().splitlines()]


@pytest.mark.parametrize("source_format", ["raw", "vmdk"])
def test_a_guests_first_bytes_are_never_taken_for_a_format(tmp_path: Path, calls: Path, source_format: str) -> None:
    """A guest that writes a qcow2 header to its disk's start would have its host's files read into the image."""
    flat = tmp_path / "flat.raw"
    flat.write_bytes(trap(tmp_path).ljust(2 << 20, b"\0"))
    source = flat
    if source_format == "vmdk":
        source = tmp_path / "sparse.vmdk"
        images.qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicSparse", flat, source)

    result = convert(tmp_path, calls, source, source_format)

    assert result["succeeded"], result["log"]
    images.assert_same(flat, "raw", Path(result["observed"]["path"]), "qcow2")
    called = commands(calls)
    assert ["convert"] in [command[:1] for command in called]
    for command in called:
        named = "-f" in command or any(one.startswith("json:") and '"driver"' in one for one in command)
        assert named or command[0] not in TAKES_A_FORMAT, command


def test_a_flat_extent_that_looks_like_a_qcow2_is_read_as_bytes(tmp_path: Path, calls: Path) -> None:
    content = trap(tmp_path).ljust(1 << 20, b"\0")
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "d-flat.vmdk").write_bytes(content)
    source = staging / "d.vmdk"
    source.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        f'RW {len(content) // 512} FLAT "d-flat.vmdk" 0\n'
    )

    result = convert(tmp_path, calls, source, "vmdk")

    assert result["succeeded"], result["log"]
    images.assert_same(staging / "d-flat.vmdk", "raw", Path(result["observed"]["path"]), "qcow2")


@pytest.mark.parametrize("method", [0, 2])
def test_a_stream_optimized_vmdk_of_another_compression_is_refused_and_not_handed_on(
    tmp_path: Path, calls: Path, method: int
) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(images.text(1))
    source = images.stream_optimized(raw, tmp_path / "disk.vmdk")
    data = bytearray(source.read_bytes())
    data[77:79] = method.to_bytes(2, "little")
    source.write_bytes(data)

    result = convert(tmp_path, calls, source, "vmdk")

    assert result["exit_status"] == 64, result["log"]
    assert f"compression: found {method}, expected 1 (deflate)" in result["error"]["message"]
    assert "convert" not in [command[0] for command in commands(calls)]
    assert json.dumps(result["observed"]) == "{}"
