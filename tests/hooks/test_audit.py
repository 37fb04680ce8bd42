"""What a task does is in its run's audit file, whoever does it, and in the task's log."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hyperflow.audit.anchors import Anchor, read_head
from hyperflow.audit.chain import verify

from tests import own_airflow

# A DAG run by Airflow with a database of its own: a task, a mapped one, a start that cannot be written.
RUN = """
import sys
from airflow.sdk import DAG, BaseOperator
from hyperflow.hooks.audit import audit, audit_decision, audit_start, observer_of
from hyperflow.vsphere.observed import Change

class Tell(BaseOperator):
    def __init__(self, *, number=0, **kwargs):
        super().__init__(**kwargs)
        self.number = number

    def execute(self, context):
        audit_start(context, "migration", {"vm": "web01", "run_type": "forged"})
        failed = {"state": "failed", "exit_status": 3, "said": "no\\nway"}
        audit("host", f"command {self.number}", on="kvm01", seconds=0.12345, **failed)
        observer_of("vc01")(Change("PowerOnVM_Task", "VirtualMachine:vm-1", "done", {"host": "h"}, "Task:task-1", 0.5))
        audit_decision({"question": "May it?", "answer": "Approve", "by": "alice", "at": "2026-11-26T12:00:00Z"})

with DAG("told", schedule=None) as dag:
    Tell(task_id="one") >> Tell.partial(task_id="many").expand(number=[1, 2])

if __name__ == "__main__":
    print("OUTSIDE", audit("run", "nobody's"))
    run = dag.test(run_conf=None)
    print("RUN", run.run_id, run.state)
"""


def run(home: Path, told: str = RUN, **settings: str) -> str:
    (home / "told.py").write_text(told)
    return own_airflow.run(home / "told.py", own_airflow.make(home, **settings))


def test_a_runs_tasks_write_one_chain_with_who_did_what_when(tmp_path: Path) -> None:
    output = run(tmp_path)
    assert "OUTSIDE None" in output
    assert " success" in output, output[-3000:]
    (file,) = (tmp_path / "hyperflow" / "told").glob("*/audit.jsonl")
    assert verify(file).findings == ()
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(entries) == 12
    start, command, call, decision = entries[:4]
    assert (start["kind"], start["what"], start["task"], start["try"]) == ("run", "migration started", "one", 1)
    assert start["details"]["vm"] == "web01" and start["details"]["run_type"] == "manual"
    assert "map_index" not in start and {entry.get("map_index") for entry in entries[4:]} == {0, 1}
    assert (command["on"], command["exit"], command["seconds"], command["said"]) == ("kvm01", 3, 0.123, "no\nway")
    assert (call["what"], call["on"]) == ("PowerOnVM_Task", "vc01 VirtualMachine:vm-1")
    assert call["details"] == {"host": "h", "answer": "Task:task-1"}
    assert (decision["by"], decision["details"]["answer"]) == ("alice", "Approve")
    assert f"audit: entry 2 sha256 {command['sha256']}: command 0 on kvm01 failed exit 3 0.1 s (no\\nway)" in output


def test_the_tasks_logs_have_each_entrys_number_and_digest_and_the_run_has_a_head(tmp_path: Path) -> None:
    output = run(tmp_path)
    (file,) = (tmp_path / "hyperflow" / "told").glob("*/audit.jsonl")
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    logged = re.findall("audit: entry ([0-9]+) sha256 ([0-9a-f]{64}): ", output)
    assert logged == [(str(entry["seq"]), entry["sha256"]) for entry in entries]
    assert read_head(file) == Anchor(12, entries[-1]["sha256"])


def test_a_run_whose_audit_file_cannot_be_written_is_not_begun(tmp_path: Path) -> None:
    (tmp_path / "in-the-way").write_text("")
    output = run(tmp_path, AIRFLOW__HYPERFLOW__RECORDS_FOLDER=str(tmp_path / "in-the-way" / "records"))
    assert "cannot be written, so nothing is started" in output
    assert "command 0" not in output


def test_a_run_whose_head_cannot_be_written_is_not_begun(tmp_path: Path) -> None:
    (tmp_path / "hyperflow").mkdir()
    (tmp_path / "hyperflow" / ".audit").write_text("")
    output = run(tmp_path)
    assert "audit: the run's head could not be written" in output
    assert "cannot be written, so nothing is started" in output
    assert "command 0" not in output


def test_a_head_that_cannot_be_written_later_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "hyperflow" / ".audit"
    in_the_way = f"import shutil; shutil.rmtree({str(folder)!r}); open({str(folder)!r}, 'w').close()"
    told = RUN.replace("        failed = {", f"        {in_the_way}\n        failed = {{", 1)
    output = run(tmp_path, told)
    assert "audit: the run's head could not be written" in output
    (file,) = (tmp_path / "hyperflow" / "told").glob("*/audit.jsonl")
    assert verify(file).entries >= 4
