"""An audit file tells when an entry of it was removed, changed or added, and which one."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hyperflow.audit import chain
from hyperflow.audit.anchors import Anchor, head_file, read_head
from hyperflow.audit.chain import HeadNotWritten, append, head, read_entry, verify
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


def forge(path: Path, count: int) -> None:
    """Put a whole chain of other entries there, as somebody does who knows how digests are made."""
    other = path.parents[1] / "another" / path.name
    for number in range(count):
        append(other, entry(100 + number))
    other.replace(path)


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
    forge(file, 9)
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
    path = tmp_path / "dag" / "run" / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, 25)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = verify(path)
    assert (found.entries, found.findings) == (100, ())
    assert read_head(path) == found.last


def test_an_anchor_of_an_entry_that_was_never_written_is_found(tmp_path: Path) -> None:
    path = tmp_path / "dag" / "run" / "audit.jsonl"
    append(path, entry(1))
    (finding,) = verify(path, Anchor(3, "0" * 64)).findings
    assert "entry 3, which is not here" in finding.problem


def test_a_head_of_its_own_follows_each_entry(file: Path, tmp_path: Path) -> None:
    assert head_file(file) == tmp_path / ".audit" / "dag" / "run" / "audit.head"
    assert read_head(file) == head(file)
    assert append(file, entry(9)) == read_head(file)
    assert {path.name for path in head_file(file).parent.iterdir()} == {"audit.head"}


def cut(lines: Lines) -> None:
    del lines[2:]


def test_entries_that_were_cut_off_leave_a_gap_however_many_come_after(file: Path) -> None:
    assert spoil(file, cut) == []
    assert append(file, entry(9)).entries == 9
    append(file, entry(10))
    assert spoil(file, lambda lines: None) == [(3, "entries 3 to 8 were removed before this line")]


def test_a_file_that_was_removed_is_not_begun_anew(file: Path) -> None:
    file.unlink()
    append(file, entry(9))
    assert spoil(file, lambda lines: None) == [(1, "entries 1 to 8 were removed before this line")]


def test_a_file_that_was_written_anew_is_not_gone_on_with(file: Path) -> None:
    forge(file, 8)
    assert verify(file).findings == ()
    append(file, entry(9))
    (found,) = spoil(file, lambda lines: None)
    assert found[0] == 9 and "does not follow the line before" in found[1]


def test_entries_that_were_added_by_hand_are_told_of_by_the_next(file: Path) -> None:
    known = head_file(file).read_bytes()
    append(file, entry(9))
    append(file, entry(10))
    head_file(file).write_bytes(known)
    append(file, entry(11))
    ((line, problem),) = spoil(file, lambda lines: None)
    assert line == 11 and "the run's head knew 8 entries: those after were added by hand" in problem
    append(file, entry(12))
    assert len(verify(file).findings) == 1


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"entries": 8, "sha256": 1}'])
def test_a_head_that_was_removed_or_damaged_is_told_of_by_the_next(file: Path, content: bytes | None) -> None:
    head_file(file).unlink()
    if content is not None:
        head_file(file).write_bytes(content)
    append(file, entry(9))
    ((line, problem),) = spoil(file, lambda lines: None)
    assert line == 9 and "the run's head knew 0 entries" in problem


@pytest.mark.parametrize("before", [0, 1, 8])
def test_a_writer_that_was_killed_before_it_wrote_the_head_harms_nothing(tmp_path: Path, before: int) -> None:
    path = tmp_path / "dag" / "run" / "audit.jsonl"
    for number in range(before):
        append(path, entry(number))
    known = head_file(path).read_bytes() if before else None
    append(path, entry(before))
    head_file(path).unlink()
    if known is not None:
        head_file(path).write_bytes(known)
    append(path, entry(9))
    found = verify(path, head=read_head(path))
    assert (found.entries, found.findings) == (before + 2, ())


def test_an_entry_whose_head_cannot_be_written_is_written(file: Path) -> None:
    head_file(file).unlink()
    head_file(file).mkdir()
    with pytest.raises(HeadNotWritten) as caught:
        append(file, entry(9))
    assert caught.value.anchor == head(file)
    assert verify(file).entries == 9


def test_a_key_that_is_said_twice_is_found(file: Path) -> None:
    found = spoil(file, lambda lines: lines.__setitem__(3, lines[3].replace(b'"by"', b'"by": "mallory", "by"')))
    assert found == [(4, "entry 4 says 'by' more than once: the line was changed")]


def test_a_key_that_is_said_twice_within_an_entrys_details_is_found(file: Path) -> None:
    found = spoil(file, lambda lines: lines.__setitem__(3, lines[3].replace(b'{"n"', b'{"n": 99, "n"')))
    assert found == [(4, "entry 4 says 'n' more than once: the line was changed")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"by": ', b'"by":'),
        (b'"by"', b'"b\\u0079"'),
        (b'"n": 4', b'"n": 4e0'),
        (b"}\n", b"} \n"),
        (b"}\n", b"}\r\n"),
        (b'"alice"', b'"alic\\ud800"'),
    ],
)
def test_a_line_that_is_written_in_another_way_is_found(file: Path, old: bytes, new: bytes) -> None:
    found = spoil(file, lambda lines: lines.__setitem__(3, lines[3].replace(old, new)))
    assert found[0][0] == 4 and "was changed" in found[0][1]
    assert read_entry(file.read_bytes().split(b"\n")[3]) is None


def test_all_that_an_entry_can_say_is_written_so_that_it_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "dag" / "run" / "audit.jsonl"
    strange = {"\udc80": "\udc80", "a\u2028\x85\x00\x7f": 1e22, "b": -0.0, "c": True, "d": 10**30, "e": {"f": None}}
    append(path, Entry("host", '\u2028\n\r\t"\\/\U0001f600', seconds=1e-9, exit=-9, details=strange))
    assert verify(path).findings == ()
    assert read_entry(path.read_bytes().removesuffix(b"\n")) is not None


@pytest.mark.parametrize("character", ["\u00e4", "\x00", "\U0001f600"])
def test_an_entry_of_whatever_size_is_a_line_that_is_read_again(tmp_path: Path, character: str) -> None:
    """Else an entry that was written would be found to be none, and a good file to be spoilt."""
    path, text = tmp_path / "dag" / ("r" * 250) / "audit.jsonl", character * 3000
    big = Entry("run", text, by=text, on=text, said=text, details={f"{number}{text}": text for number in range(20)})
    append(path, big)
    append(path, entry(2))
    assert verify(path).findings == ()
    first = json.loads(path.read_bytes().splitlines()[0])
    assert first["details"]["left_out"] + len(first["details"]) - 1 == 20


def test_a_writer_that_was_stopped_is_not_waited_for_without_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "LOCK_LIMIT", 1.0)
    content = file.read_bytes()
    faults: list[OSError] = []

    def write() -> None:
        try:
            append(file, entry(9))
        except OSError as fault:
            faults.append(fault)

    with stopped_with_lock_of(file):
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(30)
        assert not writer.is_alive()
    assert [str(fault) for fault in faults] == [f"[Errno 110] another process has written to it for 1 s: '{file}'"]
    assert file.read_bytes() == content
    assert append(file, entry(9)).entries == 9


HOLDER = """
import fcntl, os, signal, sys
with open(sys.argv[1], "r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("has it", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@contextlib.contextmanager
def stopped_with_lock_of(path: Path) -> Iterator[None]:
    """A process that was stopped while it had the lock of a file."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "has it\n"
            yield
        finally:
            process.kill()
