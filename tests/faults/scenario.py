"""A quick run that something happens to: what a test does at the vCenter and in Airflow, and what came of it."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperflow.cli.airflow_api import TaskInstance
from hyperflow.vsphere.inventory import find_vm
from hyperflow.vsphere.session import Session, connect
from pyVmomi import vim

from lab import inventory, leftovers
from lab.running import RunningLab

LIMIT = 420.0  # seconds for any step; a busy machine starts four runs in a minute and more
PLACE = 8 << 20  # bytes after which a download is disturbed; the small guest's has some 25 MB


@dataclass
class Scenario:
    """A small VM with a plan of its own.

    :ivar name: the plan's name
    :ivar vm: ``small16`` and so on
    :ivar facts: what a test wants to remember until it asserts
    """

    lab: RunningLab
    name: str
    vm: str
    dag: str = ""
    run: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that happens by itself."""
        limit = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < limit, f"{self.name}: it has not happened: {inspect.getsource(condition)}"
            time.sleep(1)

    def begin(self, **settings: Any) -> None:
        """Start the run."""
        self.dag, self.run = self.lab.quick_run(self.name, self.vm, **settings)

    def disturb(self, kind: str, **more: Any) -> None:
        """Have the next download of this VM disturbed; the lab's faults.go says how."""
        self.lab.vcenter.admin("POST", "/faults", {"kind": kind, "vm": self.vm, "offset": PLACE, **more})

    def stall(self) -> None:
        """Have the next download of this VM stop in its middle, until its lease ends."""
        self.disturb("stall")

    def until_stalled(self) -> None:
        """Wait until a download of this VM has stopped in its middle."""
        self.until(
            lambda: (
                any(lease["percent"] >= 0 for lease in self.leases())
                and any(path.stat().st_size >= PLACE // 2 for path in self.partials())
            )
        )

    def until_left_alone(self) -> None:
        """Wait until nothing works for this VM: no lease at the vCenter, no process on the host."""
        self.until(lambda: not self.leases() and not leftovers.processes_of(self.dag))

    def leases(self) -> list[dict[str, Any]]:
        """The VM's leases that live."""
        return [each for each in self.lab.vcenter.admin("GET", "/leases")["live"] if each["vm"] == self.vm]

    def ended_leases(self) -> list[str]:
        """How each lease of the VM ended, the first one first."""
        return [each["reason"] for each in self.lab.vcenter.admin("GET", "/leases")["ended"] if each["vm"] == self.vm]

    def snapshots(self) -> list[str]:
        """Names of the VM's snapshots."""
        return [each["name"] for each in self.lab.vcenter.admin("GET", "/snapshots") if each["vm"] == self.vm]

    def partials(self) -> list[Path]:
        """What is being downloaded."""
        return list((self.lab.folders.staging / self.name).rglob("*.vmdk.partial"))

    def task(self, task_id: str) -> TaskInstance | None:
        """A task of the run, or of a mapped one the first; None while there is none."""
        found = [each for each in self.lab.api.task_instances(self.dag, self.run) if each.task_id == task_id]
        return next((each for each in found if each.map_index >= 0), found[0] if found else None)

    def until_task(self, task_id: str, *states: str) -> None:
        """Wait until a task is in one of the states."""
        self.until(lambda: (task := self.task(task_id)) is not None and task.state in states)

    def mark(self, task_id: str, state: str) -> None:
        """Set a task's state, as a person does in the UI."""
        task = self.task(task_id)
        assert task is not None
        path = f"/api/v2/dags/{self.dag}/dagRuns/{self.run}/taskInstances/{task_id}"
        path += f"/{task.map_index}" if task.map_index >= 0 else ""
        self.lab.patch(path, {"new_state": state})

    def mark_run(self, state: str) -> None:
        """Set the state of the whole run, as a person does in the UI."""
        self.lab.patch(f"/api/v2/dags/{self.dag}/dagRuns/{self.run}", {"state": state})

    def end(self) -> str:
        """Wait for the run's end; its state."""
        return self.lab.wait(self.dag, self.run)

    def report(self) -> dict[str, Any]:
        """The run's report."""
        return self.lab.report(self.dag, self.run)

    def left(self, *, failed: bool) -> list[str]:
        """What the run has left."""
        return leftovers.of_run(self.lab, self.name, self.vm, failed=failed)

    def staged_sha256(self) -> str:
        """Digest of the staged disk."""
        (disk,) = (self.lab.folders.staging / self.name).rglob("*-disk1.vmdk")
        return hashlib.sha256(disk.read_bytes()).hexdigest()

    def session(self) -> Session:
        """Log in to the vCenter as its administrator."""
        source = self.lab.vcenter
        password = (self.lab.folders.vcenter / "password").read_text()
        return connect(source.host, source.port, user=inventory.USER, password=password, thumbprint=source.thumbprint)

    def at_source(self, work: Callable[[Any], Any]) -> None:
        """Do something to the VM as its administrator does, and wait for its task."""
        with self.session() as session:
            machine = session.object(vim.VirtualMachine, find_vm(session, self.vm, kind="name"))
            task = work(machine)
            self.until(lambda: task.info.state in ("success", "error"))
            assert task.info.state == "success", task.info.error


def play(lab: RunningLab, *plays: tuple[str, str, Callable[[Scenario], None]]) -> dict[str, Scenario]:
    """Play scenarios, all at once.

    :param plays: name of the plan, VM, and what happens
    :return: the scenarios by name, each played to its end
    """
    scenes = {name: Scenario(lab, name, vm) for name, vm, _ in plays}
    with ThreadPoolExecutor(len(plays)) as pool:
        playing = [pool.submit(act, scenes[name]) for name, _, act in plays]
        for each in playing:
            each.result()
    return scenes
