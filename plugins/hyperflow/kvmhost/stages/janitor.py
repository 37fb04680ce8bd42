"""Remove what ended runs have left on this host, by what their ledgers say, and nothing else.

The control plane says which runs ended; this stage looks again at everything that could make a removal wrong: living
processes of the run, a claim of another run on the same path, another owner, a staged disk of other bytes than were
downloaded. It holds the ledger meanwhile, so a run that starts now notes, and so creates, only afterwards; staged disks
are looked at before that, because those that must be read take long. A run whose ledger has grown since the control
plane read it works again, whatever it was said to be.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hyperflow.kvmhost import domains, ledger, processes
from hyperflow.kvmhost.images import files
from hyperflow.kvmhost.ledger import Book, Entry, Ledger, LedgerError
from hyperflow.kvmhost.stage import BadRequest, Job, StageError
from hyperflow.kvmhost.stages.cleanup import PARTIAL

REMOVED = "removed"
WOULD_REMOVE = "would remove"
GONE = "gone"  # it was noted, and is not there: never created, or removed before it could be struck off
KEPT = "kept"
FAILED = "failed"

TO_GO_ON = ("staged-disk", "fix-overlay")  # what a failed run needs when a person clears its failed task
DECODED = re.compile(r"\..+\.decoded\.partial")  # a folder, see images/decoded.py
RESULTS = ("staged-disk", "domain")  # what a run that succeeded leaves on purpose
OVERLAYS = ("fix", ".fix.partial", ".inspect.partial", "boot")  # names below a VM's work folder
READ_LIMIT = 64 << 30  # bytes of staged disks to read: some minutes, out of the ten that this stage is waited for
FORGET_SECONDS = 90 * 24 * 3600.0  # a ledger with nothing open in it tells its story for that long


@dataclass(frozen=True)
class EndedRun:
    """A run that does not work any more.

    :param run: ``DAG/RUN``
    :param dead: nobody can go on from it: what was kept for that goes too
    :param succeeded: its domain is a result
    :param why: what the control plane knows of it
    :param ledger_bytes: length of its ledger when it was read, before it was asked whether the run ended
    """

    run: str
    dead: bool
    succeeded: bool
    why: str
    ledger_bytes: int


@dataclass(frozen=True)
class Options:
    """What to look at.

    :param directory: the folder that holds jobs and ledgers, ``STAGING/.hyperflow``
    :param runs: those that ended; every other run's things are left
    :param dry_run: say what would be removed, and leave it
    """

    directory: Path
    runs: list[EndedRun]
    dry_run: bool
    uri: str = field(default="qemu:///system")


@dataclass(frozen=True)
class Finding:
    """What became of one thing: ``action`` is removed, would remove, gone, kept or failed."""

    run: str
    kind: str
    thing: str
    action: str
    why: str


class Left(Exception):
    """Something must not be removed; the message says why."""


def run(options: Options, job: Job) -> dict[str, Any]:
    """Remove, read back, strike off.

    :raises BadRequest: when the directory is not one of Hyperflow's
    """
    if options.directory.name != ".hyperflow" or len(options.directory.parts) < 3:
        raise BadRequest(f"options.directory: found {options.directory}, expected the folder .hyperflow of a host")
    book = Ledger(options.directory)
    verified = verify_staged(options, book, job)
    with book.locked():
        janitor = Janitor(options, book, verified, job)
        findings = [finding for each in options.runs for finding in janitor.clean(each)]
        forgotten = 0 if options.dry_run else forget_old(book)
    for finding in findings:
        job.log(f"janitor: {finding.action}: {finding.kind} {finding.thing} of {finding.run}: {finding.why}")
    return {
        "findings": [asdict(finding) for finding in findings],
        "busy": janitor.busy(),
        "ledgers_forgotten": forgotten,
    }


class Janitor:
    """Looks at one ended run after the other; the ledger is held.

    :param verified: of :func:`verify_staged`
    """

    def __init__(self, options: Options, book: Ledger, verified: Mapping[Path, Mapping[str, int]], job: Job) -> None:
        self._root = options.directory
        self._dry_run = options.dry_run
        self._uri = options.uri
        self._ledger = book
        self._verified = verified
        self._job = job
        self._alive = processes.of_runs()
        self._busy = set(self._alive)
        self._ended = {each.run: each for each in options.runs}
        self._books = self._read_all()

    def clean(self, ended: EndedRun) -> list[Finding]:
        """Remove what a run has left on this host."""
        book = self._books.get(ended.run)
        if book is None:
            return []
        findings = []
        for entry in book.open:
            if entry.kind in (*ledger.ON_DISK, "domain"):
                if entry.kind in RESULTS and ended.succeeded:
                    action, why = self._strike(entry, ended, KEPT, "its run succeeded: it is a result")
                else:
                    action, why = self._handle(entry, ended)
                findings.append(Finding(ended.run, entry.kind, entry.thing, action, why))
        return findings

    def busy(self) -> list[str]:
        """Name the ended runs of which processes are alive all the same."""
        return sorted(self._ended.keys() & (self._busy | processes.of_runs().keys()))

    def _read_all(self) -> dict[str, Book]:
        books = {}
        for each in self._ledger.runs():
            try:
                books[each] = self._ledger.read(each)
            except LedgerError as fault:
                self._job.warn(f"a ledger that cannot be read, so what its run has left stays: {fault}")
        return books

    def _handle(self, entry: Entry, ended: EndedRun) -> tuple[str, str]:
        """Decide about one thing and do it; what became of it, and why."""
        try:
            self._require_unused(entry, ended)
            if not self._is_there(entry, ended.run):
                return self._strike(entry, ended, GONE, "it is not there")
            self._require_ours(entry, ended)
            if self._dry_run:
                return WOULD_REMOVE, ended.why
            self._require_idle(ended)
            self._remove(entry, ended)
        except Left as reason:
            return KEPT, str(reason)
        except (OSError, StageError, LedgerError) as fault:
            return FAILED, f"it cannot be removed: {fault}"
        if self._is_there(entry, ended.run):
            return FAILED, "it is still there after its removal"
        return self._strike(entry, ended, REMOVED, ended.why)

    def _strike(self, entry: Entry, ended: EndedRun, action: str, why: str) -> tuple[str, str]:
        if not self._dry_run:
            self._ledger.done(ended.run, [entry], f"{action} by the janitor: {why}")
        return action, why

    def _require_unused(self, entry: Entry, ended: EndedRun) -> None:
        """Leave what somebody needs: living processes, a person who clears the run, another run."""
        self._require_idle(ended)
        if self._books[ended.run].bytes != ended.ledger_bytes:
            raise Left("its ledger was written to since Airflow was asked about the run, which may work again")
        if entry.kind in TO_GO_ON and not ended.dead:
            raise Left(f"the run can go on from it; {ended.why}")
        if entry.kind == "domain":
            return  # its metadata says whose it is
        for other, book in self._books.items():
            claims = any((one.kind, one.thing) == (entry.kind, entry.thing) for one in book.open)
            if claims and not self._has_let_go(other, entry):
                raise Left(f"the run {other} works with it")

    def _require_idle(self, ended: EndedRun) -> None:
        """Look at the processes once more: a run may be gone on with while those before it are cleaned up."""
        self._alive = processes.of_runs()
        self._busy |= self._alive.keys()
        if ended.run in self._alive:
            raise Left(f"processes of the run are alive: {', '.join(map(str, self._alive[ended.run]))}")

    def _has_let_go(self, other: str, entry: Entry) -> bool:
        ended = self._ended.get(other)
        return ended is not None and other not in self._alive and (ended.dead or entry.kind not in TO_GO_ON)

    def _is_there(self, entry: Entry, owner: str) -> bool:
        if entry.kind == "domain":
            domain = self._domain(entry)
            return domain is not None and domain.run == owner
        if entry.kind == "staged-disk" and not is_noted_for(files.read_note(Path(entry.thing)), owner):
            return False
        return any(os.path.lexists(path) for path in ledger.paths_of(entry))

    def _domain(self, entry: Entry) -> domains.Domain | None:
        return domains.find(self._uri, entry.thing)

    def _require_ours(self, entry: Entry, ended: EndedRun) -> None:
        """Hold a thing to what a run of that name creates; a ledger is believed no further."""
        if entry.kind == "domain":
            self._require_own_domain(entry, ended)
            return
        path = Path(entry.thing)
        if not path.is_absolute() or ".." in path.parts:
            raise Left("its path is none that Hyperflow writes")
        real = Path(os.path.realpath(path.parent)) / path.name
        base = Path(os.path.realpath(self._root.parent))
        if entry.kind == "job":
            expected = real.parent == Path(os.path.realpath(self._root)) / ledger.JOBS / ended.run
        elif entry.kind == "partial":
            is_folder = path.is_dir() and not path.is_symlink()
            expected = (DECODED if is_folder else PARTIAL).fullmatch(path.name) is not None
        elif entry.kind == "staged-disk":
            expected = base in real.parents and not path.is_dir()
        else:
            expected = base in real.parents and path.parent.name == "work" and path.name in OVERLAYS
        if not expected:
            raise Left("its path is none that a run of Hyperflow has on this host")
        if entry.kind == "staged-disk" and files.state(path) not in (None, self._verified.get(path)):
            raise Left(
                "it is not for certain what the run downloaded: it was changed, is somebody else's, or is too large to "
                "be read again; look at it, and remove it with its note"
            )

    def _require_own_domain(self, entry: Entry, ended: EndedRun) -> None:
        domain = self._domain(entry)
        reason = None if domain is None else domains.why_left(self._uri, domain, entry.facts.get("vm", ""), ended.run)
        if reason is not None:
            raise Left(reason)

    def _remove(self, entry: Entry, ended: EndedRun) -> None:
        if entry.kind == "domain":
            domain = self._domain(entry)
            if domain is not None:
                domains.undefine(self._uri, domain)
            return
        for path in ledger.paths_of(entry):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if entry.kind != "partial":
            self._remove_empty(Path(entry.thing).parent, ended.run)

    def _remove_empty(self, folder: Path, owner: str) -> None:
        """Remove the folder that was made for what is gone now, when nothing else is in it."""
        made = folder.name == "work" or f"{folder.parent.name}/{folder.name}" == owner
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def verify_staged(options: Options, book: Ledger, job: Job) -> dict[Path, dict[str, int]]:
    """Hold the staged disks of runs that nobody goes on from to the notes beside them; most need not be read for that.

    :return: those that are what was downloaded, with their state, by which a later change is seen
    """
    verified = {}
    left = READ_LIMIT
    for path, run in _removable(options, book):
        note, state = files.read_note(path), files.state(path)
        if note is None or state is None or not is_noted_for(note, run):
            continue
        is_same = files.is_untouched(path, note)
        if not is_same and state["bytes"] == note.get("bytes") and state["bytes"] <= left:
            left -= state["bytes"]
            is_same = _has_noted_bytes(path, note, job)
        if is_same:
            verified[path] = state
    return verified


def _removable(options: Options, book: Ledger) -> Iterator[tuple[Path, str]]:
    """Yield the staged disks that may be removed, each with its run."""
    for ended in options.runs:
        if ended.dead and not ended.succeeded:
            with contextlib.suppress(LedgerError):  # it is reported where ledgers are read for what they name
                for entry in book.read(ended.run).open:
                    if entry.kind == "staged-disk":
                        yield Path(entry.thing), ended.run


def _has_noted_bytes(path: Path, note: Mapping[str, Any], job: Job) -> bool:
    """Hold a staged disk to the SHA-256 in its note; one that cannot be read is left."""
    try:
        progress = job.progress(f"verify {path}", path.lstat().st_size)
        sha256, _ = files.hash_file(path, progress.advance)
    except (OSError, StageError):
        return False
    return sha256 == note.get("sha256")


def is_noted_for(note: Mapping[str, Any] | None, run: str) -> bool:
    """Tell by the note beside a staged disk whether this run downloaded it: a later run has the same names."""
    found = note or {}
    return found.get("kind") == "hyperflow-download" and str(found.get("source", "")).endswith(f", run {run}")


def forget_old(book: Ledger) -> int:
    """Remove ledgers in which nothing is open and nothing was written for long; how many."""
    forgotten = 0
    for each in book.runs():
        if book.last_change(each) > time.time() - FORGET_SECONDS:
            continue
        try:
            is_settled = not book.read(each).open
        except LedgerError:
            continue  # it is reported where ledgers are read for what they name
        if is_settled:
            book.forget(each)
            forgotten += 1
    return forgotten
