"""A whole wave: twelve VMs, two KVM hosts, all that goes wrong on such a night, and the scheduler killed in it."""

from __future__ import annotations

import html
import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hyperflow.cli.airflow_api import AirflowUnavailable, ServerFault
from hyperflow.cli.limits import limits
from hyperflow.cli.wave import wave
from hyperflow.kvmhost import domains
from hyperflow.vsphere.inventory import find_vm
from hyperflow.vsphere.session import Session, connect
from pyVmomi import vim

from lab import airflow, inventory, lab, leftovers
from lab.running import QUICK, READING, RunningLab
from tests.faults import watching

pytestmark = [pytest.mark.lab, pytest.mark.night]

PLAN, WAVE = "whole", "night"
DAG = f"wave.{PLAN}.{WAVE}"
IN_FLIGHT, JOBS, GUESTS, STREAMS = 3, 2, 1, 1  # limits: of the wave, of each KVM host, of each ESXi host
LIMIT = 900.0  # seconds the whole wave may take before the test gives up
INTERVAL = 0.3  # seconds between two samples
UNSEEN = 60.0  # seconds for which SQLite may be locked, so that there is no sample
JOB_STAGES, GUEST_STAGES = ("checksum", "convert", "validate"), ("inspect", "fix", "boot")
BACKUP = "nightly-backup"  # the snapshot that somebody else takes while the wave works
SILENT = "192.0.2.99"  # an address that nobody has
COLD = {"strategy": "cold", "approval": {"by": ["admin"]}}

# What is to become of each VM: outcome, words of its reason, answers of the approver.
EXPECTED: dict[str, tuple[str, str, list[str]]] = {
    "orders-db": ("unproven", "", []),
    "orders-app1": ("unproven", "", []),
    "orders-app2": ("unproven", "", []),
    "unbootable": ("failed", "boot: ", []),
    "unbootable-app": ("not started", "it comes after unbootable, which did not arrive", []),
    "files1": ("unproven", "", []),
    "files2": ("unproven", "", []),
    "drifting": ("failed", f"the snapshot '{BACKUP}'", ["Approve"]),
    "rejected": ("failed", "rejected by admin", ["Reject"]),
    "unwell": ("rolled back", f"no answer from address {SILENT}", []),
    "moved": ("unproven", "", ["Approve", "Approve"]),
    "deaf": ("failed", "Nothing was forced", []),
}
ON_SECOND = ("orders-app2", "unbootable", "files2", "rejected", "unwell", "deaf")
STAYED = ("drifting", "rejected", "unwell", "deaf")  # they ran, and must run as they did
ARRIVED = tuple(vm for vm, (outcome, _, _) in EXPECTED.items() if outcome == "unproven")


@dataclass
class Sample:
    """What was at work at one moment.

    :ivar vms: VMs whose runs worked
    :ivar jobs: stages that lived, by host and pool
    :ivar streams: leases that lived, by ESXi host
    :ivar at: seconds, by a clock that runs on
    """

    vms: frozenset[str]
    jobs: Counter[str]
    streams: Counter[str]
    at: float = field(default_factory=time.monotonic)


@dataclass
class Night:
    """The wave's run, and what was seen of it."""

    lab: RunningLab
    esxi: dict[str, str] = field(default_factory=dict)
    run: str = ""
    samples: list[Sample] = field(default_factory=list)
    disturbed: set[str] = field(default_factory=set)

    def sample(self) -> Sample:
        """Look at Airflow, at the hosts' processes, and at the vCenter's leases."""
        jobs: Counter[str] = Counter()
        for name, folders in (("first", self.lab.folders), ("second", self.lab.folders.second)):
            stages = watching.stages_below(folders.staging / PLAN / ".hyperflow/jobs")
            alive = {job.parent: 1 for pid, job in stages.items() if not watching.is_gone(pid)}
            for task in alive:  # a stage is one job however many processes it forks
                stage = task.name.partition(".")[0]
                pool = "jobs" if stage in JOB_STAGES else "guests" if stage in GUEST_STAGES else None
                jobs[f"{pool} on {name}"] += bool(pool)
        leases = self.lab.vcenter.admin("GET", "/leases")["live"]
        streams = Counter(self.esxi[lease["vm"]] for lease in leases if lease["vm"] in self.esxi)
        return Sample(frozenset(self.at_work()), jobs, streams)

    def at_work(self) -> set[str]:
        """The VMs whose runs work."""
        return {vm for vm, runs in self.runs_of_all().items() if any(r["state"] in ("queued", "running") for r in runs)}

    def waiting(self) -> int:
        """How many tasks of the wave have started their VM and wait for its end."""
        tasks = self.lab.api.task_instances(DAG, self.run)
        return sum(task.state == "deferred" for task in tasks)

    def runs_of_all(self) -> dict[str, list[dict[str, Any]]]:
        """The runs of each VM's DAG."""
        asked = {"dag_id_pattern": f"migrate.{PLAN}.%", "limit": 100}
        found: dict[str, list[dict[str, Any]]] = {}
        for run in self.lab.api.request("GET", "/api/v2/dags/~/dagRuns", params=asked)["dag_runs"]:
            if run["dag_id"].startswith(f"migrate.{PLAN}."):
                found.setdefault(run["dag_id"].rpartition(".")[2], []).append(run)
        return found

    def questions(self) -> list[dict[str, Any]]:
        """What people are asked at this moment."""
        asked = {"state": "awaiting_input", "response_received": False, "limit": 100}
        found = self.lab.api.request("GET", "/api/v2/dags/~/dagRuns/~/hitlDetails", params=asked)
        tasks = [each["task_instance"] for each in found["hitl_details"]]
        return [task for task in tasks if task["dag_id"].startswith((f"migrate.{PLAN}.", DAG))]

    def answer(self, question: dict[str, Any], choice: str) -> None:
        """Answer a question as its approver does."""
        path = f"/api/v2/dags/{question['dag_id']}/dagRuns/{question['dag_run_id']}/taskInstances/{question['task_id']}"
        body = {"chosen_options": [choice], "params_input": {}}
        time.sleep(READING)
        self.lab.api.request("PATCH", f"{path}/-1/hitlDetails", json=body)


@contextmanager
def sampled(night: Night) -> Iterator[None]:
    """Take samples while the body runs; a moment at which Airflow's database is locked is no sample."""
    over = threading.Event()
    faults: list[BaseException] = []

    def look() -> None:
        try:
            while not over.wait(INTERVAL):
                with suppress(AirflowUnavailable):
                    night.samples.append(night.sample())
        except BaseException as fault:  # noqa: BLE001 - raised below: nobody sees what ends a thread
            faults.append(fault)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert not faults, faults
    longest = max(b.at - a.at for a, b in itertools.pairwise(night.samples))
    assert longest < UNSEEN, f"nobody looked for {longest:.0f} s"


def write_plan(bench: RunningLab) -> Path:
    """Write the plan of the wave."""
    more: dict[str, dict[str, Any]] = {
        "unbootable": {"boot_proof": {"enabled": True, "timeout_seconds": 30}},
        "drifting": {"cutover": COLD},
        "rejected": {"cutover": COLD},
        "unwell": {"cutover": {"strategy": "cold", "health": {"timeout_seconds": 10, "addresses": [SILENT]}}},
        "moved": {"cutover": COLD, "drift": "start-over"},
        "deaf": {"cutover": {"strategy": "cold", "shutdown_timeout_minutes": 1, "on_shutdown_timeout": "abort"}},
    }
    second = {"host": bench.host_folders(PLAN, lab.SECOND_HOST_CONNECTION)}
    vms = [
        {
            "inventory_path": f"{inventory.WAVE_FOLDER}/{name}",
            **(second if name in ON_SECOND else {}),
            **more.get(name, {}),
        }
        for name in EXPECTED
    ]
    night = {
        "name": WAVE,
        "members": ["*"],
        "groups": {"databases": ["orders-db"], "application": ["orders-app*"]},
        "after": {"application": ["databases"], "unbootable-app": ["unbootable"]},
        "apart": [["orders-app1", "orders-app2"]],
        "max_in_flight": IN_FLIGHT,
        "approval": {"by": ["admin"]},
    }
    bench.write_plan(
        PLAN,
        vms,
        host=bench.host_folders(PLAN),
        people={"admin": {"name": "The administrator"}},
        pools={"nfc_streams_per_esxi": STREAMS, "jobs_per_host": JOBS, "guests_per_host": GUESTS},
        boot_proof={"enabled": False},  # the small guest has no kernel
        profile_overrides=QUICK,
        waves=[night],
    )
    return bench.folders.plans / f"{PLAN}.yaml"


@contextmanager
def vcenter(bench: RunningLab) -> Iterator[Session]:
    source = bench.vcenter
    password = (bench.folders.vcenter / "password").read_text().strip()
    with connect(source.host, source.port, user=inventory.USER, password=password, thumbprint=source.thumbprint) as own:
        yield own


def machines(bench: RunningLab) -> dict[str, dict[str, Any]]:
    """Power and adapters of the wave's VMs, as the vCenter itself knows them."""
    found = {one["name"]: one for one in bench.vcenter.admin("GET", "/machines")}
    return {name: {key: found[name][key] for key in ("power_state", "nics")} for name in EXPECTED}


def take_backup_snapshot(bench: RunningLab, name: str) -> None:
    """Take a snapshot of a VM as a backup program does."""
    with vcenter(bench) as session:
        machine = session.object(vim.VirtualMachine, find_vm(session, name, kind="name"))
        task = machine.CreateSnapshot_Task(BACKUP, "of a backup", memory=False, quiesce=False)  # type: ignore[attr-defined]
        bench.until(lambda: task.info.state == "success")


def write_note(bench: RunningLab, name: str) -> None:
    """Change a VM's configuration, as a person does who writes a note at it."""
    with vcenter(bench) as session:
        machine = session.object(vim.VirtualMachine, find_vm(session, name, kind="name"))
        task = machine.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="moves tonight"))  # type: ignore[attr-defined,call-arg]
        bench.until(lambda: task.info.state == "success")


def disturb(night: Night, vm: str) -> None:
    """Change a VM that is asked about, once, so that it is not what its preflight saw."""
    change = {"drifting": take_backup_snapshot, "moved": write_note}.get(vm)
    if change is not None and vm not in night.disturbed:
        change(night.lab, vm)
        night.disturbed.add(vm)


def play(night: Night) -> None:
    """Answer what is asked, have a VM drift, and kill the scheduler while VMs are in flight."""
    killed = False
    limit = time.monotonic() + LIMIT
    while night.lab.api.run_state(DAG, night.run) not in ("success", "failed"):
        assert time.monotonic() < limit, f"the wave is not over; at work: {night.at_work()}"
        for question in night.questions():
            disturb(night, vm := question["dag_id"].rpartition(".")[2])
            with suppress(ServerFault):  # SQLite was locked: it is asked for again
                night.answer(question, "Reject" if vm == "rejected" else "Approve")
        runs = night.runs_of_all()
        over = sum(run["state"] in ("success", "failed") for each in runs.values() for run in each)
        if not killed and over >= 2 and night.waiting() == IN_FLIGHT:
            airflow.kill(night.lab.folders.state, "scheduler", whole=True)
            killed = True
            airflow.revive(night.lab.folders.state, night.lab.folders.plans, "scheduler")
        time.sleep(1)
    assert killed


def test_a_whole_wave_of_good_and_bad_vms_is_told_right_and_leaves_nothing(running_lab: RunningLab) -> None:
    bench = running_lab
    bench.start_second_host()
    file = write_plan(bench)
    endpoint = bench.folders.state / "airflow.json"
    bench.until(lambda: bench.api.has_dag(DAG))
    assert wave("survey", file, None, asked=set(), wait=False, endpoint=endpoint) == 0
    assert limits([file], apply=True, endpoint=endpoint) == 0
    survey = json.loads((bench.folders.plans / ".survey" / f"{PLAN}.json").read_text())
    night = Night(bench, {name: vm["host"] for name, vm in survey["vms"].items()})
    before = machines(bench)

    begun = time.monotonic()
    assert wave("start", file, WAVE, asked=set(), wait=False, endpoint=endpoint) == 0
    night.run = str(bench.api.last_run(DAG))
    with sampled(night):
        play(night)
    print(f"the wave took {time.monotonic() - begun:.0f} s, {len(night.samples)} samples")

    limits_held(night)
    order_held(night)
    report_is_right(night)
    sources_are_as_they_must_be(night, before)
    nothing_is_left(night)


def limits_held(night: Night) -> None:
    """No sample shows more at work than a limit lets, and each limit was reached."""
    assert max(len(sample.vms) for sample in night.samples) == IN_FLIGHT
    for limit, pool in ((JOBS, "jobs"), (GUESTS, "guests")):
        for host in ("first", "second"):
            assert 1 <= max(sample.jobs[f"{pool} on {host}"] for sample in night.samples) <= limit
    for esxi in set(night.esxi.values()):
        assert max(sample.streams[esxi] for sample in night.samples) == STREAMS


def order_held(night: Night) -> None:
    """Each VM ran once, after those it needs, and never beside the one it is to be apart from.

    But for one that was not to be started, and one that started over because it had drifted.
    """
    runs = night.runs_of_all()
    assert {vm: len(runs.get(vm, ())) for vm in EXPECTED} == {
        **dict.fromkeys(EXPECTED, 1),
        "unbootable-app": 0,
        "moved": 2,
    }
    spans = {
        vm: sorted((datetime.fromisoformat(run["start_date"]), datetime.fromisoformat(run["end_date"])) for run in each)
        for vm, each in runs.items()
    }
    assert spans["orders-db"][0][1] <= min(spans["orders-app1"][0][0], spans["orders-app2"][0][0])
    assert spans["orders-app1"][0][1] <= spans["orders-app2"][0][0]
    starts = [(start, 1) for each in spans.values() for start, _ in each]
    ends = [(end, -1) for each in spans.values() for _, end in each]
    at_once = most = 0
    for _, step in sorted(starts + ends):
        at_once += step
        most = max(most, at_once)
    assert most == IN_FLIGHT


def report_is_right(night: Night) -> None:
    """The report tells of each VM what became of it, and who decided what; its page tells the same."""
    place = night.lab.api.xcom(DAG, night.run, "report", "report")
    report = json.loads(Path(place["path"]).read_text())
    vms = {vm["slug"]: vm for vm in report["vms"]}
    assert {slug: vm["outcome"] for slug, vm in vms.items()} == {vm: told[0] for vm, told in EXPECTED.items()}
    for slug, (outcome, words, answers) in EXPECTED.items():
        vm = vms[slug]
        assert words in vm.get("reason", ""), slug
        decisions = vm.get("decisions", [])
        assert [(one["answer"], one["by"]) for one in decisions] == [(answer, "admin") for answer in answers], slug
        assert all(datetime.fromisoformat(one["at"]) for one in decisions)
        assert vm.get("drifted", False) == (slug == "drifting")
        if outcome != "not started":
            assert vm["host"] == (lab.SECOND_HOST_CONNECTION if slug in ON_SECOND else lab.HOST_CONNECTION)
        if outcome == "unproven":
            assert vm["bytes"] > 0
            assert vm["bytes_per_second"] > 0
            assert vm["domain"] == slug
            assert vm["seconds"] > 0
            assert vm["stages"]["export"]["success"]
            assert "skipped" in vm["stages"]["boot"]
    assert vms["unbootable"]["boot_proof"]["proven"] is False
    kept = Path(place["path"]).parents[2] / vms["unbootable"]["dag_id"]
    assert {path.name for path in kept.glob("*/*")} >= {"console.log", "screenshot.png", "report.json", "audit.jsonl"}
    counts = Counter(outcome for outcome, _, _ in EXPECTED.values())
    summary = report["summary"]
    assert summary["outcome"] == "partial"
    assert {name: summary[name] for name in ("vms", "unproven", "failed", "rolled_back", "not_started")} == {
        "vms": 12,
        "unproven": counts["unproven"],
        "failed": counts["failed"],
        "rolled_back": 1,
        "not_started": 1,
    }
    assert summary["bytes"] == sum(vms[slug]["bytes"] for slug in ARRIVED)
    (decision,) = report["decisions"]
    assert (decision["answer"], decision["by"]) == ("Approve", "admin")
    page_is_right(Path(place["path"]).with_suffix(".html").read_text(), vms)


def page_is_right(page: str, vms: dict[str, dict[str, Any]]) -> None:
    """Each VM's row tells its outcome and reason; a drifted and a rejected one are marked; all decisions are listed."""
    table, _, decided = page.partition("Who decided what")
    for slug, (outcome, words, answers) in EXPECTED.items():
        row = html.unescape(table.partition(f"<code>{vms[slug]['dag_id']}</code>")[2].partition("<code>migrate.")[0])
        marks = re.findall(r'class="mark [a-z]+">([^<]+)<', row)
        assert marks == [outcome] + ["drifted"] * (slug == "drifting") + ["rejected"] * (slug == "rejected"), slug
        assert words in row
        assert decided.count(f"<td>{slug}</td>") == len(answers), slug


def sources_are_as_they_must_be(night: Night, before: dict[str, dict[str, Any]]) -> None:
    """All are as they were, but for the one that moved for good: it is off, and off the network."""
    now = machines(night.lab)
    moved = now.pop("moved")
    before = {name: state for name, state in before.items() if name != "moved"}
    assert now == before
    assert all(now[vm]["power_state"] == "poweredOn" for vm in STAYED)
    assert moved["power_state"] == "poweredOff"
    assert not any(nic["connected"] or nic["start_connected"] for nic in moved["nics"])


def nothing_is_left(night: Night) -> None:
    """Nothing but what is meant to stay is at the vCenter, on the hosts and in libvirt."""
    bench = night.lab
    held = [(one["vm"], one["name"]) for one in bench.vcenter.admin("GET", "/snapshots") if one["vm"] in EXPECTED]
    assert held == [("drifting", BACKUP)], "somebody else's snapshot stays"
    with vcenter(bench) as session:
        machine = session.object(vim.VirtualMachine, find_vm(session, "drifting", kind="name"))
        task = machine.RemoveAllSnapshots_Task()  # type: ignore[attr-defined]
        bench.until(lambda: task.info.state == "success")
    left = {
        vm: leftovers.of_run(bench, PLAN, vm, failed=vm not in ARRIVED, second_host=vm in ON_SECOND) for vm in EXPECTED
    }
    assert {vm: things for vm, things in left.items() if things} == {}
    there = {one.name for one in domains.every_domain("qemu:///system")} & EXPECTED.keys()
    assert there == set(ARRIVED)
    running = {one for one in ARRIVED if domains.virsh("qemu:///system", "domstate", one).strip() == "running"}
    assert running == {"moved"}
    claims = bench.api.variables("hyperflow_vm_")
    assert not [claim for claim in claims.values() if str(claim.get("dag", "")).startswith(f"migrate.{PLAN}.")]
