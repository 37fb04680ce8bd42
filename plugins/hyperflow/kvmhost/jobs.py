"""Detached jobs on a KVM host: a stage that outlives the connection that started it.

A job belongs to one task of one run and has a directory of its own, ``JOBS/DAG/RUN/TASK/``. Each start that cannot
attach to a running copy makes the next generation below it::

    TASK/lock                   held by start, kill and remove: one of them at a time
    TASK/log, TASK/delivered    what the stages said, and who has read how much of it: see job_log.py
    TASK/1/job.json             the supervisor's pid and start time, the boot id, the stage
    TASK/1/reserve              disk for the last words of a stage on a full file system
    TASK/1/result.json          what the stage observed, written by the stage
    TASK/1/exit.json            exit status, written by the supervisor
    TASK/1/collected            the control plane has the result

The options never touch the disk: they go from standard input through a pipe into the stage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyperflow.kvmhost import job_log, ledger, locks, processes
from hyperflow.kvmhost.job_result import read_result
from hyperflow.kvmhost.job_state import ABSENT, RUNNING, await_record, observe, wait
from hyperflow.kvmhost.stage import (
    EXIT_BAD_REQUEST,
    EXIT_TRY_AGAIN,
    OPTIONS_LIMIT,
    STAGES,
    explain,
    write_atomically,
)
from hyperflow.kvmhost.supervisor import Start, launch

KILL_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
DEATH_GRACE = 5.0  # seconds between SIGKILL and giving up: a process that waits for a dead disk cannot end
LOCK_GRACE = 50.0  # seconds to wait for a task's lock: a start may end a job and bring up another one meanwhile


class Overtaken(Exception):
    """A start that has come after a later one."""


def main(arguments: list[str]) -> int:
    """Run ``job start|wait|poll|kill|collect|remove``; each prints one line of JSON first."""
    parser = argparse.ArgumentParser(prog="hyperflow-kvmhost job")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("start", help="start the stage detached, or attach to a running copy")
    starting.add_argument("--directory", type=Path, required=True, help="the task's directory")
    starting.add_argument("--stage", choices=STAGES, required=True)
    starting.add_argument("--run", required=True, help="the run this job belongs to, DAG/RUN")
    starting.add_argument("--owner", type=json.loads, help='who asks, as the ledger has it: {"airflow", "dag", "run"}')
    starting.add_argument("--work", help="what is asked for, as a digest: a job that did other work is no answer")
    starting.add_argument("--restart", action="store_true", help="end a running copy instead of attaching to it")
    starting.add_argument(
        "--now",
        type=float,
        dest="asked",
        help="the caller's time, seconds since 1970: the log keeps to its clock, and a start that is late is refused",
    )
    waiting = commands.add_parser("wait", help="state, when the job has ended or the time is over")
    waiting.add_argument("--job", type=Path, required=True, help="the generation's directory")
    waiting.add_argument("--seconds", type=float, required=True)
    polling = commands.add_parser("poll", help="state, and the log from an offset")
    polling.add_argument("--job", type=Path, required=True, help="the generation's directory")
    polling.add_argument("--reader", default="", help="who reads: the try of a task; see job_log.py")
    polling.add_argument("--offset", type=int, default=-1, help="bytes of the log it has; -1 when it has just come")
    collecting = commands.add_parser("collect", help="note that the result was taken over")
    collecting.add_argument("--job", type=Path, required=True, help="the generation's directory")
    killing = commands.add_parser("kill", help="end the task's job, and tell what became of the last one")
    killing.add_argument("--directory", type=Path, required=True, help="the task's directory")
    removing = commands.add_parser("remove", help="end and remove all jobs of a run")
    removing.add_argument("--directory", type=Path, required=True, help="the run's directory")
    parsed = parser.parse_args(arguments)
    if parsed.command == "start":
        return _start_command(parsed)
    if parsed.command == "poll":
        answer, log = poll(parsed.job, parsed.reader, parsed.offset)
        sys.stdout.write(json.dumps({**answer, "log_bytes": len(log)}) + "\n")
        sys.stdout.flush()
        sys.stdout.buffer.write(log)
        return 0
    if parsed.command == "wait":
        print(json.dumps(wait(parsed.job, parsed.seconds)))
    elif parsed.command == "collect":
        with job_log.full_disk_suppressed():
            write_atomically(parsed.job / "collected", "")
        print(json.dumps({"collected": True}))
    else:
        return _end_command(parsed)
    return 0


def _start_command(parsed: argparse.Namespace) -> int:
    options = sys.stdin.read(OPTIONS_LIMIT + 1)
    asked = time.time() if parsed.asked is None else parsed.asked
    try:
        begin = Start(parsed.stage, parsed.run, options, asked, parsed.work)
        answer = start(parsed.directory, begin, restart=parsed.restart, owner=parsed.owner)
    except (TimeoutError, Overtaken, ledger.LedgerError) as fault:
        print(json.dumps({"error": str(fault)}))
        return EXIT_TRY_AGAIN
    except OSError as fault:
        print(json.dumps({"error": f"no job could be started in {parsed.directory}: {explain(fault)}"}))
        return EXIT_BAD_REQUEST
    print(json.dumps(answer))
    return 0


def _end_command(parsed: argparse.Namespace) -> int:
    try:
        if parsed.command == "kill":
            answer: dict[str, Any] = {"killed": kill(parsed.directory), "last": last(parsed.directory)}
        else:
            answer = {"removed": remove(parsed.directory)}
    except (TimeoutError, ledger.LedgerError) as fault:
        print(json.dumps({"error": str(fault)}))
        return EXIT_TRY_AGAIN
    print(json.dumps(answer))
    return 0


def start(
    directory: Path, begin: Start, *, restart: bool = False, owner: dict[str, str] | None = None
) -> dict[str, Any]:
    """Start a stage detached, or attach to what an earlier start of the same task left.

    Attached is to a copy that still runs, and to one that succeeded while nobody could ask for its result, when it was
    asked for the same work: a run that goes on may have another snapshot, other images, another manifest by now.
    Whatever else is there is ended before a new generation starts, so that one copy runs at any moment.

    :param restart: end a running copy: what it works with (a lease) is gone
    :param owner: who signs the job in the run's ledger, of whoever knows it
    :return: ``{"job": generation directory, "attached": bool}``
    :raises Overtaken: when a later start has been here before
    :raises LedgerError: the job cannot be noted, or the run is another Airflow's
    :raises TimeoutError: another command has the task's lock, what ran before cannot be ended, or nothing comes up
    """
    book = ledger.of_task(directory, begin.run)
    if book is not None:  # also when it is noted already: by that the janitor sees that the run works again
        book.add(begin.run, [ledger.Entry("job", str(directory))], owner)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(directory, time.monotonic() + LOCK_GRACE) as lock:
        generations = _generations(directory)
        if generations:
            last = generations[-1]
            _require_later(last, begin.asked)
            state = observe(last)
            goes_on = (state["state"] == RUNNING and not restart) or _succeeded_unseen(last, state)
            if goes_on and _work_of(last) == begin.work:
                return {"job": str(last), "attached": True}
            _end_processes(last)
        job = directory / str(len(generations) + 1)
        job.mkdir(mode=0o700)
        try:
            job_log.reserve(job)
        except OSError:
            shutil.rmtree(job)
            raise
        launch(job, begin, lock=lock)
    return {"job": str(job), "attached": False}


def _require_later(job: Path, asked: float) -> None:
    """Refuse a start that was asked for before the one that made ``job``.

    A connection that hung can come alive after its client has given it up and started the job by another one.
    """
    try:
        record = json.loads((job / "job.json").read_text())
    except FileNotFoundError:
        return
    if asked < record["asked"]:
        raise Overtaken(f"{job}: was started by a later request; this one has come too late and is dropped")


def poll(job: Path, reader: str, offset: int) -> tuple[dict[str, Any], bytes]:
    """Tell the state and the next piece of the task's log.

    :param reader: see :func:`hyperflow.kvmhost.job_log.read_piece`, as for ``offset``
    :return: the state of :func:`observe` with ``offset`` (where the piece starts), ``more`` (log is left), and
        ``result`` once the job is over and the log is at its end (None where there is none that can be taken, and
        ``result_fault`` says why); and the piece
    """
    answer = observe(job)  # before the log is read: whatever a finished stage said is then in the log
    if answer["state"] == ABSENT:
        return {**answer, "offset": 0, "more": False}, b""
    log, offset, more = job_log.read_piece(job.parent, reader, offset, is_over=answer["state"] != RUNNING)
    answer.update(offset=offset, more=more)
    if answer["state"] != RUNNING and not more:
        answer["result"], answer["result_fault"] = read_result(job / "result.json")
    return answer, log


def kill(directory: Path) -> int:
    """End a task's job and everything it started; a start that is at work is waited for.

    :return: how many generations were running
    :raises TimeoutError: another command has the task's lock, or processes cannot be ended
    """
    with contextlib.ExitStack() as locks:
        try:
            locks.enter_context(_locked(directory, time.monotonic() + LOCK_GRACE))
        except FileNotFoundError:  # there was no job, or it was removed until just now
            return 0
        running = [job for job in _generations(directory) if observe(job)["state"] == RUNNING]
        for job in running:
            _end_processes(job)
    return len(running)


def last(directory: Path) -> dict[str, Any]:
    """Tell what became of a task's last job, as :func:`observe` does."""
    generations = _generations(directory)
    return observe(generations[-1]) if generations else {"state": ABSENT}


def remove(directory: Path) -> int:
    """End and remove every job below a run's directory; starts that are at work are waited for.

    :return: how many there were
    :raises TimeoutError: another command has the lock of one of the tasks, or processes cannot be ended
    """
    limit = time.monotonic() + LOCK_GRACE
    with contextlib.ExitStack() as locks:
        tasks = sorted(path for path in directory.glob("*") if path.is_dir())
        for task in tasks:
            with contextlib.suppress(FileNotFoundError):  # another one has removed it until just now
                locks.enter_context(_locked(task, limit))
        jobs = [job for task in tasks for job in _generations(task)]
        for job in jobs:
            _end_processes(job)
        if directory.is_dir():
            shutil.rmtree(directory)
    run = f"{directory.parent.name}/{directory.name}"
    book = ledger.of_task(directory / "any", run)
    if book is not None:
        book.done(run, [entry for entry in book.read(run).open if entry.kind == "job"], "removed with its run")
    return len(jobs)


def _end_processes(job: Path) -> None:
    """End every process that carries the job's mark in its environment: SIGTERM first, SIGKILL after a while.

    The mark is inherited, so helpers that left the stage's session (QEMU of libguestfs) are found too. A job whose
    starter was killed may be about to come up, so its stage is waited for.

    :raises TimeoutError: processes are there after SIGKILL: a call of the kernel that cannot be broken off
    """
    await_record(job)
    limit = time.monotonic() + KILL_GRACE
    while True:
        found = processes.of_job(job)
        if not found:
            wait(job, DEATH_GRACE)  # for the supervisor, which has no mark, to write how it ended
            return
        late = time.monotonic() - limit
        if late > DEATH_GRACE:
            raise TimeoutError(
                f"{job}: processes {', '.join(map(str, sorted(found)))} could not be ended, not by SIGKILL either; "
                "most likely they wait for a disk or network storage that does not answer (state D in ps)"
            )
        sent = signal.SIGKILL if late > 0 else signal.SIGTERM
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
        time.sleep(0.1)


def _generations(directory: Path) -> list[Path]:
    """List a task's jobs, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def _work_of(job: Path) -> str | None:
    """What a job was asked for, as its starter said; of one that never came up nobody knows."""
    await_record(job)
    try:
        record = json.loads((job / "job.json").read_text())
    except FileNotFoundError:
        return "unknown"
    work: str | None = record.get("work")
    return work


def _succeeded_unseen(job: Path, state: dict[str, Any]) -> bool:
    return state.get("exit_status") == 0 and not (job / "collected").exists()


@contextlib.contextmanager
def _locked(directory: Path, limit: float) -> Iterator[int]:
    """Have a task for oneself: one command at a time starts and ends its jobs.

    :param limit: when to give up, by the monotonic clock
    :return: the lock's descriptor; who has a copy of it has the lock
    :raises TimeoutError: another command has it
    :raises FileNotFoundError: there is no such task
    """
    path = directory / "lock"
    while True:
        with path.open("w") as file:
            if not locks.take(file.fileno(), limit):
                raise TimeoutError(f"{path}: another command has been at work on this task for {LOCK_GRACE:.0f} s")
            if _is_in_place(file.fileno(), path):
                yield file.fileno()
                return


def _is_in_place(lock: int, path: Path) -> bool:
    """Tell whether a lock is still the task's: the task may have been removed, and begun anew, before it was free."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
