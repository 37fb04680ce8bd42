"""A job outlives the connection that started it, runs once, and tells the truth about its end."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost import job_state, jobs

ROOT = Path(__file__).resolve().parents[2]
LONG = 2**40  # bytes of a sparse disk: its checksum is not done before it is ended, however slow the test is
LIMIT = 120.0  # seconds a test waits before it gives up


def job(*arguments: str, stdin: str = "", program: str = "") -> tuple[dict[str, Any], bytes]:
    """Run ``job ...`` as the control plane does; its answer, and the log that follows it."""
    done = subprocess.run(
        ["/usr/bin/python3", *([program] if program else ["-m", "hyperflow.kvmhost"]), "job", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "plugins")},
        input=stdin.encode(),
        capture_output=True,
        check=True,
        timeout=2 * LIMIT,
    )
    header, _, rest = done.stdout.partition(b"\n")
    return json.loads(header), rest


def start(directory: Path, options: str, *more: str) -> dict[str, Any]:
    arguments = ("start", "--directory", str(directory), "--stage", "checksum", "--run", "dag/run", *more)
    return job(*arguments, stdin=options)[0]


def wait(path: str) -> dict[str, Any]:
    limit = time.monotonic() + LIMIT
    while time.monotonic() < limit:
        answer, _ = job("poll", "--job", path)
        if answer["state"] != "RUNNING" and not answer["more"]:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"{path} did not end")


def options_for(folder: Path, size: int) -> str:
    """Make a manifest of one disk of zeros and the options of its checksum."""
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(size)
    digest = hashlib.sha256()
    if size < LONG:
        digest.update(bytes(size))
    document = {
        "manifest_version": "1.0",
        "disks": [
            {
                "id": "disk-0",
                "source_format": "raw",
                "bytes": size,
                "local_path": str(disk),
                "checksum": f"sha256:{digest.hexdigest()}",
            }
        ],
    }
    manifest = folder / "artifact-manifest.json"
    manifest.write_text(json.dumps(document))
    sha256 = hashlib.sha256(manifest.read_bytes()).hexdigest()
    return json.dumps({"manifest": {"path": str(manifest), "sha256": sha256}, "disk_id": "disk-0"})


@pytest.fixture
def task(tmp_path: Path) -> Any:
    """A task's directory; whatever runs in it, or in another one of its run, is ended at the end."""
    directory = tmp_path / "jobs" / "dag" / "run" / "task"
    yield directory
    job("remove", "--directory", str(directory.parent))


def processes_of(path: str) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"HYPERFLOW_JOB={path}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_a_finished_job_gives_its_result_and_its_whole_log(tmp_path: Path, task: Path) -> None:
    started = start(task, options_for(tmp_path, 1000))
    answer = wait(started["job"])
    assert (answer["state"], answer["exit_status"]) == ("DONE", 0)
    assert answer["result"]["succeeded"] is True
    assert answer["result"]["observed"]["matches"] is True
    _, log = job("poll", "--job", started["job"], "--offset", "0")
    assert log == (task / "log").read_bytes()
    assert sorted(path.name for path in Path(started["job"]).iterdir()) == ["exit.json", "job.json", "result.json"]


def test_who_waits_is_told_the_end_at_once_and_else_when_the_time_is_over(tmp_path: Path, task: Path) -> None:
    over = start(task.with_name("short"), options_for(tmp_path, 1000))
    assert job("wait", "--job", over["job"], "--seconds", str(LIMIT))[0] == {"state": "DONE", "exit_status": 0}
    runs = start(task.with_name("long"), options_for(tmp_path, LONG))
    assert job("wait", "--job", runs["job"], "--seconds", "0.5")[0] == {"state": "RUNNING"}


def test_a_second_start_attaches_to_the_copy_that_runs(tmp_path: Path, task: Path) -> None:
    options = options_for(tmp_path, LONG)
    first, second = start(task, options), start(task, options)
    assert second == {"job": first["job"], "attached": True}
    assert len(processes_of(first["job"])) == 1


def test_a_job_that_did_other_work_is_no_answer(tmp_path: Path, task: Path) -> None:
    asked, otherwise = ("--work", "of snapshot-11"), ("--work", "of snapshot-12")
    options = options_for(tmp_path, 1000)
    first = start(task, options, *asked)
    wait(first["job"])
    assert start(task, options, *asked) == {"job": first["job"], "attached": True}
    second = start(task, options_for(tmp_path, LONG), *otherwise)
    assert second["attached"] is False
    third = start(task, options, *asked)
    assert (third["attached"], processes_of(second["job"])) == (False, [])


def test_a_start_for_a_run_of_another_airflow_of_the_same_name_is_refused_and_touches_nothing(
    tmp_path: Path, task: Path
) -> None:
    directory, options = task, options_for(tmp_path, LONG)
    owner, other = (json.dumps({"airflow": name, "dag": "dag", "run": "run"}) for name in ("a", "b"))
    first = start(directory, options, "--owner", owner)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        start(directory, options, "--restart", "--owner", other)
    assert "is one of another Airflow (a)" in json.loads(refused.value.output)["error"]
    assert len(processes_of(first["job"])) == 1
    assert start(directory, options, "--owner", owner) == {"job": first["job"], "attached": True}
    assert job("remove", "--directory", str(directory.parent))[0] == {"removed": 1}


def test_a_restart_ends_the_copy_that_runs_before_another_begins(tmp_path: Path, task: Path) -> None:
    options = options_for(tmp_path, LONG)
    first, second = start(task, options), start(task, options, "--restart")
    assert second["attached"] is False
    assert second["job"] != first["job"]
    assert processes_of(first["job"]) == []


def test_a_success_that_nobody_has_seen_is_handed_over_once(tmp_path: Path, task: Path) -> None:
    options = options_for(tmp_path, 1000)
    first = start(task, options)
    wait(first["job"])
    assert start(task, options) == {"job": first["job"], "attached": True}
    job("collect", "--job", first["job"])
    assert start(task, options)["attached"] is False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_killed_stage_is_done_with_the_signal_as_its_status(tmp_path: Path, task: Path, number: int) -> None:
    started = start(task, options_for(tmp_path, LONG))
    os.kill(processes_of(started["job"])[0], number)
    answer = wait(started["job"])
    assert (answer["state"], answer["exit_status"], answer["result"]) == ("DONE", -number, None)
    assert f"ended by {signal.Signals(number).name}" in answer["reason"]


def test_a_job_whose_processes_are_all_gone_is_lost(tmp_path: Path, task: Path) -> None:
    started = start(task, options_for(tmp_path, LONG))
    (stage,) = processes_of(started["job"])
    supervisor = int((Path(f"/proc/{stage}/stat")).read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    assert wait(started["job"])["state"] == "LOST"
    limit = time.monotonic() + LIMIT
    while processes_of(started["job"]):  # the stage is sent its SIGKILL when the supervisor is gone, and not before
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_restart_of_the_host_is_told_from_other_losses(tmp_path: Path, task: Path) -> None:
    started = start(task, options_for(tmp_path, LONG))
    job("kill", "--directory", str(task))
    wait(started["job"])  # a kill does not wait for ever for the supervisor to write how the stage ended
    record = Path(started["job"]) / "job.json"
    (record.parent / "exit.json").unlink()
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot_id": "another"}))
    answer, _ = job("poll", "--job", started["job"])
    assert answer["state"] == "LOST"
    assert "restarted" in answer["reason"]


def test_a_kill_ends_the_job_within_seconds(tmp_path: Path, task: Path) -> None:
    started = start(task, options_for(tmp_path, LONG))
    killed = job("kill", "--directory", str(task))[0]
    assert (killed["killed"], killed["last"]["exit_status"]) == (1, -signal.SIGTERM)
    assert processes_of(started["job"]) == []


def test_a_kill_of_what_has_ended_tells_how(tmp_path: Path, task: Path) -> None:
    assert job("kill", "--directory", str(task))[0] == {"killed": 0, "last": {"state": "ABSENT"}}
    wait(start(task, options_for(tmp_path, 1000))["job"])
    told = {"killed": 0, "last": {"state": "DONE", "exit_status": 0}}
    assert job("kill", "--directory", str(task))[0] == told


def test_a_reader_that_comes_back_starts_over_and_another_one_goes_on(tmp_path: Path, task: Path) -> None:
    started = start(task, options_for(tmp_path, 1000))
    wait(started["job"])
    whole = (task / "log").read_bytes()
    first_line = whole.index(b"\n") + 1
    read = ("poll", "--job", started["job"], "--reader")
    assert job(*read, "try 1")[1] == whole
    job(*read, "try 1", "--offset", str(first_line))
    answer, log = job(*read, "try 1")
    assert (answer["offset"], log) == (0, whole), "what a reader that died has shown, nobody knows"
    for _ in range(2):
        answer, log = job(*read, "try 2")
        assert (answer["offset"], log) == (first_line, whole[first_line:])


def test_the_next_generation_goes_on_in_the_log_of_the_last(tmp_path: Path, task: Path) -> None:
    options = options_for(tmp_path, 1000)
    first = start(task, options)
    wait(first["job"])
    job("collect", "--job", first["job"])
    before = (task / "log").read_bytes()
    second = start(task, options)
    wait(second["job"])
    _, log = job("poll", "--job", second["job"], "--reader", "try 2")
    assert log.startswith(before)
    assert len(log) > len(before)
    times = [line.split(b" ")[0] for line in log.splitlines()]
    assert sorted(set(times)) == times, "no two lines have the same time"


def test_the_log_keeps_to_the_clock_of_whoever_started_the_job(tmp_path: Path, task: Path) -> None:
    started = start(task, options_for(tmp_path, 1000), "--now", "1000000000.0")
    wait(started["job"])
    assert (task / "log").read_text().startswith("2001-09-09T01:4")  # 01:46:40, and some minutes for its first line


def test_options_are_never_written_to_the_disk(tmp_path: Path, task: Path) -> None:
    secret = "ticket-4711"
    started = start(task, json.dumps({"url": secret}))
    assert wait(started["job"])["exit_status"] == 64
    written = [path for path in task.rglob("*") if path.is_file() and path.name not in ("log", "result.json")]
    assert written
    assert all(secret not in path.read_text() for path in written)


def test_a_result_that_is_no_object_or_too_large_is_none(tmp_path: Path, task: Path) -> None:
    started = start(task, options_for(tmp_path, 1000))
    wait(started["job"])
    for content in ("[1, 2]", "{", '"' + "x" * 2_000_000 + '"'):
        (Path(started["job"]) / "result.json").write_text(content)
        assert job("poll", "--job", started["job"])[0]["result"] is None


def test_there_is_no_job_where_nobody_started_one(tmp_path: Path) -> None:
    assert job("poll", "--job", str(tmp_path / "1"))[0]["state"] == "ABSENT"


# A starter that is killed, by the kernel for want of memory say, as soon as it has forked the supervisor.
KILLED_STARTER = """
import os, signal, sys, time
from hyperflow.kvmhost import jobs

starter, launch, leave = os.getpid(), os.waitpid, os.setsid

def die(*arguments):
    if os.getpid() == starter:
        os.kill(starter, signal.SIGKILL)
    return launch(*arguments)

def leave_late():
    if os.environ["GATE"]:
        for _ in range(1200):
            if os.path.exists(os.environ["GATE"]):
                break
            time.sleep(0.1)
        time.sleep(1)  # whoever has opened it goes first
    leave()

os.waitpid, os.setsid = die, leave_late
sys.argv[0] = "hyperflow"
jobs.main(sys.argv[1:])
"""


def killed_start(directory: Path, options: str, gate: Path | None = None) -> None:
    """Start a job so; its supervisor does nothing before the gate is there, and a second after."""
    arguments = ("start", "--directory", str(directory), "--stage", "checksum", "--run", "dag/run")
    killed = subprocess.run(
        ["/usr/bin/python3", "-c", KILLED_STARTER, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "plugins"), "GATE": str(gate or "")},
        input=options.encode(),
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL


def test_a_starter_that_is_killed_takes_the_lock_with_it(tmp_path: Path, task: Path) -> None:
    options = options_for(tmp_path, LONG)
    killed_start(task, options)
    assert start(task, options) == {"job": str(task / "1"), "attached": True}
    assert len(processes_of(str(task / "1"))) == 1, "it was attached to while it runs"


def test_a_job_whose_starter_was_killed_is_ended_although_it_has_not_come_up(tmp_path: Path, task: Path) -> None:
    gate = tmp_path / "gate"
    killed_start(task, options_for(tmp_path, LONG), gate)
    assert not (task / "1" / "job.json").exists()
    gate.touch()
    assert job("kill", "--directory", str(task))[0]["killed"] == 1
    assert (task / "1" / "job.json").exists()
    assert processes_of(str(task / "1")) == []


@pytest.mark.parametrize("command", ["start", "kill", "remove"])
def test_a_command_waits_for_another_one_that_is_at_work_on_the_task_and_not_for_ever(
    task: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (task / "1").mkdir(parents=True)
    directory = task.parent if command == "remove" else task
    stage = ("--stage", "checksum", "--run", "dag/run") if command == "start" else ()
    monkeypatch.setattr("sys.stdin", io.StringIO("{}"))
    monkeypatch.setattr(jobs, "LOCK_GRACE", 0.3)
    with (task / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert jobs.main([command, "--directory", str(directory), *stage]) == 75
    assert "another command" in json.loads(capsys.readouterr().out)["error"]
    (task / "1").rmdir()  # it is there; nobody waits for it to come up


def test_who_has_waited_for_a_task_that_was_removed_meanwhile_has_no_lock_yet(task: Path) -> None:
    task.mkdir(parents=True)
    limit = time.monotonic() + LIMIT
    with jobs._locked(task, limit) as stale:
        shutil.rmtree(task)
        assert not jobs._is_in_place(stale, task / "lock")
        task.mkdir()
        with jobs._locked(task, limit) as lock:
            assert jobs._is_in_place(lock, task / "lock")
            assert not jobs._is_in_place(stale, task / "lock")


class Clock:
    """The clocks of a host on which nothing takes any time but sleep."""

    def __init__(self) -> None:
        self.passed = time.monotonic()

    def monotonic(self) -> float:
        return self.passed

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        self.passed += seconds


@pytest.mark.parametrize("command", ["start", "kill", "remove"])
def test_processes_that_cannot_be_ended_are_named_and_nothing_is_done(
    task: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that waits for a dead disk is not made at will: one that shrugs off every signal stands for it."""
    (task / "1").mkdir(parents=True)
    pid = os.getpid()
    me = {"pid": pid, "start_time": job_state.start_time(pid), "boot_id": job_state.boot_id(), "asked": 0}
    (task / "1" / "job.json").write_text(json.dumps(me))
    directory = task.parent if command == "remove" else task
    more = ("--restart", "--stage", "checksum", "--run", "dag/run") if command == "start" else ()
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("sys.stdin", io.StringIO("{}"))
    monkeypatch.setattr(jobs.processes, "of_job", lambda job: [4711, 4712])
    monkeypatch.setattr(os, "kill", lambda pid, signal_number: sent.append((pid, signal_number)))
    monkeypatch.setattr(jobs, "time", Clock())  # a test that is kept waiting would skip one of the two signals
    assert jobs.main([command, "--directory", str(directory), *more]) == 75
    assert "processes 4711, 4712 could not be ended" in json.loads(capsys.readouterr().out)["error"]
    assert {(4711, signal.SIGTERM), (4712, signal.SIGKILL)} <= set(sent)
    assert [path.name for path in task.iterdir() if path.is_dir()] == ["1"]
    shutil.rmtree(task)  # the job is this very process
