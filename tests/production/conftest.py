"""The lab without its own Airflow, and docker-compose.yaml in that one's place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import guest, inventory, kvmhost, lab, leftovers, vcenter
from lab.running import RunningLab
from tests.production import engine as engines
from tests.production import stack as stacks
from tests.production.images import ensure_images
from tests.production.passage import Passages
from tests.production.stack import Stack

SMALL_VMS = 8
PASSWORD = "lab"  # of the vCenter, which listens on loopback and holds nothing


@dataclass(frozen=True)
class Production:
    """Hyperflow as its users run it, with the lab's vCenter and KVM host to work with.

    :param bench: the lab, its API that of the production's Airflow
    """

    stack: Stack
    bench: RunningLab

    def left(self, plan: str, vm: str) -> list[str]:
        """What a VM's run has left."""
        return leftovers.of_run(self.bench, plan, vm, failed=False)


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """All of it, up; at the end nothing of it runs, listens or is mounted."""
    where = lab.Folders(tmp_path_factory.mktemp("lab"))
    scratch = Path(tempfile.mkdtemp(prefix="hyperflow-docker-", dir="/var/tmp"))
    source = host = None
    engine = engines.start(scratch)
    passages = Passages()
    try:
        ensure_images(engine)
        source, host = _start_vcenter(where), kvmhost.start(where.host)
        for folder in (where.staging, where.images, where.plans):
            folder.mkdir()
        lab.write_plan(where, host.network)
        stack = stacks.make(engine, where.state / "production", where.plans, Path(host.key_file))
        try:
            stacks.up(stack)
            for service in ("airflow-worker", "airflow-triggerer"):
                for container in stack.containers(service):
                    for port in (source.port, host.ssh_port):
                        passages.open(stack.pid(container), port)
            api = stack.api()
            stacks.add_connections(api, lab.connections(where, source, host))
            yield Production(stack, RunningLab(where, api, source, host))
        finally:
            stack.compose("down", "--volumes", "--timeout", "20")
    finally:
        passages.close()
        if host is not None:
            kvmhost.undefine_domains_below(host, where.state)
        kvmhost.stop(where.host)
        if source is not None:
            vcenter.stop(source)
        engines.stop(engine)
        shutil.rmtree(scratch)


def _start_vcenter(where: lab.Folders) -> vcenter.Vcenter:
    where.vcenter.mkdir(mode=0o700)
    (where.vcenter / "password").write_text(PASSWORD)
    listing = where.vcenter / "inventory.json"
    inventory.write_inventory(listing, guest.ensure_guest(print) / "guest.json", SMALL_VMS)
    return vcenter.start(where.vcenter, listing, user=inventory.USER, password=PASSWORD)
