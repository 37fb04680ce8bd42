"""The lab as a whole: a vCenter with a real guest, a KVM host, and an Airflow that knows both."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hyperflow.cli.airflow_api import AirflowUnavailable, Refused
from rich.console import Console

from lab import airflow, guest, inventory, kvmhost, processes, vcenter
from lab.guest import build, machine

ROOT = Path(__file__).resolve().parent.parent
VCENTER_CONNECTION = "lab_vcenter"
HOST_CONNECTION = "lab_kvm"
SECOND_HOST_CONNECTION = "lab_kvm2"
PLAN = "lab"
VM = "web01"

EXIT_FAILED = 1
# What the parts raise when a program, a package or a port that they need is not to be had, or Airflow does not answer.
FAULTS = (
    *(build.BuildError, machine.ConsoleError, vcenter.LabError, RuntimeError, subprocess.CalledProcessError),
    *(AirflowUnavailable, Refused),
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Folders:
    """Where the lab keeps what.

    :param state: all of it; HYPERFLOW_LAB, else ``.lab`` in the project
    """

    state: Path

    @property
    def vcenter(self) -> Path:
        """The vCenter's certificate, datastore and record."""
        return self.state / "vcenter"

    @property
    def host(self) -> Path:
        """The KVM host's keys, configuration and records."""
        return self.state / "kvmhost"

    @property
    def staging(self) -> Path:
        """Staging directory on the KVM host."""
        return self.state / "staging"

    @property
    def images(self) -> Path:
        """Output directory on the KVM host."""
        return self.state / "images"

    @property
    def plans(self) -> Path:
        """The plans that the lab's Airflow reads."""
        return self.state / "plans"

    @property
    def second(self) -> Folders:
        """The same of the second KVM host, which only tests ask for."""
        return Folders(self.state / "second")


def folders() -> Folders:
    """Find the lab's folders."""
    return Folders(Path(os.environ.get("HYPERFLOW_LAB", ROOT / ".lab")).absolute())


def command(action: str) -> int:
    """Run ``./hyperflow lab up|status|down``.

    :return: the exit status; of status, 0 when all parts run
    """
    return plainly(lambda: _command(action))


def plainly(work: Callable[[], int]) -> int:
    """Do what a person asked of the lab, and tell in words what keeps a part of it from being built or started.

    :return: the exit status; 1 also without root
    """
    errors = Console(stderr=True, highlight=False)
    if os.geteuid() != 0:
        errors.print("the lab runs sshd, libvirtd and QEMU as root: run this as root, or with sudo")
        return EXIT_FAILED
    try:
        return work()
    except FAULTS as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_FAILED


def _command(action: str) -> int:
    console = Console(highlight=False)
    if action == "up":
        up(console.print)
        return 0
    if action == "down":
        down()
        console.print("the lab is down")
        return 0
    parts = status()
    for name, is_up in parts.items():
        console.print(f"{name}: {'up' if is_up else 'down'}")
    return 0 if all(parts.values()) else 1


def up(say: Say, small_vms: int = 0) -> None:
    """Start every part that does not run yet.

    :param say: takes a line that tells what is being done
    :param small_vms: how many small VMs for tests a vCenter that is started holds besides
    """
    where = folders()
    where.state.mkdir(parents=True, exist_ok=True)
    say("guest: built once, then kept in ~/.cache/hyperflow")
    image = guest.ensure_guest(say)
    running_vcenter = vcenter.running(where.vcenter)
    if running_vcenter is None:
        say("vCenter: starting")
        where.vcenter.mkdir(parents=True, exist_ok=True, mode=0o700)
        inventory.write_inventory(where.vcenter / "inventory.json", image / "guest.json", small_vms)
        running_vcenter = vcenter.start(
            where.vcenter,
            where.vcenter / "inventory.json",
            user=inventory.USER,
            password=_password(where.vcenter),
        )
    say("KVM host: sshd and libvirtd")
    host = kvmhost.start(where.host)
    for folder in (where.staging, where.images, where.plans):
        folder.mkdir(parents=True, exist_ok=True)
    write_plan(where, host.network)
    if not airflow.is_up(where.state):
        say("Airflow: starting")
        airflow.stop(where.state)
        airflow.start(where.state, connections(where, running_vcenter, host), where.plans)


def down() -> None:
    """End every part and remove what migrations left in the lab."""
    stop()
    where = folders()
    if where.state.exists():
        shutil.rmtree(where.state)


def stop() -> None:
    """End every part; its files, Airflow's logs among them, stay."""
    where = folders()
    airflow.stop(where.state)
    processes.end_marked(f"HYPERFLOW_JOB={where.state}/".encode())
    if (host := kvmhost.running(where.host)) is not None:
        kvmhost.undefine_domains_below(host, where.state)
    kvmhost.stop(where.second.host)
    kvmhost.stop(where.host)
    if (running_vcenter := vcenter.running(where.vcenter)) is not None:
        vcenter.stop(running_vcenter)


def reset() -> None:
    """Forget earlier migrations: their domains, images and staged disks; the servers go on. Then comes :func:`up`."""
    where = folders()
    if (host := kvmhost.running(where.host)) is not None:
        kvmhost.undefine_domains_below(host, where.state)
    for folder in (where.staging, where.images):
        if folder.exists():
            shutil.rmtree(folder)


def status() -> dict[str, bool]:
    """Tell which parts run."""
    where = folders()
    return {
        "vCenter": vcenter.running(where.vcenter) is not None,
        "KVM host": kvmhost.running(where.host) is not None,
        "Airflow": airflow.is_up(where.state),
    }


def write_plan(where: Folders, network: str) -> None:
    """Write the lab's plan, the file a newcomer edits next."""
    plan = {
        "plan": PLAN,
        "vcenter": {"connection": VCENTER_CONNECTION},
        "profile": "kvm-migration",
        "host": {
            "connection": HOST_CONNECTION,
            "staging_directory": str(where.staging),
            "output_directory": str(where.images),
        },
        "networks": {"*": network},
        "vms": [{"inventory_path": f"/DC0/vm/Production/{VM}"}],
    }
    (where.plans / "lab.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))


def start_second_host(where: Folders) -> dict[str, Any]:
    """Start a second KVM host: another sshd, keys and folders; libvirt is the machine's, and so the first one's too.

    :return: its connection, as Airflow's REST API takes it
    """
    host = kvmhost.start(where.second.host)
    for folder in (where.second.staging, where.second.images):
        folder.mkdir(parents=True, exist_ok=True)
    return host_connection(SECOND_HOST_CONNECTION, host)


def connections(where: Folders, source: vcenter.Vcenter, host: kvmhost.KvmHost) -> list[dict[str, Any]]:
    """Describe the two connections as Airflow's REST API takes them: what a user makes for a vCenter and host."""
    return [
        {
            "connection_id": VCENTER_CONNECTION,
            "conn_type": "vsphere",
            "host": source.host,
            "port": source.port,
            "login": source.user,
            "password": _password(where.vcenter),
            "extra": json.dumps({"thumbprint": source.thumbprint}),
        },
        host_connection(HOST_CONNECTION, host),
    ]


def host_connection(name: str, host: kvmhost.KvmHost) -> dict[str, Any]:
    """Describe the connection to a KVM host."""
    return {
        "connection_id": name,
        "conn_type": "ssh",
        "host": host.ssh_host,
        "port": host.ssh_port,
        "login": host.ssh_user,
        "extra": json.dumps({"key_file": str(host.key_file), "host_key": host.host_key}),
    }


def _password(state: Path) -> str:
    """The vCenter's password: made once, readable by its owner only."""
    path = state / "password"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(18))
    return path.read_text()
