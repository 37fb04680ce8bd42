"""What can be wrong with a file is told apart."""

import hashlib
import os
import socket

import pytest
from hyperflow.manifest.load import manifest_of
from hyperflow.manifest.verify import BLOCK, Verdict, verify_manifest

CONTENT = b"disk" * 1000


def disk(path, content=CONTENT, **changes):
    base = {
        "id": "disk-0",
        "source_format": "vmdk",
        "bytes": len(content),
        "local_path": str(path),
        "checksum": "sha256:" + hashlib.sha256(content).hexdigest(),
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def verdicts(*disks, progress=None):
    manifest = manifest_of({"manifest_version": "1.0", "disks": list(disks)})
    return verify_manifest(manifest, progress=progress)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "disk.vmdk"
    path.write_bytes(CONTENT)
    return path


def test_a_file_that_is_as_said_matches(file):
    (seen,) = verdicts(disk(file))
    assert seen.verdict == Verdict.MATCHES
    assert seen.good
    assert seen.sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_a_changed_byte_is_seen_with_both_digests(file):
    file.write_bytes(b"D" + CONTENT[1:])
    (seen,) = verdicts(disk(file))
    assert seen.verdict == Verdict.DIGEST_DIFFERS
    assert not seen.good
    assert seen.found == hashlib.sha256(b"D" + CONTENT[1:]).hexdigest()
    assert seen.expected == hashlib.sha256(CONTENT).hexdigest()


def test_another_size_is_seen_without_reading(file):
    (seen,) = verdicts(disk(file, bytes=1))
    assert seen.verdict == Verdict.SIZE_DIFFERS
    assert (seen.found, seen.expected) == ("4000 bytes", "1 bytes")


def test_without_a_checksum_only_kind_and_size_are_told(file):
    (seen,) = verdicts(disk(file, checksum=None))
    assert seen.verdict == Verdict.NO_CHECKSUM
    assert seen.good


def test_what_is_no_file_of_its_own_is_told_apart(tmp_path, file):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "fifo")
    names = ["none", "folder", "link", "fifo", "socket"]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        seen = verdicts(*(disk(tmp_path / name, id=name) for name in names), disk("/dev/zero", id="device"))
    assert [each.verdict for each in seen] == [
        Verdict.MISSING,
        Verdict.NOT_REGULAR,
        Verdict.SYMLINK,
        Verdict.NOT_REGULAR,
        Verdict.NOT_REGULAR,
        Verdict.NOT_REGULAR,
    ]
    assert not any(each.good for each in seen)


def test_a_file_that_grows_while_it_is_read_is_told_apart(tmp_path):
    content = bytes(2 * BLOCK)
    path = tmp_path / "disk.vmdk"
    path.write_bytes(content)

    def grow(_disk_id, _read, _total):
        with path.open("ab") as more:
            more.write(b"more")

    (seen,) = verdicts(disk(path, content), progress=grow)
    assert seen.verdict == Verdict.CHANGED


def test_a_file_that_is_replaced_while_it_is_read_is_told_apart(tmp_path):
    content = bytes(2 * BLOCK)
    path = tmp_path / "disk.vmdk"
    path.write_bytes(content)

    def replace(_disk_id, read, total):
        if read == total:
            (tmp_path / "other").write_bytes(content)
            (tmp_path / "other").replace(path)

    (seen,) = verdicts(disk(path, content), progress=replace)
    assert seen.verdict == Verdict.REPLACED


def test_progress_counts_every_byte_of_every_disk(tmp_path):
    sizes = {"a": BLOCK + 1, "b": 5}
    disks = []
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
        disks.append(disk(tmp_path / name, bytes(size), id=name))
    last = {}

    def keep(disk_id, read, total):
        last[disk_id] = (read, total)

    assert all(seen.good for seen in verdicts(*disks, progress=keep))
    assert last == {name: (size, size) for name, size in sizes.items()}
