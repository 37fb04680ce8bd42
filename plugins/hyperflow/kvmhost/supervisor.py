"""Brings up a job on a KVM host: a supervisor away from every terminal, with the stage as its child; see jobs.py."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from hyperflow.kvmhost import job_log
from hyperflow.kvmhost.job_state import LOOK, START_GRACE, boot_id, start_time
from hyperflow.kvmhost.stage import EXIT_ENDED, write_atomically

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Start:
    """What a start asks for.

    :param run: the run that it is for, ``DAG/RUN``
    :param options: of the stage, as JSON
    :param asked: when the caller asked, by its clock, in seconds since 1970
    :param work: digest of what is asked for; None for a job that is started by hand
    """

    stage: str
    run: str
    options: str
    asked: float
    work: str | None


def launch(job: Path, begin: Start, *, lock: int) -> None:
    """Start the supervisor in a session of its own and wait until it has recorded itself.

    :param lock: descriptor of the task's lock, which the supervisor must not have: it would keep the lock for as long
        as the stage runs, if this process were killed before it could unlock
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(lock)
            os.close(writer)
            _supervise(job, begin, reader)
        finally:
            os._exit(1)  # never back into the caller's stack
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as pipe, contextlib.suppress(BrokenPipeError):
        pipe.write(begin.options)
    os.waitpid(child, 0)
    limit = time.monotonic() + START_GRACE
    while not (job / "job.json").exists():
        if time.monotonic() > limit:
            raise TimeoutError(f"{job}: the stage did not come up within {START_GRACE:.0f} s")
        time.sleep(0.01)


def _supervise(job: Path, begin: Start, options: int) -> None:
    """Run the stage as a child, away from every terminal, and write down what it says and how it ended.

    :param options: descriptor to read them from
    """
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    log = job_log.LogWriter(job.parent, job, begin.asked - time.time())
    environment = {**os.environ, "HYPERFLOW_JOB": str(job), "HYPERFLOW_RUN": begin.run}
    program = [sys.argv[0]] if sys.argv[0].endswith(".pyz") else ["-m", "hyperflow.kvmhost"]
    process = subprocess.Popen(
        [sys.executable, *program, begin.stage, "--result", str(job / "result.json")],
        stdin=options,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=job,
        env=environment,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - the supervisor has one thread
    )
    os.close(options)
    record = {
        "pid": os.getpid(),
        "start_time": start_time(os.getpid()),
        "boot_id": boot_id(),
        "stage": begin.stage,
        "run": begin.run,
        "asked": begin.asked,
        "work": begin.work,
    }
    write_atomically(job / "job.json", json.dumps(record))
    _follow(process, log)
    status = process.wait()
    if status == EXIT_ENDED:
        status = -signal.SIGTERM
    log.finish()
    job_log.free_reserve(job)
    write_atomically(job / "exit.json", json.dumps({"exit_status": status}))


def _follow(process: subprocess.Popen[bytes], log: job_log.LogWriter) -> None:
    """Write the stage's output to the log until it has ended; what outlives it (an appliance) may hold it open."""
    assert process.stdout is not None  # noqa: S101 - it was asked for
    output = process.stdout.fileno()
    ended = False
    while True:
        readable, _, _ = select.select([output], [], [], 0 if ended else LOOK)
        if readable:
            data = os.read(output, job_log.CHUNK)
            if not data:
                return
            log.take(data)
        elif ended:
            return
        else:
            ended = process.poll() is not None


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
