"""The ledger: written before anything is created, whole after every crash, and never believed blindly."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperflow.hooks.kvmhost_program import pack
from hyperflow.kvmhost import ledger
from hyperflow.kvmhost.ledger import Entry, Ledger, LedgerError
from hyperflow.kvmhost.stage import Job, TryAgain

ROOT = Path(__file__).resolve().parents[2]
RUN = "migrate.lab.web01/manual__2026-11-24T01_00_00_00_00"
OWNER = {"airflow": "a-1", "dag": "migrate.lab.web01", "run": "manual__2026-11-24T01:00:00+00:00"}
OVERLAY = Entry("overlay", "/srv/staging/web01/work/boot")


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / ".hyperflow")


def path_of(tmp_path: Path, run: str = RUN) -> Path:
    return tmp_path / ".hyperflow/ledger" / run


def command(folder: Path, *arguments: str, stdin: object = None) -> tuple[int, dict[str, Any]]:
    """Run ``ledger ...`` as the control plane does."""
    program = ["/usr/bin/python3", "-m", "hyperflow.kvmhost", "ledger"]
    done = subprocess.run(
        [*program, *arguments, "--directory", str(folder / ".hyperflow")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "plugins")},
        input=stdin if isinstance(stdin, str) else json.dumps(stdin),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def test_what_is_added_is_open_until_it_is_struck_off_and_again_when_it_is_added_again(book: Ledger) -> None:
    book.add(RUN, [OVERLAY, Entry("job", "/jobs/x")], OWNER)
    book.done(RUN, [OVERLAY], "removed")
    assert book.read(RUN).open == [Entry("job", "/jobs/x")]
    book.add(RUN, [OVERLAY])
    assert OVERLAY in book.read(RUN).open
    assert book.read(RUN).owners == [OWNER]


def test_the_command_of_the_page_lists_what_is_open_where_an_update_has_left_a_second_program(
    tmp_path: Path, book: Ledger
) -> None:
    book.add(RUN, [OVERLAY], OWNER)
    programs = tmp_path / ".hyperflow" / "bin"
    programs.mkdir()
    for number, content in enumerate((b"an older one", pack().content)):
        program = programs / f"hyperflow-kvmhost-{number}.pyz"
        program.write_bytes(content)
        os.utime(program, (number, number))
    (line,) = re.findall(r"^    (python3 .* ledger list .*)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    done = subprocess.run(line.replace("STAGING", str(tmp_path)), shell=True, capture_output=True, check=True)  # noqa: S602
    assert [each["run"] for each in json.loads(done.stdout)["runs"]] == [RUN]


def test_a_ledger_that_is_only_signed_has_an_owner_for_what_stages_add(tmp_path: Path, book: Ledger) -> None:
    owner = {"airflow": "a-1", "dag": "dag", "run": "run"}
    request = json.dumps({"owner": owner, "entries": []})
    assert command(tmp_path, "add", "--run", RUN, stdin=request) == (0, {"noted": 0})
    assert (book.read(RUN).owners, book.read(RUN).open, book.read(RUN).damaged) == ([owner], [], 0)
    assert command(tmp_path, "list")[1] == {"runs": []}
    book.add(RUN, [Entry("overlay", "/a/b")])
    (listed,) = command(tmp_path, "list")[1]["runs"]
    assert listed["owners"] == [owner]
    assert listed["bytes"] == path_of(tmp_path).stat().st_size


def test_a_run_of_the_same_name_of_another_airflow_is_refused_while_it_has_something_open(
    tmp_path: Path, book: Ledger
) -> None:
    book.add(RUN, [OVERLAY], OWNER)
    before = path_of(tmp_path).read_bytes()
    status, answer = command(tmp_path, "add", "--run", RUN, stdin={"owner": {**OWNER, "airflow": "b"}, "entries": []})
    assert status == 1
    assert "one of another Airflow (a-1)" in answer["error"]
    assert "overlay /srv/staging/web01/work/boot" in answer["error"]
    assert path_of(tmp_path).read_bytes() == before
    book.done(RUN, [OVERLAY], "removed")
    book.add(RUN, [], {**OWNER, "airflow": "b"})  # it has ended, and its name is free
    book.add(RUN, [OVERLAY], {**OWNER, "airflow": "b"})
    book.add(RUN, [Entry("job", "/jobs/x")], {**OWNER, "airflow": "b"})
    with pytest.raises(LedgerError, match=r"one of another Airflow \(b\)"):
        book.add(RUN, [], OWNER)


def test_a_run_whose_id_is_written_alike_is_refused_while_the_first_has_something_open(book: Ledger) -> None:
    book.add(RUN, [OVERLAY], OWNER)
    alike = {**OWNER, "run": OWNER["run"].replace("_", ":")}
    assert alike != OWNER
    with pytest.raises(LedgerError, match=f"is called {RUN} on this host, as is run manual__2026"):
        book.add(RUN, [], alike)
    book.done(RUN, [OVERLAY], "removed")
    book.add(RUN, [], alike)


def test_who_holds_the_lock_for_too_long_is_no_reason_to_wait_for_ever(
    tmp_path: Path, book: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "LOCK_LIMIT", 0.2)
    with book.locked(), pytest.raises(LedgerError, match=r"ledger/\.lock: another process has held it"):
        Ledger(tmp_path / ".hyperflow").add(RUN, [OVERLAY], OWNER)
    assert not path_of(tmp_path).exists()


HOLDER = """
import fcntl, os, signal, sys
with open(sys.argv[1], "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("has it", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_stage_waits_longer_for_who_removes_much_and_then_tries_again(
    tmp_path: Path, book: Ledger, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    job = tmp_path / ".hyperflow/jobs" / RUN / "convert/1"
    book.add(RUN, [Entry("job", str(job.parent))], OWNER)
    monkeypatch.setenv("HYPERFLOW_JOB", str(job))
    monkeypatch.setenv("HYPERFLOW_RUN", RUN)
    monkeypatch.setattr(ledger, "LOCK_LIMIT", 0.1)
    monkeypatch.setattr(ledger, "STAGE_LOCK_LIMIT", 30.0 if goes_on else 1.0)
    lock = tmp_path / ".hyperflow/ledger/.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "has it\n"
            if goes_on:
                threading.Timer(1.0, holder.send_signal, [signal.SIGCONT]).start()
                Job("convert").creating("overlay", Path(OVERLAY.thing))
            else:
                with pytest.raises(TryAgain, match="another process has held it for 1 s"):
                    Job("convert").creating("overlay", Path(OVERLAY.thing))
        finally:
            holder.kill()
    assert (OVERLAY in book.read(RUN).open) is goes_on


def test_it_is_kept_and_asked_for_from_the_command_line(tmp_path: Path) -> None:
    entry = {"kind": "snapshot", "thing": "vc/vm-1/hyperflow-x", "facts": {"vm": "vm-1"}}
    assert command(tmp_path, "list") == (0, {"runs": []})
    assert command(tmp_path, "add", "--run", RUN, stdin={"owner": OWNER, "entries": [entry]}) == (0, {"noted": 1})
    listed = {"run": RUN, "owners": [OWNER], "open": [entry], "damaged": 0, "bytes": path_of(tmp_path).stat().st_size}
    assert command(tmp_path, "list") == (0, {"runs": [listed]})
    assert command(tmp_path, "done", "--run", RUN, stdin={"why": "removed", "entries": [entry]})[0] == 0
    assert command(tmp_path, "list") == (0, {"runs": []})
    assert path_of(tmp_path).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "request_text",
    [
        "",
        "[]",
        "{}",
        '{"owner": {"airflow": "a", "dag": "d"}, "entries": []}',
        '{"owner": {"airflow": "a", "dag": "d", "run": 1}, "entries": []}',
        json.dumps({"owner": OWNER, "entries": [{"kind": "no kind", "thing": "x"}]}),
        json.dumps({"owner": OWNER, "entries": [{"kind": "job", "thing": ""}]}),
        json.dumps({"owner": OWNER, "entries": [{"kind": "job", "thing": "x", "facts": {"a": 1}}]}),
        "[" * 100_000,
    ],
)
def test_a_request_that_is_none_is_refused_and_nothing_is_written(tmp_path: Path, request_text: str) -> None:
    status, answer = command(tmp_path, "add", "--run", RUN, stdin=request_text)
    assert status == 1
    assert "expected owner and entries" in answer["error"]
    assert not path_of(tmp_path).exists()


@pytest.mark.parametrize("run", ["../../etc/cron.d", "dag", "dag/run/more", "/etc/x", "dag/..", ".lock/x", "a/b\n"])
def test_a_runs_name_cannot_leave_the_folder(tmp_path: Path, book: Ledger, run: str) -> None:
    with pytest.raises(LedgerError, match="expected DAG/RUN"):
        book.add(run, [OVERLAY])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_names_may_be_as_long_as_airflow_lets_them_be(book: Ledger) -> None:
    run = f"{'d' * 250}/{'r' * 250}"
    book.add(run, [OVERLAY], OWNER)
    assert book.runs() == [run]


def test_a_name_of_any_characters_stays_one_line_and_comes_back_as_it_was(tmp_path: Path, book: Ledger) -> None:
    hostile = Entry("domain", 'x\n{"event": "done", "kind": "overlay"}\0\u2028\u202e"\\', {"vm": "é\r\n"})
    book.add(RUN, [OVERLAY, hostile], OWNER)
    assert len(path_of(tmp_path).read_bytes().splitlines()) == 2
    assert book.read(RUN).open == [OVERLAY, hostile]


def test_the_torn_last_line_of_a_crash_is_passed_over_and_the_next_one_is_whole(tmp_path: Path, book: Ledger) -> None:
    book.add(RUN, [OVERLAY], OWNER)
    whole = path_of(tmp_path).read_bytes()
    for length in range(1, len(whole) - 1):
        path_of(tmp_path).write_bytes(whole + whole[:length])
        assert (book.read(RUN).open, book.read(RUN).damaged) == ([OVERLAY], 1)
        book.add(RUN, [Entry("job", "/jobs/x")])
        assert book.read(RUN).open == [OVERLAY, Entry("job", "/jobs/x")]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b"[]",
        b'"text"',
        b'{"event": "burn", "kind": "job", "thing": "/"}',
        b'{"event": "add", "kind": 7, "thing": "/"}',
        b'{"event": "add", "kind": "job"}',
        b"[" * 60_000,
        b'{"event": "add", "kind": "job", "thing": "' + b"x" * ledger.LINE_LIMIT + b'"}',
    ],
    ids=range(8),
)
def test_lines_that_are_none_of_ours_are_counted_and_name_nothing(tmp_path: Path, book: Ledger, line: bytes) -> None:
    book.add(RUN, [OVERLAY], OWNER)
    with path_of(tmp_path).open("ab") as file:
        file.write(line + b"\n")
    read = book.read(RUN)
    assert (read.open, read.damaged) == ([OVERLAY], 1)


def test_a_huge_file_is_neither_read_nor_written_to_and_the_others_are(tmp_path: Path, book: Ledger) -> None:
    book.add(RUN, [OVERLAY], OWNER)
    with path_of(tmp_path).open("r+b") as file:
        file.truncate(2**40)  # sparse: reading it whole would never end
    book.add("other/run", [OVERLAY], OWNER)
    with pytest.raises(LedgerError, match=r"found \d+ bytes, expected at most"):
        book.add(RUN, [OVERLAY])
    status, answer = command(tmp_path, "list")
    assert status == 0
    assert [("fault" in each, each["run"]) for each in answer["runs"]] == [(True, RUN), (False, "other/run")]


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, book: Ledger, kind: str) -> None:
    path = path_of(tmp_path)
    path.parent.mkdir(parents=True)
    target = tmp_path / "target"
    target.write_text("another's")
    {"link": lambda: path.symlink_to(target), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    for act in (lambda: book.add(RUN, [OVERLAY]), lambda: book.read(RUN)):
        with pytest.raises(LedgerError):
            act()
    assert target.read_text() == "another's"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_leaves_the_ledger_as_it_was(small_disk: Path) -> None:
    book = Ledger(small_disk / ".hyperflow")
    book.add(RUN, [OVERLAY], OWNER)
    before = path_of(small_disk).read_bytes()
    with (small_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    with pytest.raises(LedgerError, match="so it is not created"):
        book.add(RUN, [Entry("job", "x" * 8192)])
    assert path_of(small_disk).read_bytes() == before


def test_many_processes_add_at_once_and_no_line_is_lost_or_torn(tmp_path: Path, book: Ledger) -> None:
    script = (
        "import sys; from pathlib import Path; from hyperflow.kvmhost import ledger\n"
        "from hyperflow.kvmhost.ledger import Entry, Ledger\n"
        "ledger.LOCK_LIMIT = 600.0\n"  # 200 lines are brought to the disk one by one, which may be a busy one
        "book = Ledger(Path(sys.argv[1]))\n"
        "for index in range(25):\n"
        f"    book.add({RUN!r}, [Entry('job', f'{{sys.argv[2]}}-{{index}}', {{'pad': 'x' * 6000}})])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "plugins")}
    arguments = [sys.executable, "-c", script, str(tmp_path / ".hyperflow")]
    writers = [subprocess.Popen([*arguments, str(number)], env=environment) for number in range(8)]
    assert [writer.wait() for writer in writers] == [0] * 8
    read = book.read(RUN)
    assert read.damaged == 0
    assert {entry.thing for entry in read.open} == {f"{one}-{index}" for one in range(8) for index in range(25)}


def test_a_stage_that_is_killed_between_note_and_creation_has_left_a_line_and_no_thing(
    tmp_path: Path, book: Ledger
) -> None:
    """A real job, killed by itself at the very moment: the note is there, what it names is not."""
    job = tmp_path / ".hyperflow/jobs" / RUN / "boot/1"
    thing = tmp_path / "web01/work/boot"
    script = (
        "import os, signal; from hyperflow.kvmhost.stage import Job\n"
        f"Job('boot').creating('overlay', {str(thing)!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
        f"os.makedirs({str(thing)!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "plugins")}
    marks = {"HYPERFLOW_JOB": str(job), "HYPERFLOW_RUN": RUN}
    killed = subprocess.run(["/usr/bin/python3", "-c", script], env=environment | marks, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert book.read(RUN).open == [Entry("overlay", str(thing))]
    assert not thing.exists()


def test_a_job_is_noted_before_its_folder_is_there_and_struck_off_when_it_is_removed(
    tmp_path: Path, book: Ledger
) -> None:
    directory = tmp_path / ".hyperflow/jobs" / RUN / "check"

    def job(*arguments: str) -> None:
        subprocess.run(
            ["/usr/bin/python3", "-m", "hyperflow.kvmhost", "job", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT / "plugins")},
            input=b"{}",
            stdout=subprocess.DEVNULL,
            check=True,
        )

    job("start", "--directory", str(directory), "--stage", "checksum", "--run", RUN)
    assert book.read(RUN).open == [Entry("job", str(directory))]
    before = book.read(RUN).bytes
    job("start", "--directory", str(directory), "--stage", "checksum", "--run", RUN)
    assert book.read(RUN).bytes > before, "the janitor sees by it that the run works again"
    assert book.read(RUN).open == [Entry("job", str(directory))]
    job("remove", "--directory", str(directory.parent))
    assert book.read(RUN).open == []
    assert not directory.parent.exists()


def test_a_job_that_cannot_be_noted_is_not_started(tmp_path: Path) -> None:
    (tmp_path / ".hyperflow").mkdir()
    (tmp_path / ".hyperflow/ledger").write_text("in the way")
    directory = tmp_path / ".hyperflow/jobs" / RUN / "check"
    arguments = ["job", "start", "--directory", str(directory), "--stage", "checksum", "--run", RUN]
    done = subprocess.run(
        ["/usr/bin/python3", "-m", "hyperflow.kvmhost", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "plugins")},
        input="{}",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 75
    assert "so it is not created" in json.loads(done.stdout)["error"]
    assert not directory.exists()
