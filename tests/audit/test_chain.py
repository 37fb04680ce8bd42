"""An audit file tells when an entry of it was removed, changed or added, and which one."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
from hyperflow.audit.chain import Anchor, append, head, verify
from hyperflow.audit.entry import TEXT_LIMIT, Entry, digest

Lines = list[bytes]


def entry(number: int) -> Entry:
    return Entry("vsphere", f"call-{number}", by="alice", on="vc VirtualMachine:vm-1", details={"n": number})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dag" / "run" / "audit.jsonl"
    for number in range(1, 9):
        append(path, entry(number))
    return path


def spoil(path: Path, change: Callable[[Lines], object]) -> list[tuple[int, str]]:
    """Change the file's lines; what verify says then."""
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))
    return [(finding.line, finding.problem) for finding in verify(path).findings]


def rewritten(line: bytes, **changes: object) -> bytes:
    """A line as somebody rewrites it who knows how digests are made."""
    document = json.loads(line) | changes
    return json.dumps(document | {"sha256": digest(document)}).encode() + b"\n"


def test_what_was_appended_is_whole(file: Path) -> None:
    found = verify(file)
    assert (found.entries, found.findings) == (8, ())
    assert found.last == head(file)
    first, second = (json.loads(line) for line in file.read_text().splitlines()[:2])
    assert (first["seq"], first["by"], first["details"]) == (1, "alice", {"n": 1})
    assert second["previous"] == first["sha256"]


def test_a_changed_entry_is_named(file: Path) -> None:
    found = spoil(file, lambda lines: lines.__setitem__(3, lines[3].replace(b"alice", b"mallory")))
    assert found == [(4, "entry 4 was changed: its digest is another one")]


def test_a_removed_entry_is_named(file: Path) -> None:
    assert spoil(file, lambda lines: lines.pop(4)) == [(5, "entry 5 was removed before this line")]


def test_several_removed_entries_are_named(file: Path) -> None:
    def remove(lines: Lines) -> None:
        del lines[2:5]

    assert spoil(file, remove) == [(3, "entries 3 to 5 were removed before this line")]


def test_an_added_entry_is_named(file: Path) -> None:
    found = spoil(file, lambda lines: lines.insert(5, rewritten(lines[4], what="never happened")))
    assert found[0] == (6, "entry 5 was added or moved here: entry 6 should be in this line")


def test_an_added_entry_with_the_numbers_of_all_after_it_changed_is_found(file: Path) -> None:
    def insert(lines: Lines) -> None:
        lines[3:] = [rewritten(line, seq=number) for number, line in enumerate([lines[3], *lines[3:]], 4)]

    assert [line for line, _ in spoil(file, insert)] == [5, 6, 7, 8, 9]


def test_a_rewritten_entry_whose_digest_is_right_breaks_the_chain_after_it(file: Path) -> None:
    found = spoil(file, lambda lines: lines.__setitem__(3, rewritten(lines[3], by="mallory")))
    assert found == [
        (5, "entry 5 does not follow the line before: that one was rewritten, or this one was added"),
    ]


def test_swapped_entries_are_found(file: Path) -> None:
    def swap(lines: Lines) -> None:
        lines[2], lines[3] = lines[3], lines[2]

    assert spoil(file, swap)[0] == (3, "entry 3 was removed before this line")


def test_a_removed_end_is_found_by_what_the_report_knows(file: Path) -> None:
    last = head(file)
    assert last is not None
    assert spoil(file, lambda lines: lines.pop()) == []
    (finding,) = verify(file, last).findings
    assert finding.problem == "the run's report knows of entry 8, which is not here: the end was removed"


def test_a_file_rewritten_as_a_whole_is_found_by_what_the_report_knows(file: Path) -> None:
    last = head(file)
    file.unlink()
    for number in range(11, 20):
        append(file, entry(number))
    assert verify(file).findings == ()
    (finding,) = verify(file, last).findings
    assert (finding.line, "the file was rewritten" in finding.problem) == (8, True)


def test_more_entries_than_the_report_knows_are_right(file: Path) -> None:
    last = head(file)
    append(file, entry(9))
    assert verify(file, last).findings == ()


@pytest.mark.parametrize(
    "line", [b"{}\n", b"[]\n", b"no json\n", b"\xff\xfe\n", b'{"seq": true}\n', b"[" * 9000 + b"\n"]
)
def test_a_line_that_is_no_entry_is_named_and_the_rest_is_still_read(file: Path, line: bytes) -> None:
    found = spoil(file, lambda lines: lines.__setitem__(3, line))
    assert found[0] == (4, "is no entry of an audit file: it was changed or cut off")
    assert [number for number, _ in found[1:]] == [5]  # which holds the digest of what was there
    append(file, entry(9))
    assert len(verify(file).findings) == len(found)


def test_a_line_that_a_killed_writer_has_cut_off_is_cut_away_and_told_of(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b'{"seq": 9, "at": "2026-')
    assert [finding.line for finding in verify(file).findings] == [9]
    append(file, entry(9))
    assert verify(file).findings == ()
    last = json.loads(file.read_text().splitlines()[-1])
    assert (last["seq"], last["cut_off_before"]) == (9, 23)


def test_a_full_disk_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()
    real = "/dev/full"
    with pytest.raises(OSError), monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: Path(real).write_text("x"))  # what the kernel says where the disk is full
        append(file, entry(9))
    assert file.read_bytes() == before


def test_long_and_strange_texts_are_kept_within_a_line(file: Path) -> None:
    append(file, Entry("host", "x" * 5000, said="line\nbreak \udc80 \u202e", details={"a": ["b"], "c": "d" * 9000}))
    last = json.loads(file.read_text().splitlines()[-1])
    assert len(last["what"]) < TEXT_LIMIT + 40 and last["said"].startswith("line\nbreak \\udc80")
    assert last["details"]["a"] == '["b"]'
    assert verify(file).findings == ()


def write_many(path: Path, count: int) -> None:
    for number in range(count):
        append(path, entry(number))


def test_writers_in_several_processes_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, 25)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = verify(path)
    assert (found.entries, found.findings) == (100, ())


def test_an_anchor_of_an_entry_that_was_never_written_is_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    append(path, entry(1))
    (finding,) = verify(path, Anchor(3, "0" * 64)).findings
    assert "entry 3, which is not here" in finding.problem
