"""A lab that is taken down takes the jobs on its host along, and nobody else's."""

from __future__ import annotations

import subprocess

from lab import processes


def test_processes_of_the_lab_are_ended_and_others_are_not() -> None:
    ours = subprocess.Popen(["sleep", "100"], env={"HYPERFLOW_JOB": "/lab/one/staging/jobs/1"})
    theirs = subprocess.Popen(["sleep", "100"], env={"HYPERFLOW_JOB": "/lab/one-more/staging/jobs/1"})
    try:
        assert processes.marked(b"HYPERFLOW_JOB=/lab/one/") == [ours.pid]
        processes.end_marked(b"HYPERFLOW_JOB=/lab/one/")
        assert ours.wait(30) == -9
        assert theirs.poll() is None
        assert processes.marked(b"HYPERFLOW_JOB=/lab/one/") == []
    finally:
        for one in (ours, theirs):
            one.kill()
            one.wait()
