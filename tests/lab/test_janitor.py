"""The janitor on the real lab: leftovers made for real by dead runs, beside those of others and of a run that works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hyperflow.operators.claim import PREFIX
from hyperflow.vsphere.inventory import find_vm, read_vm
from hyperflow.vsphere.session import Session, connect
from hyperflow.vsphere.snapshot import Ownership, create_snapshot, find_snapshots, snapshot_name

from lab import lab, processes
from lab.running import WRITING, RunningLab

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
DEAD_DAG, DEAD_RUN = "migrate.gone.small32", "manual__gone"  # a run that no Airflow has a record of
DEAD = f"{DEAD_DAG}/{DEAD_RUN}"
NAME = snapshot_name(DEAD_RUN)
LIMIT = 600.0  # seconds a test waits for anything before it gives up


@dataclass(frozen=True)
class Told:
    """What the janitor told: the exit status, and action by thing."""

    status: int
    actions: dict[str, str]
    runs: set[str]


@dataclass(frozen=True)
class Leftovers:
    """What there is before the janitor comes."""

    dag_id: str  # of a run that is held in mid-export
    run_id: str
    overlay: Path
    job: Path
    domain: str
    image: Path
    claim: str  # the variable of the dead run's


def janitor(bench: RunningLab, *more: str) -> Told:
    command = [ROOT / "hyperflow", "janitor", "--json", *more, "--airflow", bench.folders.state / "airflow.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    findings = json.loads(done.stdout)["findings"]
    actions = {finding["thing"]: finding["action"] for finding in findings}
    return Told(done.returncode, actions, {finding["run"] for finding in findings})


def program(bench: RunningLab, *arguments: str, stdin: object = None) -> dict[str, Any]:
    """Run the host program as the control plane does."""
    done = subprocess.run(
        ["/usr/bin/python3", "-m", "hyperflow.kvmhost", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "plugins")},
        input=json.dumps(stdin),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout.splitlines()[0])
    assert isinstance(answer, dict)
    return answer


def until(condition: Any) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.2)


@pytest.fixture(scope="module")
def session(running_lab: RunningLab) -> Iterator[Session]:
    vcenter = running_lab.vcenter
    password = (running_lab.folders.vcenter / "password").read_text()
    with connect(
        host=vcenter.host, port=vcenter.port, user=vcenter.user, password=password, thumbprint=vcenter.thumbprint
    ) as opened:
        yield opened


def root(bench: RunningLab) -> Path:
    return bench.folders.staging / ".hyperflow"


def start_job(bench: RunningLab, stage: str, options: dict[str, Any]) -> Path:
    directory = root(bench) / "jobs" / DEAD / stage
    arguments = ("job", "start", "--directory", str(directory), "--stage", stage, "--run", DEAD)
    return Path(program(bench, *arguments, stdin=options)["job"])


def kill_in_mid_work(bench: RunningLab, image: Path) -> tuple[Path, Path]:
    """Start a boot proof and end its supervisor, which takes the stage with it, when its overlay is there."""
    work = bench.folders.staging / "small32/work"
    options = {
        "images": [{"path": str(image), "format": "raw"}],
        "work_directory": str(work),
        "artifacts_directory": str(bench.folders.images / "small32"),
        "hardware": {"firmware": "bios", "cpus": 1, "memory_mb": 256, "nics": []},
        "expect": {"root": {"uuid": "5ba11000-0000-4000-8000-000000000001", "device": "", "fstype": "ext4"}},
    }
    job = start_job(bench, "boot", options)
    until((work / "boot/disk-0.qcow2").exists)
    os.kill(json.loads((job / "job.json").read_text())["pid"], signal.SIGKILL)
    # And what the stage had started, such as QEMU, and may start until it dies a moment after its supervisor.
    processes.end_marked(f"HYPERFLOW_RUN={DEAD}".encode())
    return work / "boot", job.parent


def define_domain(bench: RunningLab, image: Path) -> str:
    uuid = "4210a000-5c1e-4a00-8000-0000000000fe"
    options = {
        "name": "small32",
        "uuid": uuid,
        "images": [{"path": str(image), "format": "raw"}],
        "hardware": {"firmware": "bios", "cpus": 1, "memory_mb": 64, "nics": []},
        "metadata": {"vm": "vc/small32", "run": DEAD},
    }
    job = start_job(bench, "define", options)
    until(lambda: program(bench, "job", "poll", "--job", str(job))["state"] == "DONE")
    assert uuid in domains()
    return uuid


def domains() -> list[str]:
    command = ["virsh", "--quiet", "--connect", "qemu:///system", "list", "--all", "--uuid"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def claims(bench: RunningLab) -> dict[str, str]:
    """The variables of claims, and the DAG that has each."""
    return {key: holder["dag"] for key, holder in bench.api.variables(PREFIX).items()}


def is_held(bench: RunningLab, dag_id: str, run_id: str) -> bool:
    assert bench.api.run_state(dag_id, run_id) not in ("success", "failed"), "the run was to be held in its export"
    return bool(list((bench.folders.staging / "small31").glob(".*.partial")))


@pytest.fixture(scope="module")
def leftovers(running_lab: RunningLab, session: Session) -> Leftovers:
    """Leftovers of a dead run, snapshots of others, and a run that works."""
    folders = running_lab.folders
    running_lab.vcenter.admin("POST", "/faults", {"kind": "stall", "vm": "small31", "offset": 4 << 20})
    host = {"connection": lab.HOST_CONNECTION, "staging_directory": str(folders.staging)}
    host["output_directory"] = str(folders.images)
    dag_id, run_id = running_lab.quick_run("held", "small31", host=host)
    image = folders.images / "small32.raw"
    image.write_bytes(bytes(1 << 20))
    until(lambda: is_held(running_lab, dag_id, run_id))  # then this Airflow has its name, too
    instance = running_lab.api.request("GET", "/api/v2/variables/hyperflow_instance")["value"]
    owner = {"airflow": instance, "dag": DEAD_DAG, "run": DEAD_RUN}
    moref = find_vm(session, "small32")
    facts = {"vcenter": lab.VCENTER_CONNECTION, "vm": moref, "name": NAME}
    entry = {"kind": "snapshot", "thing": f"{lab.VCENTER_CONNECTION}/{moref}/{NAME}", "facts": facts}
    request = {"owner": owner, "entries": [entry]}
    program(running_lab, "ledger", "add", "--directory", str(root(running_lab)), "--run", DEAD, stdin=request)
    ours = Ownership(dag=DEAD_DAG, run=DEAD_RUN, created="2026-11-24T01:00:00Z", airflow=instance)
    elsewhere = Ownership(dag=DEAD_DAG, run=DEAD_RUN, created="2026-11-24T01:00:00Z", airflow="another-airflow")
    create_snapshot(session, moref, name=NAME, description=ours.description())
    create_snapshot(session, find_vm(session, "small33"), name="hyperflow-before-upgrade", description="by Anna")
    create_snapshot(session, find_vm(session, "small34"), name=NAME, description=elsewhere.description())
    create_snapshot(session, find_vm(session, "small35"), name="hyperflow-renamed", description=ours.description())
    claim = f"{PREFIX}{read_vm(session, moref).instance_uuid}"
    held = {"key": claim, "value": json.dumps({"dag": DEAD_DAG, "run": DEAD_RUN})}
    running_lab.api.request("POST", "/api/v2/variables", json=held)
    overlay, job = kill_in_mid_work(running_lab, image)
    return Leftovers(dag_id, run_id, overlay, job, define_domain(running_lab, image), image, claim)


def snapshots(session: Session, vm: str) -> list[str]:
    return [snapshot.name for snapshot in find_snapshots(session, find_vm(session, vm))]


def theirs(session: Session) -> list[list[str]]:
    return [snapshots(session, vm) for vm in ("small33", "small34", "small35")]


def fail_and_delete(bench: RunningLab, left: Leftovers) -> None:
    """As a person does it: the run is marked failed, then deleted as soon as Airflow lets them."""
    path = f"/api/v2/dags/{left.dag_id}/dagRuns/{left.run_id}"
    bench.api.request("PATCH", path, json={"state": "failed"})
    endpoint = json.loads((bench.folders.state / "airflow.json").read_text())
    credentials = {"username": endpoint["user"], "password": endpoint["password"]}
    token = httpx.post(f"{endpoint['url']}/auth/token", json=credentials, timeout=60).json()["access_token"]
    with httpx.Client(base_url=endpoint["url"], headers={"Authorization": f"Bearer {token}"}, timeout=120) as client:
        until(lambda: is_deleted(client, path))


def is_deleted(client: httpx.Client, path: str) -> bool:
    """Ask Airflow to delete a run, which it refuses while the run works; False when it has not."""
    with WRITING:
        try:
            answer = client.delete(path)
        except httpx.TimeoutException:  # it waits for SQLite's lock, and may delete it yet
            return False
    return answer.is_success or answer.status_code == httpx.codes.NOT_FOUND


def test_a_dry_run_names_the_leftovers_of_the_dead_and_removes_nothing(
    running_lab: RunningLab, session: Session, leftovers: Leftovers
) -> None:
    told = janitor(running_lab, "--dry-run")
    assert told.status == 0
    for thing in (str(leftovers.overlay), str(leftovers.job), leftovers.domain, leftovers.claim):
        assert told.actions[thing] == "would remove"
    acts = {thing.partition(":")[0]: action for thing, action in told.actions.items() if ": hyperflow-" in thing}
    assert acts == {"small32": "would remove", "small33": "kept", "small34": "kept", "small35": "kept"}
    assert f"{leftovers.dag_id}/{leftovers.run_id}".replace("+", "_").replace(":", "_") not in told.runs
    assert leftovers.overlay.is_dir()
    assert leftovers.job.is_dir()
    assert leftovers.domain in domains()
    assert claims(running_lab)[leftovers.claim] == DEAD_DAG
    assert leftovers.dag_id in claims(running_lab).values()
    assert snapshots(session, "small32") == [NAME]
    assert len(snapshots(session, "small31")) == 1


def test_the_leftovers_of_dead_runs_are_removed_and_those_of_others_are_not(
    running_lab: RunningLab, session: Session, leftovers: Leftovers
) -> None:
    before = theirs(session)
    fail_and_delete(running_lab, leftovers)
    jobs = root(running_lab) / "jobs"
    assert list((jobs / leftovers.dag_id).glob("*/*")) == [], "a run that is failed cleans up before it can be deleted"

    told = janitor(running_lab)

    assert told.status == 0
    for thing in (str(leftovers.overlay), str(leftovers.job), leftovers.domain, leftovers.claim):
        assert told.actions[thing] == "removed"
    assert not leftovers.overlay.exists()
    assert not (jobs / DEAD).exists()
    assert list((jobs / leftovers.dag_id).glob("*/*")) == []
    assert list((running_lab.folders.staging / "small31").rglob("*.partial")) == []
    assert leftovers.domain not in domains()
    assert not {DEAD_DAG, leftovers.dag_id} & set(claims(running_lab).values())
    assert leftovers.image.exists()
    assert (snapshots(session, "small31"), snapshots(session, "small32")) == ([], [])
    assert theirs(session) == before == [["hyperflow-before-upgrade"], [NAME], ["hyperflow-renamed"]]


def test_a_second_look_finds_only_what_is_others(
    running_lab: RunningLab, session: Session, leftovers: Leftovers
) -> None:
    command = [ROOT / "hyperflow", "janitor", "--airflow", running_lab.folders.state / "airflow.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    told = " ".join(done.stdout.split())
    for word in ("hyperflow-before-upgrade", "somebody else made it", "another-airflow", "renamed"):
        assert word in told
    for word in (str(leftovers.overlay), leftovers.domain, leftovers.dag_id, leftovers.claim):
        assert word not in told
    listed = program(running_lab, "ledger", "list", "--directory", str(root(running_lab)))
    assert [book["run"] for book in listed["runs"] if book["run"].startswith((DEAD_DAG, leftovers.dag_id))] == []
