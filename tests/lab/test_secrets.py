"""No secret of the lab stands anywhere that a run writes to: logs, database, records, job folders, command lines.

What may hold one, and nothing else: Airflow's table ``connection``, where it is encrypted; the key file that the
connection names; the memory of the processes that work with it. Options of a stage go through a pipe, never a file.
"""

from __future__ import annotations

import base64
import configparser
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from hyperflow.vsphere.inventory import find_vm
from hyperflow.vsphere.lease import open_lease
from hyperflow.vsphere.session import Session, connect

from lab import inventory, leftovers
from lab.running import RunningLab

pytestmark = [pytest.mark.lab, pytest.mark.night]

GOOD, BAD = "small38", "small39"
HELD = 8  # seconds that a download stands still, so that it can be looked at
PERIOD = 0.2  # seconds between two looks
LARGE = 8 << 20  # bytes: a disk's file of this size holds what the source has, and is not searched
DISK = re.compile(r"\.(vmdk|qcow2|raw|vdi)\b")  # in the name of a disk's file, or of the folder of a decoded one
URL = re.compile(rb"/nfc/([0-9a-f]{16,})/")
COOKIE = re.compile(rb"vmware_soap_session\W+[0-9A-Za-z-]{8,}")


@dataclass
class Watch:
    """Looks again and again at what is there only while a run works."""

    lab: RunningLab
    seen: dict[bytes, str] = field(default_factory=dict)  # text -> where
    tickets: set[bytes] = field(default_factory=set)  # out of the memory of the downloads
    sessions: set[bytes] = field(default_factory=set)  # keys of the runs' sessions, as vCenter tells its administrator
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until it is over."""
        while not self.ended.wait(PERIOD):
            for where, text in (*processes(), *job_files(self.lab), *triggers(self.lab)):
                self.seen.setdefault(text, where)

    def learn_ticket(self, dag_id: str) -> None:
        """Wait for a download of the DAG and read its ticket where it may stand: in its memory."""
        limit = time.monotonic() + 300
        while time.monotonic() < limit:
            for line in leftovers.processes_of(dag_id):
                pid, _, command = line.partition(" ")
                found = URL.findall(memory(int(pid))) if " download " in command else []
                if found:
                    self.tickets |= set(found)
                    return
            time.sleep(0.1)
        raise AssertionError(f"{dag_id}: no download was seen")


@dataclass
class Looked:
    """Two runs that are over, and all that they wrote."""

    lab: RunningLab
    watch: Watch
    states: tuple[str, str]

    def secrets(self) -> dict[str, bytes]:
        """The lab's secrets, by name."""
        folders = self.lab.folders
        key = [line for line in (folders.host / "user_key").read_bytes().splitlines() if b"-----" not in line]
        password = (folders.vcenter / "password").read_bytes()
        settings = configparser.ConfigParser(interpolation=None)
        settings.read(folders.state / "airflow" / "airflow.cfg")
        return {
            "vCenter's password": password,
            "vCenter's password in base64": base64.b64encode(password).rstrip(b"=")[:-1],
            "the SSH key": max(key, key=len),
            "Airflow's key for passwords": settings["core"]["fernet_key"].encode(),
            **{f"ticket {number}": ticket for number, ticket in enumerate(sorted(self.watch.tickets))},
            **{f"session key {number}": key for number, key in enumerate(sorted(self.watch.sessions))},
        }

    def written(self) -> Iterator[tuple[str, bytes]]:
        """Everything that the runs wrote and that lies there now, by place."""
        folders, airflow = self.lab.folders, self.lab.folders.state / "airflow"
        told = [*(airflow / "logs").rglob("*"), *airflow.glob("*.log"), *(airflow / "hyperflow").rglob("*")]
        kept = [*folders.staging.rglob("*"), *folders.images.rglob("*"), *folders.plans.rglob("*")]
        for path in (*told, *kept):
            if path.is_file() and not (DISK.search(str(path)) and path.stat().st_size >= LARGE):
                yield str(path), path.read_bytes()
        yield from database(self.lab)


@pytest.fixture(scope="module")
def looked(running_lab: RunningLab) -> Iterator[Looked]:
    """One run that succeeds and one that fails in its download, both watched."""
    watch = Watch(running_lab)
    looking = threading.Thread(target=watch.run)
    looking.start()
    try:
        with login(running_lab) as own:
            others = session_keys(own)
            hold = {"kind": "stall", "offset": 1 << 20, "seconds": HELD}
            running_lab.vcenter.admin("POST", "/faults", {**hold, "vm": GOOD})
            running_lab.vcenter.admin("POST", "/faults", {"kind": "redirect", "vm": BAD})
            good, bad = running_lab.quick_run("secrets-good", GOOD), running_lab.quick_run("secrets-bad", BAD)
            watch.learn_ticket(good[0])
            watch.sessions = session_keys(own) - others
        states = running_lab.wait(*good), running_lab.wait(*bad)
    finally:
        watch.ended.set()
        looking.join()
    yield Looked(running_lab, watch, states)


def login(lab: RunningLab) -> Session:
    """A session of one's own with the lab's vCenter."""
    source = lab.vcenter
    password = (lab.folders.vcenter / "password").read_text()
    return connect(source.host, source.port, user=inventory.USER, password=password, thumbprint=source.thumbprint)


def session_keys(own: Session) -> set[bytes]:
    """The keys of all sessions that are logged in; each is what its client's cookie holds."""
    return {each.key.encode() for each in own.content.sessionManager.sessionList}


def memory(pid: int) -> bytes:
    """The writable memory of a process, as far as it is small."""
    found = b""
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                start, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
                if " rw-p " in line and end - start <= LARGE:
                    file.seek(start)
                    found += file.read(end - start)
    except OSError:
        return b""  # it has ended
    return found


def processes() -> Iterator[tuple[str, bytes]]:
    """Command line and environment of every process."""
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                yield f"{name} of a process", (folder / name).read_bytes()
            except OSError:
                continue  # it has ended


def job_files(lab: RunningLab) -> Iterator[tuple[str, bytes]]:
    """Every file below the job folders on the host."""
    for root in lab.folders.staging.glob("secrets-*/.hyperflow/jobs"):
        for folder, _, names in os.walk(root):
            for name in names:
                try:
                    yield f"job folder, {name}", Path(folder, name).read_bytes()
                except OSError:
                    continue  # cleanup was there


def triggers(lab: RunningLab) -> Iterator[tuple[str, bytes]]:
    """The arguments of the triggers that wait: Airflow keeps those of tasks as they are, and encrypts others."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(lab.folders.state / "airflow" / "airflow.cfg")
    key = Fernet(settings["core"]["fernet_key"])
    with opened(lab) as base:
        for name, kwargs in base.execute("SELECT classpath, kwargs FROM trigger"):
            yield f"trigger {name}", kwargs.encode() if kwargs.startswith("{") else key.decrypt(kwargs)


def database(lab: RunningLab) -> Iterator[tuple[str, bytes]]:
    """Every value of every table: XComs, rendered templates, connections, the event log."""
    with opened(lab) as base:
        tables = [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in base.execute(f'SELECT * FROM "{table}"'):  # noqa: S608 - the database's own names
                for value in row:
                    if isinstance(value, str | bytes):
                        yield f"table {table}", value.encode() if isinstance(value, str) else value


def opened(lab: RunningLab) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{lab.folders.state / 'airflow' / 'airflow.db'}?mode=ro", uri=True, timeout=60)


def found(secrets: dict[str, bytes], texts: Iterator[tuple[str, bytes]]) -> list[str]:
    """Which secret, or what looks like one, stands where."""
    wrong = []
    for where, text in texts:
        wrong += [f"{name} in {where}" for name, secret in secrets.items() if secret in text]
        wrong += [f"{kind.pattern!r} in {where}" for kind in (URL, COOKIE) if kind.search(text)]
    return wrong


def test_one_run_succeeded_and_one_failed_in_its_download(looked: Looked) -> None:
    assert looked.states == ("success", "failed")
    (error,) = looked.lab.report(*looked_run(looked, "secrets-bad"))["errors"]
    assert error["stage"] == "export"
    assert "redirect" in error["message"]


def looked_run(looked: Looked, plan: str) -> tuple[str, str]:
    (dag_id,) = looked.lab.dags_of(plan)
    runs = looked.lab.api.request("GET", f"/api/v2/dags/{dag_id}/dagRuns")["dag_runs"]
    return dag_id, runs[0]["dag_run_id"]


def test_what_is_looked_for_is_what_the_lab_really_hands_out(looked: Looked) -> None:
    """A lease and a session of one's own look as the search expects, and those of the run were seen."""
    with login(looked.lab) as own:
        cookie = cookie_of(own)
        assert [key for key in session_keys(own) if key in cookie]
        lease = open_lease(own, find_vm(own, f"{inventory.SMALL_FOLDER}/{GOOD}"))
        url = lease.disks[0].url.encode()
        lease.abort("looked at")
    assert COOKIE.search(cookie)
    assert URL.search(url)
    assert looked.watch.tickets
    assert looked.watch.sessions
    assert all(len(secret) >= 16 for secret in looked.secrets().values())


def cookie_of(session: Session) -> bytes:
    return str(session.content.sessionManager._stub.cookie).encode()  # pyVmomi has no other name for it


def test_every_kind_of_place_was_looked_at(looked: Looked) -> None:
    places = {where.split(",")[0].split(" ")[0] for where in looked.watch.seen.values()}
    assert {"cmdline", "environ", "job", "trigger"} <= places
    written = [where for where, _ in looked.written()]
    for part in ("/logs/", "triggerer.log", "report.json", "artifact-manifest.json", "table xcom", "table connection"):
        assert any(part in where for where in written), part
    assert any(where.startswith("table rendered_task_instance_fields") for where in written)
    for plan in ("secrets-good", "secrets-bad"):
        assert any(f".{plan}." in where and where.endswith("/audit.jsonl") for where in written), plan


def test_nothing_that_the_runs_wrote_holds_a_secret(looked: Looked) -> None:
    assert found(looked.secrets(), looked.written()) == []


def test_nothing_that_was_there_while_they_ran_held_a_secret(looked: Looked) -> None:
    texts = ((where, text) for text, where in looked.watch.seen.items())
    assert found(looked.secrets(), texts) == []
