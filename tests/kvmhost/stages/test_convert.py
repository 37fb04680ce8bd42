"""Conversion of staged disks, as the host runs it, judged by qemu-img."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost import domains, jobs

from lab import kvmhost
from tests.kvmhost.images import images, vmdk_writer
from tests.kvmhost.stages import running, staged

GRAIN = images.GRAIN
DRIVERS = {"qcow2": "qcow2", "raw": "raw", "vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi", "vmdk": "vmdk"}


def raw_disk(folder: Path, tail: int = 0) -> Path:
    path = folder / "disk.raw"
    parts = [images.text(n) if n % 3 else images.noise(n) for n in range(40)]
    path.write_bytes(b"".join(parts) + bytes(60 * GRAIN) + images.text(7) + bytes(tail))
    return path


def staged_vmdk(folder: Path, tail: int = 0) -> Path:
    staging = folder / "staging"
    staging.mkdir()
    return images.stream_optimized(raw_disk(folder, tail), staging / "web01-disk1.vmdk")


def overlay_of(source: Path, source_format: str = "vmdk") -> Path:
    """An overlay as fix leaves it: written, zeroed, discarded, also over parts that had no data."""
    overlay = source.parent / "disk-0.overlay.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-b", source, "-F", DRIVERS[source_format], overlay)
    writes = ("write -P 7 70000 200000", "write -z 655360 65536", "write -P 9 4000000 5000", "discard 1310720 131072")
    images.qemu_io(overlay, *writes)
    return overlay


def options(folder: Path, reference: dict[str, str], **changes: Any) -> dict[str, Any]:
    return {
        "manifest": reference,
        "disk_id": "disk-0",
        "overlay": None,
        "output_directory": str(folder / "output"),
        "filename": "disk-0.qcow2",
        "format": "qcow2",
        "compress": False,
        "compress_level": None,
        "compress_type": "zstd",
        **changes,
    }


def converted(asked: dict[str, Any]) -> dict[str, Any]:
    result = running.run("convert", asked)
    assert result["exit_status"] == 0, result["log"]
    observed: dict[str, Any] = result["observed"]
    target = Path(asked["output_directory"], asked["filename"])
    assert observed["path"] == str(target)
    assert observed["sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    assert observed["bytes"] == target.stat().st_size
    assert sorted(path.name for path in target.parent.iterdir()) == [f".{target.name}.json", target.name]
    return {**observed, "warnings": result["warnings"], "tools": result["tools"], "log": result["log"]}


def refused(asked: dict[str, Any], *words: str, status: int = 64) -> None:
    """The stage fails in that way, says so, and leaves the output folder as it was."""
    output = Path(asked["output_directory"])
    before = {path: path.lstat().st_mtime_ns for path in output.iterdir()} if output.exists() else {}
    result = running.run("convert", asked)
    assert result["exit_status"] == status, result["log"]
    for word in words:
        assert word in result["error"]["message"]
    assert {path: path.lstat().st_mtime_ns for path in output.iterdir()} == before if output.exists() else not before


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"compress": True},
        {"compress": True, "compress_level": 9},
        {"compress": True, "compress_type": "zlib", "compress_level": 1},
        {"format": "raw", "filename": "disk-0.raw"},
        {"format": "vdi", "filename": "disk-0.vdi"},
    ],
)
@pytest.mark.parametrize("fixed", [False, True])
def test_the_image_shows_the_staged_disk_with_its_fixes(tmp_path: Path, change: dict[str, Any], fixed: bool) -> None:
    source = staged_vmdk(tmp_path, tail=512)
    overlay = overlay_of(source) if fixed else None
    before = source.read_bytes(), overlay.read_bytes() if overlay else None
    asked = options(
        tmp_path, staged.manifest(source.parent, source), overlay=str(overlay) if overlay else None, **change
    )

    observed = converted(asked)

    image = Path(observed["path"])
    images.assert_same(overlay or source, "qcow2" if overlay else "vmdk", image, asked["format"])
    images.qemu_img("convert", "-f", asked["format"], "-O", "raw", image, tmp_path / "seen")
    assert observed["content_sha256"] == images.content_digest((tmp_path / "seen").read_bytes())
    assert observed["staged_sha256"] == hashlib.sha256(before[0]).hexdigest()
    assert observed["virtual_bytes"] == 101 * GRAIN + 512
    assert (observed["changed_clusters"] > 0) is fixed
    assert observed["tools"]["qemu-img"]
    assert (source.read_bytes(), overlay.read_bytes() if overlay else None) == before
    if asked["format"] != "raw":
        images.qemu_img("check", "-f", asked["format"], image)


def test_the_image_of_another_vm_is_not_replaced(tmp_path: Path) -> None:
    source = staged_vmdk(tmp_path)

    def of_vm(vm_id: str) -> dict[str, Any]:
        reference = staged.manifest(source.parent, source, vm_id=vm_id)
        return options(tmp_path, reference, format="raw", filename="disk-0.raw", uri="test:///default")

    converted(of_vm("vm-1"))
    refused(of_vm("vm-2"), "is of another VM (vm-1), expected one of vm-2")
    converted({**of_vm("vm-1"), "format": "qcow2"})  # its own, in another form


def test_a_parent_where_only_qemu_looks_for_one_is_refused(tmp_path: Path) -> None:
    """QEMU reads it from sector 1, whatever the header says of the descriptor's place."""
    source = staged_vmdk(tmp_path)
    data = bytearray(source.read_bytes())
    place = int.from_bytes(data[28:36], "little") * 512
    descriptor = bytes(data[place : place + 20 * 512])
    other = 100 * 512
    data[other : other + len(descriptor)] = descriptor
    data[28:36] = (100).to_bytes(8, "little")
    told = descriptor.rstrip(b"\0").replace(b"parentCID=ffffffff", b"parentCID=12345678")
    told += b'\nparentFileNameHint="base.vmdk"\n'
    data[place : place + 20 * 512] = told.ljust(20 * 512, b"\0")
    source.write_bytes(data)
    assert json.loads(images.qemu_img("info", "--output=json", "-f", "vmdk", source))["backing-filename"] == "base.vmdk"

    refused(options(tmp_path, staged.manifest(source.parent, source)), "backing file 'base.vmdk'")


@pytest.mark.parametrize("source_format", DRIVERS)
@pytest.mark.parametrize("fixed", [False, True])
def test_every_source_format_is_converted(tmp_path: Path, source_format: str, fixed: bool) -> None:
    source = tmp_path / "staged"
    images.qemu_img("convert", "-f", "raw", "-O", DRIVERS[source_format], raw_disk(tmp_path), source)
    overlay = overlay_of(source, source_format) if fixed else None
    reference = staged.manifest(tmp_path, source, source_format=source_format)

    observed = converted(options(tmp_path, reference, overlay=str(overlay) if overlay else None))

    seen, form = (overlay, "qcow2") if overlay else (source, DRIVERS[source_format])
    images.assert_same(seen, form, Path(observed["path"]), "qcow2")
    images.qemu_img("convert", "-f", "qcow2", "-O", "raw", observed["path"], tmp_path / "seen")
    assert observed["content_sha256"] == images.content_digest((tmp_path / "seen").read_bytes())


@pytest.mark.parametrize("kind", ["zstd", "zlib"])
def test_a_source_left_to_qemu_img_is_compressed_as_well(tmp_path: Path, kind: str) -> None:
    source = raw_disk(tmp_path)
    reference = staged.manifest(tmp_path, source, source_format="raw")

    observed = converted(options(tmp_path, reference, compress=True, compress_type=kind, compress_level=5))

    assert (
        json.loads(images.qemu_img("info", "--output=json", observed["path"]))["format-specific"]["data"][
            "compression-type"
        ]
        == kind
    )
    images.assert_same(source, "raw", Path(observed["path"]), "qcow2")
    assert "compress_level" in observed["warnings"][0]


def test_small_grains_are_left_to_qemu_img(tmp_path: Path) -> None:
    grains = [(n, images.text(n, 8192)) for n in (0, 1, 5, 700, 701)]
    source = vmdk_writer.write(tmp_path / "disk.vmdk", 800 * 8192, grains, 16)

    observed = converted(options(tmp_path, staged.manifest(tmp_path, source)))

    images.assert_same(source, "vmdk", Path(observed["path"]), "qcow2")


def test_a_raw_disk_that_looks_like_qcow2_stays_raw(tmp_path: Path) -> None:
    source = tmp_path / "staged.raw"
    images.qemu_img("create", "-q", "-f", "qcow2", source, "1M")
    source.write_bytes(source.read_bytes().ljust(1 << 20, b"\0"))

    observed = converted(options(tmp_path, staged.manifest(tmp_path, source, source_format="raw")))

    images.assert_same(source, "raw", Path(observed["path"]), "qcow2")
    assert observed["virtual_bytes"] == 1 << 20


@pytest.mark.parametrize("offset", [600, 70_000, -600])
def test_a_byte_changed_since_the_export_is_refused_as_that(tmp_path: Path, offset: int) -> None:
    source = staged_vmdk(tmp_path)
    reference = staged.manifest(source.parent, source)
    data = bytearray(source.read_bytes())
    data[offset] ^= 1
    source.write_bytes(data)

    refused(options(tmp_path, reference), "changed after its export", hashlib.sha256(data).hexdigest())


def test_a_byte_changed_in_another_format_is_refused_as_well(tmp_path: Path) -> None:
    source = raw_disk(tmp_path)
    reference = staged.manifest(tmp_path, source, source_format="raw")
    data = bytearray(source.read_bytes())
    data[5] ^= 1
    source.write_bytes(data)

    refused(options(tmp_path, reference), "changed after its export")


def test_a_vmdk_that_was_bad_from_the_start_is_refused_with_the_place(tmp_path: Path) -> None:
    stream = vmdk_writer.Stream(128 * 10)
    stream.add(0, images.text(1))
    stream.add(1, b"", compressed=b"no zlib stream")
    source = tmp_path / "disk.vmdk"
    source.write_bytes(stream.finish())

    refused(options(tmp_path, staged.manifest(tmp_path, source)), str(source), "grain 1")


def test_a_disk_without_a_checksum_is_converted(tmp_path: Path) -> None:
    source = staged_vmdk(tmp_path)

    observed = converted(options(tmp_path, staged.manifest(source.parent, source, checksum=None)))

    assert observed["staged_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"filename": "../disk.qcow2"}, "filename"),
        ({"filename": ""}, "filename"),
        ({"filename": ".."}, "filename"),
        ({"filename": ".hidden"}, "filename"),
        ({"filename": "x" * 201}, "filename"),
        ({"filename": "a\0b"}, "filename"),
        ({"format": "vmdk"}, "format"),
        ({"format": "raw", "compress": True}, "compress"),
        ({"compress_type": "lzma"}, "compress_type"),
        ({"compress_level": 0}, "compress_level"),
        ({"compress_level": 10}, "compress_level"),
        ({"compress_level": True}, "compress_level"),
        ({"disk_id": "disk-9"}, "disk-9"),
        ({"output_directory": "relative"}, "output_directory"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    source = staged_vmdk(tmp_path)
    asked = options(tmp_path, staged.manifest(source.parent, source), **change)

    result = running.run("convert", asked)

    assert result["exit_status"] == 64
    assert word in result["error"]["message"]
    assert not list((tmp_path / "output").glob("*"))


def test_an_overlay_of_another_disk_is_refused(tmp_path: Path) -> None:
    source = staged_vmdk(tmp_path)
    other = images.stream_optimized(tmp_path / "disk.raw", tmp_path / "other.vmdk")
    asked = options(tmp_path, staged.manifest(source.parent, source), overlay=str(overlay_of(other)))

    refused(asked, "lies over", "other.vmdk")


def test_an_overlay_that_is_none_is_refused(tmp_path: Path) -> None:
    source = staged_vmdk(tmp_path)
    overlay = tmp_path / "overlay"
    overlay.write_bytes(b"x" * 100_000)

    result = running.run("convert", options(tmp_path, staged.manifest(source.parent, source), overlay=str(overlay)))

    assert result["exit_status"] in (1, 64)
    assert not list((tmp_path / "output").iterdir())


def test_a_second_run_takes_the_first_ones_image(tmp_path: Path) -> None:
    source = staged_vmdk(tmp_path)
    asked = options(tmp_path, staged.manifest(source.parent, source), overlay=str(overlay_of(source)))
    first = converted(asked)
    made = Path(first["path"]).stat()

    second = converted(asked)

    assert Path(first["path"]).stat().st_ino == made.st_ino
    assert "already converted" in second["log"]
    assert {**second, "log": "", "tools": {}} == {**first, "log": "", "tools": {}}


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_somebody_elses_file_is_never_touched(tmp_path: Path, kind: str) -> None:
    source = staged_vmdk(tmp_path)
    target = tmp_path / "output" / "disk-0.qcow2"
    target.parent.mkdir()
    (tmp_path / "precious").write_text("precious")
    if kind == "file":
        target.write_text("precious")
    elif kind == "link":
        target.symlink_to(tmp_path / "precious")
    else:
        target.mkdir()

    refused(options(tmp_path, staged.manifest(source.parent, source)), "no image of ours")
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("form", ["qcow2", "raw", "vdi"])
def test_an_image_whose_hash_was_left_to_validate_is_taken_over_by_its_content(tmp_path: Path, form: str) -> None:
    source = staged_vmdk(tmp_path)
    asked = options(tmp_path, staged.manifest(source.parent, source), format=form, hash_image=False)
    first = running.run("convert", asked)

    second = running.run("convert", asked)

    assert first["observed"]["sha256"] is None
    assert second["observed"] == first["observed"]
    assert "already converted" in second["log"]
    assert first["observed"]["bytes"] == Path(first["observed"]["path"]).stat().st_size


def test_an_image_whose_hash_was_left_to_validate_is_not_taken_over_with_another_content(tmp_path: Path) -> None:
    source = staged_vmdk(tmp_path)
    asked = options(tmp_path, staged.manifest(source.parent, source), hash_image=False)
    image = running.run("convert", asked)["observed"]["path"]
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 65536 512", image], check=True, capture_output=True)

    refused(asked, "the image was changed")


def test_an_image_that_was_changed_since_is_not_taken_over(tmp_path: Path) -> None:
    source = staged_vmdk(tmp_path)
    asked = options(tmp_path, staged.manifest(source.parent, source))
    image = Path(converted(asked)["path"])
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 512", image], check=True, capture_output=True)

    refused(asked, "the image was changed")


def test_an_image_of_another_conversion_is_replaced_when_no_domain_uses_it(
    tmp_path: Path, host: kvmhost.KvmHost
) -> None:
    source = staged_vmdk(tmp_path)
    asked = options(tmp_path, staged.manifest(source.parent, source))
    first = converted(asked)

    second = converted({**asked, "compress": True})

    assert "no domain uses it" in second["log"]
    assert second["sha256"] != first["sha256"]
    assert second["content_sha256"] == first["content_sha256"]


def test_an_image_that_a_domain_uses_is_never_replaced(tmp_path: Path, host: kvmhost.KvmHost) -> None:
    source = staged_vmdk(tmp_path)
    asked = options(tmp_path, staged.manifest(source.parent, source))
    image = converted(asked)["path"]
    domain = tmp_path / "domain.xml"
    domain.write_text(
        "<domain type='qemu'><name>test-keeps-its-disk</name><memory>65536</memory><os><type>hvm</type></os><devices>"
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{image}'/><target dev='vda'/></disk>"
        "</devices></domain>"
    )
    virsh = ["virsh", "--quiet", "--connect", host.libvirt_uri]
    subprocess.run([*virsh, "define", str(domain)], check=True, capture_output=True)
    try:
        refused({**asked, "compress": True}, "is a disk of the domain test-keeps-its-disk")
    finally:
        subprocess.run([*virsh, "undefine", "test-keeps-its-disk"], check=True, capture_output=True)


def test_how_to_undefine_a_domain_is_told_as_libvirt_takes_it_of_one_with_uefi_that_ran(tmp_path: Path) -> None:
    image = tmp_path / "disk-0.qcow2"
    xml = f"<domain><devices><disk type='file'><source file='{image}'/></disk></devices></domain>"
    fault = domains.use_fault(image, [domains.Domain("web01", "", (), "", "", xml)])
    assert "undefine it ('virsh undefine web01 --nvram --managed-save')" in str(fault)


@pytest.mark.parametrize("moment", [0.02, 0.1, 0.2, 0.3, 0.5, 0.8])
def test_a_killed_conversion_is_done_again_with_the_same_fixes(tmp_path: Path, moment: float) -> None:
    source = staged_vmdk(tmp_path)
    overlay = overlay_of(source)
    before = overlay.read_bytes()
    asked = options(tmp_path, staged.manifest(source.parent, source), overlay=str(overlay))
    mark = {"HYPERFLOW_JOB": str(tmp_path / "job")}
    process = running.start("convert", asked, tmp_path / "result.json", mark)
    time.sleep(moment)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    jobs._end_processes(tmp_path / "job")  # qemu-img may outlive it; whoever starts the next generation ends it so

    assert overlay.read_bytes() == before
    observed = converted(asked)

    images.assert_same(overlay, "qcow2", Path(observed["path"]), "qcow2")


def test_leftovers_of_a_killed_run_are_never_written_into(tmp_path: Path) -> None:
    source = staged_vmdk(tmp_path)
    output = tmp_path / "output"
    output.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    os.link(precious, output / ".disk-0.qcow2.partial")

    converted(options(tmp_path, staged.manifest(source.parent, source)))

    assert precious.read_text() == "precious"


def test_memory_does_not_grow_with_the_disk(tmp_path: Path) -> None:
    """300 MiB of noise, here and there on a disk of 2 TiB, within 256 MiB of memory."""
    stream = vmdk_writer.Stream((2 << 40) // 512)
    for number in range(4800):
        stream.add(number // 400 * 2_000_000 + number % 400, images.noise(number))
    source = tmp_path / "disk.vmdk"
    source.write_bytes(stream.finish())
    asked = options(tmp_path, staged.manifest(tmp_path, source))
    program = (
        "import resource, subprocess, sys; "
        "done = subprocess.run([sys.executable, '-m', 'hyperflow.kvmhost', 'convert', '--result', sys.argv[1]]); "
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )

    done = subprocess.run(
        [running.PYTHON, "-c", program, str(tmp_path / "result.json")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(running.ROOT / "plugins")},
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split("peak ")[1]) < 256 * 1024  # KiB
