"""The lab as a test holds it: plans written, runs started and waited for, the truth asked of vCenter and host."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hyperflow.cli.airflow_api import AirflowApi, Refused, ServerFault
from hyperflow.plans.load import load_plan

from lab import inventory, kvmhost, lab, vcenter

AIRFLOW_LIMIT = 600.0  # seconds until Airflow has read a plan
RUN_LIMIT = 1800.0  # seconds a run may take before a test gives up
SMALL_VMS = 40  # small01 to small40: a test that starts a run takes one for itself
# Held by who changes something in Airflow. Its API writes its event log in the thread that serves all requests: where
# that waits for SQLite's lock, whoever has the lock waits for that thread, until the lock's wait is over (60 s).
WRITING = threading.Lock()
# Seconds for which a person reads a question. An answer that comes before Airflow 3.3.2 has seen the end of the process
# that asked makes it try the task again, and ask again: as with a trigger that fires too soon (triggers/job.py).
READING = 8.0
QUICK = {"pipeline": {"fix": {"enabled": False}}}  # the small guest has no kernel: nothing to fix, nothing to boot


@dataclass(frozen=True)
class RunningLab:
    """The lab with what a test asks of it."""

    folders: lab.Folders
    api: AirflowApi
    vcenter: vcenter.Vcenter
    host: kvmhost.KvmHost

    def write_plan(self, name: str, vms: list[dict[str, Any]], **settings: Any) -> None:
        """Write a plan of the lab's shape with other VMs or settings."""
        document = yaml.safe_load((self.folders.plans / "lab.yaml").read_text())
        document |= {"plan": name, "vms": vms, **settings}
        written_out = json.loads(json.dumps(document))  # what is the same object would be an alias in YAML
        (self.folders.plans / f"{name}.yaml").write_text(yaml.safe_dump(written_out, sort_keys=False))

    def host_folders(self, name: str, connection: str = lab.HOST_CONNECTION) -> dict[str, str]:
        """Make the ``host`` setting of a plan that has folders of its own on one of the two KVM hosts."""
        where = self.folders if connection == lab.HOST_CONNECTION else self.folders.second
        return {
            "connection": connection,
            "staging_directory": str(where.staging / name),
            "output_directory": str(where.images / name),
        }

    def start_second_host(self) -> None:
        """Start the second KVM host, where it does not run yet, and tell Airflow of it."""
        connection = lab.start_second_host(self.folders)
        known = f"/api/v2/connections/{lab.SECOND_HOST_CONNECTION}"
        try:
            self.api.request("PATCH", known, json=connection)
        except Refused:
            self.api.request("POST", "/api/v2/connections", json=connection)

    def quick_plan(self, name: str, vm: str, **settings: Any) -> str:
        """Write a plan that moves one small VM without fix, into folders of its own; its DAG id.

        Started with ``{"skip_boot": True}`` (see :meth:`quick_run`) such a run takes half a minute.

        :param vm: ``small01`` and so on
        """
        host = self.host_folders(name)
        chosen = {"inventory_path": f"{inventory.SMALL_FOLDER}/{vm}"}
        self.write_plan(name, [chosen], **{"host": host, "profile_overrides": QUICK, **settings})
        (dag_id,) = self.dags_of(name)
        return dag_id

    def quick_run(self, name: str, vm: str, **settings: Any) -> tuple[str, str]:
        """Write a quick plan and start it; DAG id and run id."""
        dag_id = self.quick_plan(name, vm, **settings)
        return dag_id, self.start(dag_id, {"skip_boot": True})

    def start(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Start a run once Airflow knows the DAG."""
        self.until(lambda: self.api.has_dag(dag_id))
        with WRITING:
            return self.api.trigger(dag_id, conf or {})

    def snapshots(self) -> list[str]:
        """Name the VMs that have a snapshot, a name for each; but for the small ones, where tests put their own."""
        found = self.vcenter.admin("GET", "/snapshots")
        return [one["vm"] for one in found if not one["vm"].startswith("small")]

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that Airflow does by itself."""
        limit = time.monotonic() + AIRFLOW_LIMIT
        while not condition():
            assert time.monotonic() < limit, "Airflow has not done it"
            time.sleep(1)

    def dags_of(self, plan: str) -> list[str]:
        """DAG ids of a plan in the lab's plans folder."""
        return [vm.dag_id for vm in load_plan(self.folders.plans / f"{plan}.yaml").vms]

    def wait(self, dag_id: str, run_id: str) -> str:
        """Wait for a run's end; its state."""
        limit = time.monotonic() + RUN_LIMIT
        while (state := self.api.run_state(dag_id, run_id)) not in ("success", "failed"):
            assert time.monotonic() < limit, f"{dag_id} {run_id} is still {state}"
            time.sleep(1)
        return state

    def clear(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Clear a task and all that follows it, as a person does in the UI."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [task_id],
            "only_failed": False,
            "include_downstream": True,
        }
        with WRITING:
            try:
                self.api.request("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", json=body)
            except ServerFault:
                if self.api.run_state(dag_id, run_id) not in ("success", "failed"):
                    return  # it was done all the same
                self.api.request("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", json=body)

    def patch(self, path: str, body: dict[str, Any]) -> None:
        """Change something in Airflow."""
        with WRITING:
            self.api.request("PATCH", path, json=body)

    def failure(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
        """Why a task failed, in its own words."""
        told = self.api.xcom(dag_id, run_id, task_id, "failure", map_index)
        assert isinstance(told, dict), f"{task_id} of {dag_id} left no failure"
        return str(told["message"])

    def report(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """The report that a run wrote."""
        place = self.api.xcom(dag_id, run_id, "report", "report")
        document = json.loads(Path(place["path"]).read_text())
        assert isinstance(document, dict)
        return document


@contextmanager
def running_lab(state: Path) -> Iterator[RunningLab]:
    """Bring the lab up in a folder of its own, and end all of it; its files stay, for who looks for a reason."""
    before = os.environ.get("HYPERFLOW_LAB")
    os.environ["HYPERFLOW_LAB"] = str(state)
    _let_through(state)
    try:
        lab.up(print, SMALL_VMS)
        folders = lab.folders()
        source, host = vcenter.running(folders.vcenter), kvmhost.running(folders.host)
        assert source is not None
        assert host is not None
        yield RunningLab(folders, AirflowApi(state / "airflow.json"), source, host)
    finally:
        lab.stop()
        os.environ.pop("HYPERFLOW_LAB")
        if before is not None:
            os.environ["HYPERFLOW_LAB"] = before


def _let_through(state: Path) -> None:
    """Let libvirt's own user, as which guests run, reach their images in a temporary folder, which is root's."""
    state.mkdir(parents=True, exist_ok=True)
    for folder in (state, *state.parents):
        mode = folder.stat().st_mode
        if folder.is_relative_to(tempfile.gettempdir()) and not mode & 0o001:
            folder.chmod(mode & 0o7777 | 0o001)
