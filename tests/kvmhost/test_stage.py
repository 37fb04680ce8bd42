"""The frame of the stages: what SIGTERM, the usual end of a job, leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A stage that works in a temporary folder, and takes its time to leave.
STAGE = """
import dataclasses, pathlib, sys, tempfile, time
from hyperflow.kvmhost import stage
from hyperflow.kvmhost.stages import checksum

@dataclasses.dataclass(frozen=True)
class Options:
    pass

def run(options, job):
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        try:
            (pathlib.Path(folder) / "file").write_text("content")
            job.log("works")
            time.sleep(60)
        finally:
            time.sleep(0.5)

def swallow(options, job):
    try:
        run(options, job)
    except SystemExit:
        pass
    return {}

checksum.Options, checksum.run = Options, swallow if sys.argv[3:] else run
sys.exit(stage.run_stage("checksum", "{}", pathlib.Path(sys.argv[2])))
"""


@pytest.mark.parametrize("more", [[], ["swallow"]])
def test_a_stage_that_is_ended_puts_away_what_it_has_and_leaves_no_result(tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        ["/usr/bin/python3", "-c", STAGE, str(tmp_path / "tmp"), str(tmp_path / "result.json"), *more],
        env={**os.environ, "PYTHONPATH": str(ROOT / "plugins")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "works\n"
    while process.poll() is None:  # as jobs.py and the cleanup do
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    process.stdout.close()
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == [tmp_path / "tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []
