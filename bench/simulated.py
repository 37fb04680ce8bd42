"""A KVM host and a vCenter that answer at once, for measuring Airflow and Hyperflow's tasks without the work itself.

What is left out is what is on the other end of a wire: the host's program behind SSH, and vCenter behind SOAP. All on
this side is the product's own: operators with their imports, triggers with their polling, connections, claims, XComs,
reports. ``scale.py`` writes an ``airflow_local_settings.py`` that takes :func:`task_policy` from here, a hook of
Airflow's that every process which reads DAGs calls; no file of the product knows of this one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

JOBS = "simulated-jobs"  # below Airflow's home: what the host would know of its jobs
TASK = "_AIRFLOW_PARSING_CONTEXT_TASK_ID"  # set by Airflow in a process that is about to run that task
AT_VCENTER = ("preflight", "snapshot", "remove_snapshot", "cleanup")  # tasks that log in there
CAPACITY = 20 << 30  # bytes of a VM's one disk
DIGEST = "5" * 64
CHANGED_FILES = 20  # in the fix's result, so that XComs have the size they have


def task_policy(task: Any) -> None:
    """Put a task that is about to run before simulated machines; Airflow calls this for each task of a DAG it reads."""
    if os.environ.get(TASK) != task.task_id:
        return
    from hyperflow.operators.base import HostRunOperator

    if issubclass(getattr(task, "operator_class", type(task)), HostRunOperator):
        _simulate_host()
        if task.task_id in AT_VCENTER:
            _simulate_vcenter()


def simulate_for_triggers() -> None:
    """Put the triggers of this process before simulated machines."""
    if "triggerer" not in sys.argv:
        return
    from hyperflow.triggers import export, job

    async def connect(channel: job.HostChannel) -> Connection:
        return Connection()

    _replace(job.HostChannel, _connect=connect)
    _replace(export, open_session=lambda connection, task: Session(), open_lease=Lease)


def _simulate_host() -> None:
    """Answer instead of a host; its hook is made as ever, with the connection that Airflow has."""
    from hyperflow.hooks.kvmhost import KvmHostHook

    @contextmanager
    def connected(hook: KvmHostHook) -> Iterator[None]:
        yield None

    def run(hook: KvmHostHook, client: None, command: list[str], stdin: bytes) -> tuple[int, bytes, bytes]:
        return 0, answer(command, stdin), b""

    _replace(KvmHostHook, connected=connected, _run=run)


def _simulate_vcenter() -> None:
    from hyperflow.hooks.vsphere import VsphereHook
    from hyperflow.vsphere import drift, inventory, mark, power_events, privileges, snapshot

    def session(hook: VsphereHook) -> Session:
        hook.get_connection(hook.vsphere_conn_id)
        return Session()

    def create_snapshot(session: Session, moref: str, *, name: str, **_: Any) -> Any:
        return snapshot.CreatedSnapshot(moref=f"snapshot-{moref}", name=name, quiesced=True)

    def remove_owned_snapshots(session: Session, moref: str, **_: Any) -> Any:
        return [snapshot.RemovedSnapshot(moref=f"snapshot-{moref}", existed=True)]

    _replace(VsphereHook, session=session)
    _replace(inventory, find_vm=lambda session, name, **_: f"vm-{name}", read_vm=lambda session, moref: _facts(moref))
    _replace(privileges, missing_privileges=lambda session, moref, **_: [])
    _replace(power_events, server_time=lambda session: "2026-01-01T00:00:00+00:00")
    _replace(drift, state=lambda session, moref: _state(moref))
    _replace(mark, mark_of=lambda session, moref: None)
    _replace(snapshot, find_snapshots=lambda session, moref, name=None: [])
    _replace(snapshot, create_snapshot=create_snapshot, remove_owned_snapshots=remove_owned_snapshots)


def _replace(where: Any, **replacements: Any) -> None:
    """Set attributes of a class or a module."""
    for name, replacement in replacements.items():
        setattr(where, name, replacement)


class Connection:
    """An SSH connection of a trigger."""

    async def run(self, command: str, *, input: bytes, **_: Any) -> Any:
        """Run a command."""
        return SimpleNamespace(exit_status=0, stdout=answer(shlex.split(command), input), stderr=b"")

    def close(self) -> None:
        """End it."""


class Session:
    """A login that is worth nothing."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.logout()

    def logout(self) -> None:
        """End it."""


class Lease:
    """A lease of all disks of a VM, which stays valid."""

    timeout = 300
    moref = "session[simulated]lease"

    def __init__(self, session: Any, entity: str) -> None:
        self.entity = entity

    def disk(self, disk_key: int) -> Any:
        """Where a disk can be downloaded."""
        from hyperflow.vsphere.lease import LeaseDisk

        return LeaseDisk("/vm/disk", disk_key, "https://simulated/disk-0.vmdk", None, None, None, "device")

    def keep_alive(self, percent: int) -> None:
        """Tell the progress."""

    def complete(self) -> None:
        """Give it back."""

    def abort(self, reason: str) -> None:
        """Give it back."""


def answer(command: list[str], stdin: bytes) -> bytes:
    """Give what a command would print on the host; nothing, unless it is of our own program."""
    words = command[2:]  # after the interpreter and the program
    if words[:1] == ["job"]:
        return _job(words[1], {name.removeprefix("--"): value for name, value in pairwise(words)}, stdin)
    if words[:1] == ["ledger"]:
        return b'{"entries": 1}\n'
    if words[1:2] == ["--result"]:
        return json.dumps(result(words[0], json.loads(stdin))).encode()
    return b""


def _job(verb: str, given: dict[str, str], stdin: bytes) -> bytes:
    if verb == "start":
        job = f"{given['directory']}/1"
        _kept(job).write_text(json.dumps(result(given["stage"], json.loads(stdin))))
        return json.dumps({"job": job, "attached": False}).encode() + b"\n"
    if verb == "poll":
        done = {"state": "DONE", "exit_status": 0, "offset": 0, "more": False}
        return json.dumps({**done, "result": json.loads(_kept(given["job"]).read_text())}).encode() + b"\n"
    if verb == "wait":  # so that tasks defer: real work takes minutes
        return b'{"state": "RUNNING"}\n'
    return b'{"removed": 1, "killed": 0, "collected": true}\n'


def _kept(job: str) -> Path:
    return Path(os.environ["AIRFLOW_HOME"]) / JOBS / f"{hashlib.sha256(job.encode()).hexdigest()}.json"


def result(stage: str, options: dict[str, Any]) -> dict[str, Any]:
    """Make the result of a stage that did what it was asked, in no time."""
    return {
        "stage": stage,
        "succeeded": True,
        "observed": _observed(stage, options),
        "warnings": [],
        "host": "simulated",
        "started": "2026-01-01T00:00:00Z",
        "seconds": 0.0,
        "bytes_read": 0,
        "bytes_written": 0,
        "tools": {"qemu-img": "7.2.0"},
    }


def _observed(stage: str, options: dict[str, Any]) -> dict[str, Any]:
    return OBSERVED[stage](options)


def _disk(options: dict[str, Any]) -> dict[str, Any]:
    return {"disk_id": options["disk_id"], "bytes": 1 << 30, "virtual_bytes": CAPACITY, "sha256": DIGEST}


def _fix(options: dict[str, Any]) -> dict[str, Any]:
    changed = [{"path": f"/etc/file-{number}", "before": DIGEST, "after": DIGEST} for number in range(CHANGED_FILES)]
    overlays = {"disk-0": f"{options['work_directory']}/fix/disk-0.qcow2"}
    return {"manifest_sha256": options["manifest"]["sha256"], "overlays": overlays, "changed_files": changed}


def _convert(options: dict[str, Any]) -> dict[str, Any]:
    path = f"{options['output_directory']}/{options['filename']}"
    return {**_disk(options), "path": path, "format": options["format"], "content_sha256": DIGEST, "sha256": None}


def _boot(options: dict[str, Any]) -> dict[str, Any]:
    folder = options["artifacts_directory"]
    shown = {"console_log": f"{folder}/console.log", "screenshot": f"{folder}/screen.png"}
    return {"proven": True, "accelerator": "kvm", "seconds_to_up": 9.5, "evidence": {"unit": "up"}, **shown}


def _cleanup(options: dict[str, Any]) -> dict[str, Any]:
    return {"removed": [], "processes_ended": 0, "domain_removed": False, "gone": True}


OBSERVED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "check": lambda options: {"acceleration": {"kind": "kvm", "reason": "simulated"}},
    "download": lambda options: {**_disk(options), "path": options["target"], "source": options["source"]},
    "manifest": lambda options: {"path": options["path"], "sha256": DIGEST},
    "checksum": lambda options: {**_disk(options), "matches": True, "expected": DIGEST},
    "inspect": lambda options: _guest(),
    "fix": _fix,
    "convert": _convert,
    "validate": lambda options: {"images": [{**each, "sha256": DIGEST} for each in options["images"]]},
    "boot": _boot,
    "define": lambda options: {"name": options["name"], "uuid": options["uuid"].lower()},
    "report": lambda options: {"path": options["path"], "sha256": DIGEST},
    "cleanup": _cleanup,
}


def _guest() -> dict[str, Any]:
    root = {"uuid": str(uuid.UUID(int=1)), "device": "/dev/sda1", "fstype": "ext4"}
    return {
        "os": {"type": "linux", "distro": "debian", "version": "12"},
        "root": root,
        "mounts": [{"path": "/", "options": "defaults", **root}],
        "network": [{"name": "eth0", "addresses": ["192.0.2.10/24"], "mac": "00:50:56:00:00:01"}],
    }


def _facts(moref: str) -> Any:
    from hyperflow.vsphere.facts import DiskFacts, NicFacts, VmFacts

    number = int(hashlib.sha256(moref.encode()).hexdigest()[:4], 16)
    mac = f"00:50:56:00:{number >> 8:02x}:{number & 255:02x}"
    disk = DiskFacts(
        id="disk-0",
        key=2000,
        label="Hard disk 1",
        bus="scsi",
        bus_number=0,
        unit=0,
        controller="ParaVirtualSCSIController",
        capacity_bytes=CAPACITY,
        datastore="datastore1",
        file="[datastore1] vm/vm.vmdk",
        mode="persistent",
        sharing="none",
        bus_sharing="none",
        backing="flat",
        uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"disk {moref}")),
        thin=True,
        is_rdm=False,
        encrypted=False,
    )
    return VmFacts(
        moref=moref,
        name=moref.removeprefix("vm-"),
        inventory_path=f"/DC0/vm/{moref}",
        datacenter="DC0",
        host="esxi01",
        connection_state="connected",
        instance_uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"instance {moref}")),
        bios_uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"bios {moref}")),
        guest_id="debian12_64Guest",
        guest_full_name="Debian GNU/Linux 12 (64-bit)",
        hardware_version="vmx-19",
        firmware="bios",
        secure_boot=False,
        cpus=2,
        cores_per_socket=1,
        memory_mb=2048,
        power_state="poweredOn",
        template=False,
        change_version="1",
        annotation="",
        tools_running=True,
        tools_version="12389",
        guest_hostname=moref,
        nics=(NicFacts(4000, "Network adapter 1", mac, "VM Network", True, True, "vmxnet3"),),
        disks=(disk,),
    )


def _state(moref: str) -> dict[str, Any]:
    facts = _facts(moref)
    disk = facts.disks[0]
    disks = [{name: getattr(disk, name) for name in ("key", "label", "uuid", "file", "capacity_bytes")}]
    same = {name: getattr(facts, name) for name in ("change_version", "name", "inventory_path", "power_state")}
    return {
        **same,
        "host": {"moref": "host-1", "name": "esxi01"},
        "disks": disks,
        "snapshots": [],
        "current_snapshot": None,
    }
