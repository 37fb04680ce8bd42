"""Appends entries to an audit file and finds what was removed, changed or added in one.

Each entry has a number, the digest of the entry before and its own. Who rewrites the whole file can make a chain that
holds, and who cuts off its end leaves one: against that number and digest of an entry are kept elsewhere
(:mod:`hyperflow.audit.anchors`).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from hyperflow.audit import locks
from hyperflow.audit.anchors import Anchor, AnchorFault, read_head, write_head
from hyperflow.audit.entry import FIRST, LINE_LIMIT, Entry, digest, written

NAME = "audit.jsonl"
LOCK_LIMIT = 120.0  # seconds that an entry waits for its turn; another writer is done in a fraction of one

KEY_SHOWN = 50  # characters of a key of a line that was changed


class HeadNotWritten(OSError):
    """An entry was written, but the run's head was not.

    :ivar anchor: number and digest of the entry
    """

    def __init__(self, anchor: Anchor, fault: OSError) -> None:
        super().__init__(str(fault))
        self.anchor = anchor


@dataclass(frozen=True)
class Finding:
    """What is wrong with an audit file.

    :ivar line: of the file, from 1; the one after the last where its end is missing; 0 of the file as a whole
    :ivar problem: a sentence
    """

    line: int
    problem: str


@dataclass(frozen=True)
class Verified:
    """What was found in an audit file.

    :ivar entries: how many it has
    :ivar last: number and digest of the last one; None of an empty file
    :ivar findings: empty when nothing is wrong
    :ivar run: ``DAG/RUN`` that its first entry says it is of; None where that says nothing
    """

    entries: int
    last: Anchor | None
    findings: tuple[Finding, ...]
    run: str | None = None


def append(path: Path, entry: Entry) -> Anchor:
    """Append an entry and sync it to the disk, then the run's head; writers on one machine, or on one NFS, take turns.

    A line that a killed writer, or a full disk, has cut off was never said to be written: it is cut away, and the next
    entry tells so (``cut_off_before``, in bytes). Entries that the head knows and the file has no more leave a gap that
    stays; where the head was behind by more than the one entry of a killed writer, the next one tells how many it
    knew (``head_before``). The first one says whose file it is (``run``).

    :return: number and digest of the entry
    :raises HeadNotWritten: the entry was written, but the head was not
    :raises OSError: the file cannot be written, or another writer does not get done with it; it is as it was
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        if not locks.take(descriptor, LOCK_LIMIT):
            said = f"another process has written to it for {LOCK_LIMIT:.0f} s"
            raise TimeoutError(errno.ETIMEDOUT, said, str(path))
        size, torn, count, previous = _end_of(file)
        whole = size - torn
        count, previous, behind = _after_head(file, path, count, previous)
        document = entry.document()
        if torn:
            document["cut_off_before"] = torn
        if behind is not None:
            document["head_before"] = behind
        if count == 0:
            document["run"] = run_of(path)
        document = {"seq": count + 1, **document, "previous": previous}
        document["sha256"] = digest(document)
        line = written(document) + b"\n"
        try:
            file.truncate(whole)
            file.seek(whole)
            _write(file, line)
            os.fsync(descriptor)
        except OSError:
            file.truncate(whole)
            raise
        anchor = Anchor(document["seq"], document["sha256"])
        try:
            write_head(path, anchor)
        except OSError as fault:
            raise HeadNotWritten(anchor, fault) from fault
    return anchor


def run_of(path: Path) -> str:
    """The run whose file is at this path, ``DAG/RUN`` as its folders are called."""
    run = path.absolute().parent
    return f"{run.parent.name}/{run.name}"


def head(path: Path) -> Anchor | None:
    """Number and digest of the last entry; None where there is none that can be read."""
    try:
        last = path.read_bytes().splitlines()[-1:]
    except OSError:
        return None
    document = _entry_of(last[0]) if last else None
    return None if document is None else Anchor(document["seq"], document["sha256"])


def verify(path: Path, report: Anchor | None = None, head: Anchor | None = None) -> Verified:
    """Look for entries that were removed, changed or added.

    :param report: what the run's report says of the file
    :param head: what the run's head says of it
    :raises OSError: the file cannot be read
    """
    lines = path.read_bytes().splitlines(keepends=True)
    findings: list[Finding] = []
    digests: dict[int, tuple[int, str]] = {}  # number -> line and digest, as computed
    expected, previous, run = 1, FIRST, None
    for number, line in enumerate(lines, 1):
        document = _entry_of(line) if line.endswith(b"\n") else None
        if document is None:
            findings.append(Finding(number, "is no entry of an audit file: it was changed or cut off"))
            expected, previous = expected + 1, sha256(line.rstrip(b"\r\n")).hexdigest()
            continue
        form = _problem_of_form(line[:-1], document)
        findings += [Finding(number, form)] if form else []
        findings += [Finding(number, problem) for problem in _problems(document, expected, previous)]
        digests[document["seq"]] = (number, digest(document))
        run = document.get("run") if document["seq"] == 1 else run
        expected, previous = document["seq"] + 1, document["sha256"]
    for anchor, knows in ((report, "the run's report knows"), (head, "the run's head knows")):
        if anchor is not None:
            findings += _against(anchor, knows, digests, len(lines))
    last = max(digests, default=None)
    known = None if last is None else Anchor(last, digests[last][1])
    return Verified(len(lines), known, tuple(findings), run if isinstance(run, str) else None)


def read_entry(line: bytes) -> dict[str, Any] | None:
    """Read a line, without its end, to show it; None where it is no entry, or not as an entry is written."""
    document = _entry_of(line)
    return None if document is None or _problem_of_form(line, document) else document


def _after_head(file: Any, path: Path, count: int, previous: str) -> tuple[int, str, int | None]:
    """What the next entry follows.

    Where the head knows an entry that is not in the file, the next one follows that: the gap is found however many
    entries come after it.

    :param count: number of the file's last entry; ``previous`` is its digest
    :return: number and digest; how many entries the head knew, where it should have known more, else None
    """
    try:
        known = read_head(path)
    except AnchorFault:
        known = None
    if known is None:  # a writer may have been killed between the first entry and its head
        return count, previous, 0 if count > 1 else None
    if known == Anchor(count, previous):
        return count, previous, None
    if not _has(file, known):
        return max(count, known.entries), known.sha256, None
    return count, previous, None if count == known.entries + 1 else known.entries


def _has(file: Any, anchor: Anchor) -> bool:
    file.seek(0)
    entries = (_entry_of(line) for line in file.read().splitlines())
    return any(entry is not None and Anchor(entry["seq"], entry["sha256"]) == anchor for entry in entries)


def _end_of(file: Any) -> tuple[int, int, int, str]:
    """Read the end of a file, and all of it only where that is no entry.

    :return: bytes of the file; those after its last whole line; number and digest of its last entry
    """
    size = file.seek(0, os.SEEK_END)
    begin = max(size - 2 * LINE_LIMIT, 0)  # an entry, and what a killed writer has left of the next
    while True:
        file.seek(begin)
        tail = file.read() or b""
        whole = tail.rfind(b"\n") + 1
        lines = tail[:whole].splitlines()
        last = _entry_of(lines[-1]) if lines else None
        if last is not None:
            return size, len(tail) - whole, last["seq"], last["sha256"]
        if begin == 0:
            return size, len(tail) - whole, len(lines), _digest_of_line(lines[-1]) if lines else FIRST
        begin = 0


def _problems(document: dict[str, Any], expected: int, previous: str) -> Iterator[str]:
    """What is wrong with an entry after one of number ``expected - 1`` and digest ``previous``."""
    seq = document["seq"]
    if digest(document) != document["sha256"]:
        yield f"entry {seq} was changed: its digest is another one"
    if seq > expected:
        gone = f"entry {expected} was" if seq == expected + 1 else f"entries {expected} to {seq - 1} were"
        yield f"{gone} removed before this line"
    elif seq < expected:
        yield f"entry {seq} was added or moved here: entry {expected} should be in this line"
    elif document["previous"] != previous:
        yield f"entry {seq} does not follow the line before: that one was rewritten, or this one was added"
    if "head_before" in document:
        yield (
            f"before entry {seq} was written, the run's head knew {document['head_before']!r} entries: those after "
            "were added by hand, or their head was removed or could not be written; the tasks' logs have each entry"
        )


def _problem_of_form(line: bytes, document: dict[str, Any]) -> str | None:
    """What is wrong with how an entry is written; its digest is of what was read, and tells nothing of it."""
    if written(document) == line:
        return None
    said: set[str] = set()

    def once(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        said.update(key for key in keys if keys.count(key) > 1)

    json.loads(line, object_pairs_hook=once)
    twice = f"says {min(said)[:KEY_SHOWN]!r} more than once" if said else "is not written as Hyperflow writes it"
    return f"entry {document['seq']} {twice}: the line was changed"


def _against(anchor: Anchor, knows: str, digests: dict[int, tuple[int, str]], lines: int) -> Iterator[Finding]:
    if anchor.entries not in digests:
        missing = "the end was removed" if anchor.entries > max(digests, default=0) else "it was removed"
        yield Finding(lines + 1, f"{knows} of entry {anchor.entries}, which is not here: {missing}")
        return
    line, found = digests[anchor.entries]
    if found != anchor.sha256:
        said = f"entry {anchor.entries} is not the one that {knows}: the file was rewritten"
        yield Finding(line, said)


def _entry_of(line: bytes) -> dict[str, Any] | None:
    if len(line) > LINE_LIMIT:
        return None
    try:
        document = json.loads(line)
        written(document)  # half a surrogate pair can be read, and not be written
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or type(document.get("seq")) is not int:
        return None
    if not all(isinstance(document.get(key), str) for key in ("at", "kind", "what", "state", "previous", "sha256")):
        return None
    return document


def _digest_of_line(line: bytes) -> str:
    """The digest that the next entry holds: the line's own, or that of its bytes where it is no entry."""
    document = _entry_of(line)
    return sha256(line).hexdigest() if document is None else str(document["sha256"])


def _write(file: Any, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]
