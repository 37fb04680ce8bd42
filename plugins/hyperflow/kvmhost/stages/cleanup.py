"""Remove what a migration left on this host, and see that it is gone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from hyperflow.kvmhost import domains, processes
from hyperflow.kvmhost.ledger import ON_DISK, Entry, Ledger, LedgerError, paths_of, unfinished_notes
from hyperflow.kvmhost.stage import BadRequest, Job, StageError

PARTIAL = re.compile(r"\..+\.partial")
GRACE = 10.0  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True)
class OwnedDomain:
    """A domain to remove: only when its metadata says that this run defined it for this VM, and it is off."""

    uuid: str
    vm: str


@dataclass(frozen=True)
class Options:
    """What to remove; nothing outside ``staging_directory`` and ``output_directory`` is touched.

    :param work_directory: overlays and whatever else a stage kept there
    :param partials: files that a stage did not finish, named ``.NAME.partial``
    :param run: end every process that carries ``HYPERFLOW_RUN=run`` in its environment; None to end none
    :param domain: None to leave libvirt alone
    :param ledger_directory: where the run's ledger is, to strike off what is gone; None where there is none
    :param settled: kinds that are struck off besides: what the caller saw gone, or keeps as a result
    """

    staging_directory: Path
    output_directory: Path
    work_directory: Optional[Path] = None  # noqa: UP045 - read at run time, by Python 3.9 too
    partials: list[Path] = field(default_factory=list)
    run: Optional[str] = None  # noqa: UP045 - as above
    domain: Optional[OwnedDomain] = None  # noqa: UP045 - as above
    ledger_directory: Optional[Path] = None  # noqa: UP045 - as above
    settled: list[str] = field(default_factory=list)
    uri: str = field(default="qemu:///system")


def run(options: Options, job: Job) -> dict[str, Any]:
    """Remove processes, files and the domain, in this order; the order in which they hold each other.

    :raises BadRequest: when a path is not inside the two directories
    :raises StageError: when something is still there afterwards
    """
    _require_inside(options)
    ended = _end_processes(options.run, job) if options.run else []
    removed = []
    work = [options.work_directory] if options.work_directory else []
    notes = [note for path in options.partials for note in unfinished_notes(path)]
    for path in [*options.partials, *notes, *work]:
        if _remove(path):
            removed.append(str(path))
            job.log(f"cleanup: removed {path}")
    domain = _remove_domain(options.domain, options, job) if options.domain else None
    left = [str(path) for path in [*options.partials, *work] if os.path.lexists(path)]
    left += [f"process {pid}" for pid in (_marked(options.run) if options.run else [])]
    if left:
        raise StageError(f"still there after the cleanup: {', '.join(left)}")
    _settle(options, job)
    return {"removed": removed, "processes_ended": ended, "domain_removed": domain, "gone": True}


def _require_inside(options: Options) -> None:
    faults = []
    folders = [Path(os.path.realpath(one)) for one in (options.staging_directory, options.output_directory)]
    for folder in folders:
        if len(folder.parts) < 3:  # "/" or "/var": a slip of whoever wrote the plan must not cost a host
            faults.append(f"{folder}: found a directory at the top of the system, expected one of Hyperflow's own")
    for path in [*options.partials, *([options.work_directory] if options.work_directory else [])]:
        # the parent is followed, the path itself is not: a link is removed and what it points to is left alone
        real = Path(os.path.realpath(path.parent)) / path.name
        if ".." in path.parts or not any(folder in real.parents for folder in folders):
            faults.append(f"{path}: found it outside of {folders[0]} and {folders[1]}, expected it inside")
    for path in options.partials:
        if not PARTIAL.fullmatch(path.name):
            faults.append(f"{path}: found no partial file, expected the name .NAME.partial")
    if faults:
        raise BadRequest("; ".join(faults))


def _remove(path: Path) -> bool:
    """Remove a file or a directory; whether there was one."""
    if not os.path.lexists(path):
        return False
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return True


def _end_processes(run: str, job: Job) -> list[int]:
    """End the run's processes: SIGTERM first, SIGKILL after a while."""
    limit = time.monotonic() + GRACE
    ended: set[int] = set()
    while True:
        pids = _marked(run)
        late = time.monotonic() - limit
        if not pids or late > GRACE:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late > 0 else signal.SIGTERM)
        ended.update(pids)
        time.sleep(0.1)
    if ended:
        job.log(f"cleanup: ended {len(ended)} process(es) of {run}")
    return sorted(ended)


def _marked(run: str) -> list[int]:
    """Find the processes of a run, without this stage's own job."""
    found = processes.of_runs(without_job=os.environ.get("HYPERFLOW_JOB")).get(run, [])
    return [pid for pid in found if pid != os.getpid()]


def _remove_domain(wanted: OwnedDomain, options: Options, job: Job) -> bool:
    """Undefine the domain when this run defined it and it does not run; whether it was.

    Another's domain, one that an earlier run proved and defined, and one that people may already use, are left.
    """
    uuid = wanted.uuid.lower()
    there = domains.find(options.uri, uuid)
    if there is None:
        return False
    reason = domains.why_left(options.uri, there, wanted.vm, options.run)
    if reason is not None:
        job.warn(f"the domain {there.name} ({uuid}) is left: {reason}")
        return False
    domains.undefine(options.uri, there)
    job.log(f"cleanup: undefined {there.name}; its images are left")
    return True


def _settle(options: Options, job: Job) -> None:
    """Strike off in the run's ledger what is gone, and what is settled elsewhere."""
    if options.ledger_directory is None or options.run is None:
        return
    book = Ledger(options.ledger_directory)
    try:
        entries = book.read(options.run).open
        settled = [entry for entry in entries if entry.kind in options.settled]
        others = [entry for entry in entries if entry.kind not in options.settled]
        book.done(options.run, settled, "settled: gone, or a result of the run that is kept")
        book.done(options.run, [entry for entry in others if _is_gone(entry, options)], "gone, as the cleanup saw")
    except LedgerError as fault:
        job.warn(f"the ledger is not up to date: {fault}")


def _is_gone(entry: Entry, options: Options) -> bool:
    """Tell whether something that this run noted is no longer there as its own."""
    if entry.kind == "domain":
        domain = domains.find(options.uri, entry.thing)
        return domain is None or domain.run != options.run
    return entry.kind in ON_DISK and not any(os.path.lexists(path) for path in paths_of(entry))
