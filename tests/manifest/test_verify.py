"""What can be wrong with a file is told apart."""

import hashlib
import os
import socket
import threading
import tracemalloc

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
    (tmp_path / "link").symlink_to("/etc/hostname")
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


def test_a_link_to_a_file_of_the_same_folder_is_that_file(tmp_path, file):
    (tmp_path / "current.vmdk").symlink_to("disk.vmdk")
    (seen,) = verdicts(disk(tmp_path / "current.vmdk"))
    assert seen.verdict == Verdict.MATCHES


def test_a_link_in_a_circle_leads_nowhere(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (seen,) = verdicts(disk(tmp_path / "a"))
    assert seen.verdict == Verdict.SYMLINK


def test_a_linked_folder_inside_the_manifests_folder_does_not_lead_out_of_it(tmp_path, file):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "disks").symlink_to(tmp_path)
    manifest = manifest_of({"manifest_version": "1.0", "disks": [disk(folder / "disks" / "disk.vmdk")]})
    assert [seen.verdict for seen in verify_manifest(manifest, folder=folder)] == [Verdict.SYMLINK]
    # A folder that is reached through a link is where it is: what counts is what lies below it.
    (tmp_path / "linked").symlink_to(tmp_path)
    manifest = manifest_of({"manifest_version": "1.0", "disks": [disk(tmp_path / "linked" / "disk.vmdk")]})
    assert [seen.verdict for seen in verify_manifest(manifest, folder=tmp_path / "linked")] == [Verdict.MATCHES]


def test_a_file_that_may_not_be_read_is_told_from_one_that_is_missing(file, tmp_path):
    absent = disk(tmp_path / "none", id="absent")
    file.chmod(0)
    if os.geteuid() == 0:  # root may read everything: ask as somebody else, who may come this far
        for parent in (tmp_path, *tmp_path.parents[:-2]):
            parent.chmod(parent.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        seen = verdicts(disk(file), absent)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    assert [each.verdict for each in seen] == [Verdict.UNREADABLE, Verdict.MISSING]
    assert seen[0].found == "Permission denied"


def test_a_file_that_shrinks_while_it_is_read_is_told_apart(tmp_path):
    content = bytes(2 * BLOCK)
    path = tmp_path / "disk.vmdk"
    path.write_bytes(content)

    def shrink(_disk_id, _read, _total):
        os.truncate(path, BLOCK)

    (seen,) = verdicts(disk(path, content), progress=shrink)
    assert (seen.verdict, seen.found) == (Verdict.CHANGED, f"{BLOCK} bytes at the end, {BLOCK} read")


def test_memory_does_not_grow_with_the_disk(tmp_path):
    path = tmp_path / "disk.raw"
    with path.open("wb") as sparse:
        sparse.truncate(32 * BLOCK)
    manifest = manifest_of({"manifest_version": "1.0", "disks": [disk(path, bytes(1), bytes=32 * BLOCK)]})
    tracemalloc.start()
    try:
        (seen,) = verify_manifest(manifest)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen.verdict == Verdict.DIGEST_DIFFERS  # it was read to the end
    assert peak < 2 * BLOCK


def test_disks_are_read_at_the_same_time(tmp_path):
    both = threading.Barrier(2, timeout=60)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(CONTENT)

    def meet(_disk_id, _read, _total):
        both.wait()  # is passed only when both threads have read a block

    manifest = manifest_of({"manifest_version": "1.0", "disks": [disk(tmp_path / n, id=n) for n in ("a", "b")]})
    assert all(seen.good for seen in verify_manifest(manifest, progress=meet, workers=2))


def test_when_the_person_gives_up_no_disk_is_read_to_its_end(tmp_path):
    disks = []
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(bytes(8 * BLOCK))
        disks.append(disk(tmp_path / name, bytes(8 * BLOCK), id=name))
    manifest = manifest_of({"manifest_version": "1.0", "disks": disks})
    reads = []

    def interrupt(disk_id, read, total):
        reads.append((disk_id, read, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_manifest(manifest, progress=interrupt, workers=2)
    assert all(read < total for _, read, total in reads)
    assert len({disk_id for disk_id, _, _ in reads}) < 3
