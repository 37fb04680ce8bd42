"""Waves: VMs move in order, so many at once, when somebody has said yes; a cutover that fails is taken back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hyperflow.cli.airflow_api import AirflowUnavailable
from hyperflow.cli.limits import limits
from hyperflow.cli.wave import find_wave, wave
from hyperflow.hooks.records import STATE
from hyperflow.kvmhost import domains
from hyperflow.plans.load import load_plan
from hyperflow.plans.pools import stream_pool
from hyperflow.vsphere.inventory import find_vm
from hyperflow.vsphere.nics import connections
from hyperflow.vsphere.power import power_state
from hyperflow.vsphere.session import Session, connect

from lab import inventory, lab
from lab.running import QUICK, READING, RunningLab

pytestmark = pytest.mark.lab

LIMIT = 2
UNPROVEN = {"skip_boot": True}  # the small guests have no kernel


def write_wave(
    bench: RunningLab, name: str, vms: list[dict[str, Any]], waves: list[dict[str, Any]], **more: Any
) -> Path:
    """Write a plan with waves, and wait until Airflow has read it; its file."""
    people = {"admin": {"name": "The administrator"}}
    settings = {
        "time_zone": "Europe/Berlin",
        "people": people,
        "waves": waves,
        "profile_overrides": QUICK,
        "host": bench.host_folders(name),
    }
    bench.write_plan(name, vms, **{**settings, **more})
    file = bench.folders.plans / f"{name}.yaml"
    for dag_id in bench.dags_of(name):
        bench.until(lambda dag=dag_id: bench.api.has_dag(dag))  # type: ignore[misc]
    for one in load_plan(file).waves:
        bench.until(lambda dag=one.dag_id: bench.api.has_dag(dag))  # type: ignore[misc]
        bench.api.unpause(one.dag_id)
    return file


def small(number: int) -> dict[str, str]:
    return {"inventory_path": f"{inventory.SMALL_FOLDER}/small{number:02d}"}


def answer(bench: RunningLab, dag_id: str, run_id: str, task_id: str, choice: str) -> dict[str, Any]:
    """Answer a question as a person does in the UI; what was asked."""
    path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/-1/hitlDetails"
    bench.until(lambda: state_of(bench, dag_id, run_id, task_id) == "awaiting_input")
    asked = bench.api.request("GET", path)
    time.sleep(READING)
    bench.until(lambda: has_seen_the_end(bench, dag_id, run_id, task_id))
    bench.api.request("PATCH", path, json={"chosen_options": [choice], "params_input": {}})
    return asked


def has_seen_the_end(bench: RunningLab, dag_id: str, run_id: str, task_id: str) -> bool:
    """Whether the scheduler says that it has seen the end of the process that asked, which can take it longer."""
    log = (bench.folders.state / "airflow" / "scheduler.log").read_text(errors="replace")
    return f"TaskInstance Finished: dag_id={dag_id}, task_id={task_id}, run_id={run_id}, " in log


def state_of(bench: RunningLab, dag_id: str, run_id: str, task_id: str) -> str | None:
    (task,) = (task for task in bench.api.task_instances(dag_id, run_id) if task.task_id == task_id)
    return task.state


def report_of(bench: RunningLab, dag_id: str, run_id: str) -> dict[str, Any]:
    place = bench.api.xcom(dag_id, run_id, "report", "report")
    document = json.loads(Path(place["path"]).read_text())
    assert isinstance(document, dict)
    page = Path(place["path"]).with_suffix(".html").read_text()
    assert all(vm["slug"] in page for vm in document["vms"])
    return document


def state_left(bench: RunningLab, dag_id: str, run_id: str, of: str) -> str | None:
    """What the tag of a DAG says when Airflow has read its plan anew.

    :param dag_id: of the wave whose run has left it
    """
    records = Path(bench.api.xcom(dag_id, run_id, "report", "report")["path"]).parents[2]
    file = records / of / STATE
    return file.read_text() if file.is_file() else None


def at_work(bench: RunningLab, plan: str) -> int:
    """How many VMs' runs work at this moment; asked for at once, as one may end and another begin in between."""
    asked = {"dag_id_pattern": f"migrate.{plan}.%", "state": ["running", "queued"], "limit": 100}
    runs = bench.api.request("GET", "/api/v2/dags/~/dagRuns", params=asked)["dag_runs"]
    return len({run["dag_id"] for run in runs if run["dag_id"].startswith(f"migrate.{plan}.")})


@contextmanager
def sampled(bench: RunningLab, plan: str) -> Iterator[list[int]]:
    """Count the VMs at work, again and again, while the body runs; no sample while Airflow's database is locked."""
    counts: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            with suppress(AirflowUnavailable):
                counts.append(at_work(bench, plan))
            time.sleep(0.5)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield counts
    finally:
        over.set()
        watcher.join()


@contextmanager
def vcenter(bench: RunningLab) -> Iterator[Session]:
    source = bench.vcenter
    password = (bench.folders.vcenter / "password").read_text().strip()
    with connect(source.host, source.port, user=inventory.USER, password=password, thumbprint=source.thumbprint) as own:
        yield own


def test_a_wave_asks_keeps_order_and_limit_and_tells_what_became_of_each(running_lab: RunningLab) -> None:
    bench = running_lab
    vms = [small(5), small(6), {"name": "lost01"}, small(7), small(8)]
    saturday = {
        "name": "one",
        "members": ["*"],
        "after": {"small07": ["small05"], "small08": ["lost01"]},
        "max_in_flight": LIMIT,
        "approval": {"by": ["admin"]},
    }
    file = write_wave(bench, "saturday", vms, [saturday])
    endpoint = bench.folders.state / "airflow.json"
    assert wave("check", file, "one", asked=set(), wait=False, endpoint=endpoint) == 1  # there is no pool yet
    assert limits([file], apply=True, endpoint=endpoint) == 0
    assert limits([file], apply=False, endpoint=endpoint) == 0
    dag_id = find_wave(file, "one")[1].dag_id

    with sampled(bench, "saturday") as counts:
        run_id = bench.start(dag_id, UNPROVEN)
        asked = answer(bench, dag_id, run_id, "approve", "Approve")
        assert bench.wait(dag_id, run_id) == "failed"

    assert "5 VM(s)" in asked["body"]
    assert asked["assigned_users"] == [{"id": "admin", "name": "The administrator"}]
    assert 0 < max(counts) <= LIMIT
    report = report_of(bench, dag_id, run_id)
    outcomes = {vm["slug"]: vm["outcome"] for vm in report["vms"]}
    assert outcomes == {
        "small05": "unproven",
        "small06": "unproven",
        "lost01": "failed",
        "small07": "unproven",
        "small08": "not started",
    }
    told = {vm["slug"]: vm.get("reason", "") for vm in report["vms"]}
    assert "lost01_1.vmdk was not found" in told["lost01"]
    assert told["small08"] == "not started: it comes after lost01, which did not arrive"
    assert report["summary"] | {"bytes": 0, "warnings": 0} == {
        "outcome": "partial",
        "vms": 5,
        "migrated": 0,
        "already_done": 0,
        "unproven": 3,
        "rehearsed": 0,
        "failed": 1,
        "rolled_back": 0,
        "not_started": 1,
        "warnings": 0,
        "bytes": 0,
    }
    assert report["summary"]["bytes"] > 0
    stands = {"small05": "unproven", "lost01": "failed", "small07": "unproven", "small08": None}
    assert {slug: state_left(bench, dag_id, run_id, f"migrate.saturday.{slug}") for slug in stands} == stands
    assert state_left(bench, dag_id, run_id, dag_id) == "partial"
    (decision,) = report["decisions"]
    assert (decision["answer"], decision["by"]) == ("Approve", "admin")
    begun = {vm["slug"]: vm["run_id"] for vm in report["vms"] if "run_id" in vm}
    ended = bench.api.request("GET", f"/api/v2/dags/migrate.saturday.small05/dagRuns/{begun['small05']}")["end_date"]
    started = bench.api.request("GET", f"/api/v2/dags/migrate.saturday.small07/dagRuns/{begun['small07']}")[
        "start_date"
    ]
    assert ended <= started


def test_a_wave_that_is_rejected_starts_nothing_and_says_who_rejected_it(running_lab: RunningLab) -> None:
    bench = running_lab
    one = {"name": "one", "members": ["*"], "approval": {"by": ["admin"]}}
    file = write_wave(bench, "rejected", [small(9)], [one])
    limits([file], apply=True, endpoint=bench.folders.state / "airflow.json")
    run_id = bench.start("wave.rejected.one")
    answer(bench, "wave.rejected.one", run_id, "approve", "Reject")

    assert bench.wait("wave.rejected.one", run_id) == "success"

    report = report_of(bench, "wave.rejected.one", run_id)
    assert (report["summary"]["outcome"], report["reason"]) == ("not started", "rejected by admin")
    assert bench.api.last_run("migrate.rejected.small09") is None


def test_a_closed_window_starts_nothing_and_says_when_it_opens(running_lab: RunningLab) -> None:
    bench = running_lab
    now = time.gmtime(time.time() + 12 * 3600)  # the window opens in twelve hours, for an hour
    window = {"start": f"{now.tm_hour:02d}:00", "end": f"{(now.tm_hour + 1) % 24:02d}:00"}
    file = write_wave(
        bench, "closed", [small(9)], [{"name": "one", "members": ["*"], "window": window}], time_zone="UTC"
    )
    limits([file], apply=True, endpoint=bench.folders.state / "airflow.json")
    run_id = bench.start("wave.closed.one")

    assert bench.wait("wave.closed.one", run_id) == "failed"

    assert "its window is closed" in bench.failure("wave.closed.one", run_id, "check")
    assert report_of(bench, "wave.closed.one", run_id)["summary"]["outcome"] == "not started"
    assert bench.api.last_run("migrate.closed.small09") is None


def test_a_start_by_hand_tells_at_once_which_pools_are_missing(running_lab: RunningLab) -> None:
    bench = running_lab
    name, pools = "unlimited", {"nfc_streams_per_esxi": 3}
    write_wave(bench, name, [small(12)], [{"name": "one", "members": ["*"]}], pools=pools)
    (vm_dag,) = bench.dags_of(name)

    wave_run, vm_run = bench.start(f"wave.{name}.one"), bench.start(vm_dag)

    assert (bench.wait(f"wave.{name}.one", wave_run), bench.wait(vm_dag, vm_run)) == ("failed", "failed")
    missing = bench.failure(f"wave.{name}.one", wave_run, "check")
    assert f"pool hyperflow_wave_{name}_one: found no such pool in Airflow, expected 4 slots" in missing
    stream = f"pool {stream_pool(lab.VCENTER_CONNECTION, None)}: found no such pool in Airflow, expected 3 slots"
    assert stream in missing
    assert stream in bench.failure(vm_dag, vm_run, "preflight")


def test_a_rehearsal_is_every_vms_preflight_and_nothing_else(running_lab: RunningLab) -> None:
    bench = running_lab
    file = write_wave(bench, "rehearsed", [small(10), small(11)], [{"name": "one", "members": ["*"]}])
    endpoint = bench.folders.state / "airflow.json"
    limits([file], apply=True, endpoint=endpoint)

    assert wave("start", file, "one", asked={"dry_run"}, wait=True, endpoint=endpoint) == 0

    run_id = bench.api.last_run("wave.rehearsed.one")
    assert run_id is not None
    assert report_of(bench, "wave.rehearsed.one", run_id)["summary"]["outcome"] == "rehearsed"
    assert list((bench.folders.staging / "rehearsed").glob("small*")) == []  # the host program is there, and no disk


def test_a_target_that_is_not_well_is_taken_back_and_the_source_runs_as_it_did(running_lab: RunningLab) -> None:
    bench = running_lab
    path = f"{inventory.WAVE_FOLDER}/unwell"
    cutover = {
        "strategy": "cold",
        "approval": {"by": ["admin"]},
        "health": {"timeout_seconds": 10, "addresses": ["192.0.2.99"]},
    }
    name = "taken-back"
    write_wave(bench, name, [{"inventory_path": path, "cutover": cutover}], [])
    (dag_id,) = bench.dags_of(name)
    with vcenter(bench) as session:
        moref = find_vm(session, path)
        before = connections(session, moref)
        assert power_state(session, moref) == "poweredOn"

    run_id = bench.start(dag_id, UNPROVEN)
    answer(bench, dag_id, run_id, "approve_shutdown", "Approve")
    bench.until(lambda: state_of(bench, dag_id, run_id, "approve_start") == "awaiting_input")
    with vcenter(bench) as session:
        assert power_state(session, moref) == "poweredOff"
    answer(bench, dag_id, run_id, "approve_start", "Approve")
    assert bench.wait(dag_id, run_id) == "failed"

    assert "no answer from address 192.0.2.99" in bench.failure(dag_id, run_id, "start")
    with vcenter(bench) as session:
        assert power_state(session, moref) == "poweredOn"
        assert connections(session, moref) == before
    summary = bench.api.xcom(dag_id, run_id, "report", "summary")
    assert summary["outcome"] == "rolled back"
    assert [one["by"] for one in summary["decisions"]] == ["admin", "admin"]
    report = bench.report(dag_id, run_id)
    assert report["pipeline"]["stages"]["rollback"]["result"]["power"] == "poweredOn"
    assert report["pipeline"]["stages"]["shutdown"]["result"]["state"] == "poweredOff"
    assert [one.name for one in domains.every_domain("qemu:///system") if one.name.startswith("unwell")] == []
