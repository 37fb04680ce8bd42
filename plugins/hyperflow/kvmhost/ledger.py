"""The ledger: what a run is about to create, written down on this host first, and struck off when it is gone.

A run has one file, ``ROOT/ledger/DAG/RUN``, where ``ROOT`` is the folder that also holds the jobs. It is only ever
appended to, one JSON object a line::

    {"time": ..., "event": "add", "kind": "overlay", "thing": PATH, "facts": {...}, "owner": {...}}
    {"time": ..., "event": "done", "kind": "overlay", "thing": PATH, "why": "removed"}
    {"time": ..., "event": "sign", "owner": {...}}

A line is on the disk before whatever it names is created, so a process may be killed at any moment: what is left then
is a thing with a line, or a line without a thing. The control plane signs what it adds with the owner (Airflow
instance, DAG, run), or only signs; what a stage adds belongs to the run whose file it is in.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hyperflow.kvmhost import locks

FOLDER = "ledger"
JOBS = "jobs"  # beside it, see jobs.py
KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*")  # DAG/RUN, as a path may hold it
KIND = re.compile(r"[a-z-]{1,40}")
OWNER = ("airflow", "dag", "run")
ON_DISK = ("job", "partial", "overlay", "fix-overlay", "staged-disk")  # kinds whose thing is a path on this host
LINE_LIMIT = 64 * 1024  # bytes; an entry has some hundred
LOCK_LIMIT = 60.0  # seconds to wait for the ledgers' lock; the longest holder is a janitor that removes
STAGE_LOCK_LIMIT = 1800.0  # that a stage waits, to which no connection waits: to remove disks of many TiB takes minutes
FILE_LIMIT = 16 * 1024 * 1024  # bytes of one run's ledger; a run that is cleared every day has a few kB
INPUT_LIMIT = 1024 * 1024  # bytes on standard input


class LedgerError(Exception):
    """The ledger cannot be written or read; the message names the file and what to do."""


class LedgerBusy(LedgerError):
    """Another process has the ledgers for itself, for too long; they may be free again."""


@dataclass(frozen=True)
class Entry:
    """Something that a run creates.

    :param kind: what it is, such as ``overlay``
    :param thing: which one: a path, a UUID, or for things of a vCenter a text that names one
    :param facts: what else is needed to find it
    """

    kind: str
    thing: str
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Book:
    """A run's ledger as it stands.

    :param run: ``DAG/RUN``
    :param owners: who signed entries, each ``{"airflow", "dag", "run"}``, who did so last at the end; more than one
        only after another Airflow's run of that name, or in a file that was tampered with
    :param open: what is not struck off, in the order it was added
    :param damaged: lines that cannot be read: the last one of a crash, or a file that something else wrote to
    :param bytes: of the file, which only ever grows: by them it is seen whether something was written since
    """

    run: str
    owners: list[dict[str, str]]
    open: list[Entry]
    damaged: int = 0
    bytes: int = 0


class Ledger:
    """The ledgers of all runs on this host.

    :param root: the folder that holds the jobs, ``STAGING/.hyperflow``
    :param patience: seconds to wait for the lock; None for :data:`LOCK_LIMIT`
    """

    def __init__(self, root: Path, patience: float | None = None) -> None:
        self._root = root
        self._patience = LOCK_LIMIT if patience is None else patience
        self._folder = root / FOLDER
        self._is_locked = False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from adding and striking off; what it is about to create waits too.

        :raises LedgerBusy: when another process has had it for too long
        """
        if self._is_locked:
            yield
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / ".lock").open("w") as file:  # no DAG is called so: a key never starts with a dot
            if not locks.take(file.fileno(), time.monotonic() + self._patience):
                raise LedgerBusy(
                    f"{file.name}: another process has held it for {self._patience:.0f} s; see which (fuser), and end "
                    "it if it hangs"
                )
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def add(self, run: str, entries: Sequence[Entry], owner: dict[str, str] | None = None) -> None:
        """Note what is about to be created; when this returns, the note survives a power cut.

        :param entries: none, to sign the run's ledger only: then what its stages add has an owner
        :param owner: ``{"airflow", "dag", "run"}``, of whoever knows it
        :raises LedgerError: when it cannot be written, or another run of this name has something open; then nothing
            must be created
        """
        lines: list[dict[str, Any]] = []
        for entry in entries:
            line = {"time": _now(), "event": "add", **asdict(entry)}
            lines.append({**line, "owner": owner} if owner is not None else line)
        if owner is not None and not lines:
            lines.append({"time": _now(), "event": "sign", "owner": owner})
        if not lines:
            return
        with self._writing(run):
            if owner is not None:
                _require_same_run(self.read(run), owner)
            self._append(run, lines)

    def done(self, run: str, entries: Sequence[Entry], why: str) -> None:
        """Strike off what is gone, or is left on purpose, as ``why`` says."""
        lines = [
            {"time": _now(), "event": "done", "kind": entry.kind, "thing": entry.thing, "why": why} for entry in entries
        ]
        if lines:
            with self._writing(run):
                self._append(run, lines)

    def runs(self) -> list[str]:
        """List the runs that have a ledger."""
        found = (f"{path.parent.name}/{path.name}" for path in self._folder.glob("*/*"))
        return sorted(run for run in found if KEY.fullmatch(run))

    def read(self, run: str) -> Book:
        """Read a run's ledger; an empty one where there is none.

        :raises LedgerError: when it is no regular file, or larger than a ledger can be
        """
        path = self._path(run)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return Book(run, [], [])
        except OSError as fault:
            raise LedgerError(f"{path}: {fault.strerror}") from fault
        try:
            size = _require_ledger(descriptor, path)
            content = bytearray()
            while piece := os.read(descriptor, size - len(content)):
                content += piece
        finally:
            os.close(descriptor)
        return _fold(run, bytes(content))

    def forget(self, run: str) -> None:
        """Remove a run's ledger."""
        path = self._path(run)
        path.unlink()
        with contextlib.suppress(OSError):  # other runs of the DAG have theirs there
            path.parent.rmdir()

    def last_change(self, run: str) -> float:
        """When a run's ledger was last written to, in seconds since the epoch."""
        return self._path(run).stat().st_mtime

    def _path(self, run: str) -> Path:
        if not KEY.fullmatch(run):
            raise LedgerError(f"run: found {run!r}, expected DAG/RUN of letters, digits and . _ -")
        return self._folder / run

    def _append(self, run: str, lines: Sequence[dict[str, Any]]) -> None:
        path = self._path(run)
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        if any(len(line) > LINE_LIMIT for line in content.split(b"\n")):
            raise LedgerError(f"{path}: an entry has more than {LINE_LIMIT} bytes")
        is_new = not path.exists()
        path.parent.mkdir(exist_ok=True, mode=0o700)
        _write_durably(path, content)
        if is_new:
            for folder in (path.parent, self._folder, self._root):
                _sync_directory(folder)

    @contextlib.contextmanager
    def _writing(self, run: str) -> Iterator[None]:
        """Have the lock, and say of a fault of the file system what it means."""
        path = self._path(run)
        try:
            with self.locked():
                yield
        except OSError as fault:
            raise LedgerError(
                f"{path}: what is about to be created cannot be noted ({fault.strerror}), so it is not "
                "created; is the file system full or read-only?"
            ) from fault


def note(entries: Sequence[Entry]) -> None:
    """Note what the stage of this process is about to create; a stage that was started by hand belongs to no run.

    :raises LedgerBusy: when another process has the ledgers for too long
    :raises LedgerError: when it cannot be written
    """
    job, run = os.environ.get("HYPERFLOW_JOB"), os.environ.get("HYPERFLOW_RUN")
    if not job or not run:
        return
    ledger = of_task(Path(job).parent, run, STAGE_LOCK_LIMIT)
    if ledger is not None:
        ledger.add(run, entries)


def paths_of(entry: Entry) -> list[Path]:
    """Name the files or the folder of something on this host, with what may lie beside it."""
    path = Path(entry.thing)
    if entry.kind == "staged-disk":
        return [path, path.with_name(f".{path.name}.json")]
    return [path, *unfinished_notes(path)] if entry.kind == "partial" else [path]


def unfinished_notes(partial: Path) -> list[Path]:
    """Name what is left of a run that was killed while it wrote the note of what its ``.NAME.partial`` was to become.

    See :func:`hyperflow.kvmhost.images.files.put_in_place`.
    """
    note = f"{partial.name.removesuffix('.partial')}.json"
    return list(partial.parent.glob(f".{glob.escape(note)}.[0-9]*.tmp"))


def of_task(directory: Path, run: str, patience: float | None = None) -> Ledger | None:
    """Find the ledger that belongs to a task's job directory, ``ROOT/jobs/DAG/RUN/TASK``.

    :param patience: as for :class:`Ledger`
    :return: None when the directory is another one: a job that was started by hand
    """
    if len(directory.parents) < 5 or directory.parents[2].name != JOBS:
        return None
    if f"{directory.parents[1].name}/{directory.parents[0].name}" != run:
        return None
    return Ledger(directory.parents[3], patience)


def main(arguments: list[str]) -> int:
    """Run ``ledger add|done|list``; each prints one line of JSON."""
    parser = argparse.ArgumentParser(prog="hyperflow-kvmhost ledger")
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help='note what is about to be created: {"owner", "entries"} on standard input')
    striking = commands.add_parser("done", help='strike off what is gone: {"why", "entries"} on standard input')
    listing = commands.add_parser("list", help="every run with what it has not struck off")
    for command in (adding, striking, listing):
        command.add_argument("--directory", type=Path, required=True, help="the folder that holds the jobs")
    for command in (adding, striking):
        command.add_argument("--run", required=True, help="DAG/RUN")
    parsed = parser.parse_args(arguments)
    ledger = Ledger(parsed.directory)
    try:
        if parsed.command == "list":
            print(json.dumps({"runs": _list(ledger)}))
        else:
            request = _read_request(sys.stdin.read(INPUT_LIMIT + 1), parsed.command)
            if parsed.command == "add":
                ledger.add(parsed.run, request[1], request[0])
            else:
                ledger.done(parsed.run, request[1], request[0])
            print(json.dumps({"noted": len(request[1])}))
    except LedgerError as fault:
        print(json.dumps({"error": str(fault)}))
        return 1
    return 0


def _list(ledger: Ledger) -> list[dict[str, Any]]:
    """Tell of every run that has something open, or whose ledger cannot be read."""
    listed: list[dict[str, Any]] = []
    for run in ledger.runs():
        try:
            book = ledger.read(run)
        except LedgerError as fault:
            listed.append({"run": run, "fault": str(fault)})
        else:
            if book.open:
                listed.append(asdict(book))
    return listed


def _read_request(text: str, command: str) -> tuple[Any, list[Entry]]:
    """Read what ``add`` and ``done`` are given: the owner or the reason, and the entries.

    :raises LedgerError: when it is anything else
    """
    key = "owner" if command == "add" else "why"
    try:
        document = json.loads(text)
        first = _read_owner(document[key]) if key == "owner" else document[key]
        entries = [_read_entry(each) for each in document["entries"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        first, entries = None, [None]
    good = [entry for entry in entries if entry is not None]
    if first is None or (key == "why" and not isinstance(first, str)) or len(good) != len(entries):
        raise LedgerError(f"standard input: found no request to {command}, expected {key} and entries")
    return first, good


def _fold(run: str, content: bytes) -> Book:
    """Go through a ledger's lines; what is added again after it was struck off is open again."""
    owners: list[dict[str, str]] = []
    entries: dict[tuple[str, str], Entry] = {}
    damaged = 0
    for line in content.split(b"\n"):
        if not line:
            continue
        document = _read_line(line)
        entry = _read_entry(document) if document else None
        owner = _read_owner(document.get("owner")) if document else None
        if document is None or (owner if document["event"] == "sign" else entry) is None:
            damaged += 1
            continue
        if entry is not None and document["event"] == "done":
            entries.pop((entry.kind, entry.thing), None)
            continue
        if entry is not None and document["event"] == "add":
            entries.setdefault((entry.kind, entry.thing), entry)
        if owner is not None:
            owners = [*(each for each in owners if each != owner), owner]
    return Book(run, owners, list(entries.values()), damaged, len(content))


def _read_line(line: bytes) -> dict[str, Any] | None:
    if len(line) > LINE_LIMIT:
        return None
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and document.get("event") in ("add", "done", "sign") else None


def _read_entry(document: Any) -> Entry | None:
    if not isinstance(document, dict):
        return None
    kind, thing, facts = document.get("kind"), document.get("thing"), document.get("facts", {})
    if not isinstance(kind, str) or not KIND.fullmatch(kind) or not isinstance(thing, str) or not thing:
        return None
    if not isinstance(facts, dict) or not all(isinstance(one, str) for one in [*facts, *facts.values()]):
        return None
    return Entry(kind, thing, facts)


def _read_owner(document: Any) -> dict[str, str] | None:
    if not isinstance(document, dict) or set(document) != set(OWNER):
        return None
    return document if all(isinstance(value, str) and value for value in document.values()) else None


def _require_same_run(book: Book, owner: dict[str, str]) -> None:
    """Refuse to be the second run of one name: two Airflows with the same plans have runs of the same ids, and of two
    ids of one Airflow that differ only in such as ``:`` both are written alike here.

    :raises LedgerError: when another run has something open
    """
    last = book.owners[-1] if book.owners else owner
    if not book.open or last == owner:
        return
    first = f"{book.open[0].kind} {book.open[0].thing}"
    left = f"{len(book.open)} thing(s) open here, first {first}; nothing of it was touched"
    if last["airflow"] != owner["airflow"]:
        raise LedgerError(f"run {book.run} is one of another Airflow ({last['airflow']}), which has {left}")
    raise LedgerError(
        f"run {owner['run']} of {owner['dag']} is called {book.run} on this host, as is run {last['run']} of "
        f"{last['dag']}, which has {left}"
    )


def _write_durably(path: Path, content: bytes) -> None:
    """Append whole lines, or nothing: a file system that is full in the middle leaves the ledger as it was.

    :raises OSError: when they cannot be written
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        size = _require_ledger(descriptor, path)
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            content = b"\n" + content  # after the torn line of a crash
        try:
            written = 0
            while written < len(content):
                written += os.write(descriptor, content[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _require_ledger(descriptor: int, path: Path) -> int:
    """Refuse what cannot be a ledger; its size in bytes."""
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        raise LedgerError(f"{path}: found no regular file, expected a run's ledger; move it away")
    if state.st_size > FILE_LIMIT:
        raise LedgerError(
            f"{path}: found {state.st_size} bytes, expected at most {FILE_LIMIT}; something else wrote to it: look at "
            "what it names, and move it away"
        )
    return state.st_size


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
