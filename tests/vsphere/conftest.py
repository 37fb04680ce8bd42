"""A real vCenter API for the tests of hyperflow.vsphere: the lab's simulator with an inventory of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hyperflow.vsphere.inventory import find_vm, read_vm
from hyperflow.vsphere.nics import connections, restore
from hyperflow.vsphere.power import power_on
from hyperflow.vsphere.session import Session, connect

from lab.vcenter import Vcenter, start, stop

PASSWORD = "correct horse & <battery>"
USER = "hyperflow@vsphere.local"


def _nic(mac: str, network: str = "VM Network", kind: str = "vmxnet3") -> dict[str, Any]:
    return {"mac": mac, "network": network, "type": kind}


def _vm(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "disks": [{"controller": "pvscsi"}], **more}


INVENTORY = {
    "networks": [{"name": "Front/End", "kind": "distributed"}],
    "vms": [
        _vm(
            "web01",
            folder="/DC0/vm/Production",
            guestId="debian12_64Guest",
            guestFullName="Debian GNU/Linux 12 (64-bit)",
            cpus=2,
            memory_mb=1024,
            powerState="poweredOn",
            annotation="the shop",
            nics=[_nic("00:50:56:9A:10:01"), _nic("00:50:56:9a:10:02", "Front/End", "e1000e")],
            disks=[
                {"controller": "pvscsi", "thin": True},
                {"controller": "pvscsi", "capacity_bytes": 128 * 1024 * 1024, "hide_file_size": True},
            ],
            guest={
                "hostName": "web01.example.org",
                "net": [{"mac": "00:50:56:9a:10:01", "ipAddresses": ["192.0.2.10/24", "2001:db8::10/64"]}],
            },
        ),
        _vm("off01", firmware="efi", secureBoot=True),
        _vm("twin", folder="/DC0/vm/Blue"),
        _vm("twin", folder="/DC0/vm/Green"),
        _vm('a/b "c" ../100%', folder="/DC0/vm/x%2fy"),
        _vm("Straße 店"),
        _vm("vm-looking", folder="/DC0/vm/Production"),
        _vm("independent", disks=[{"mode": "independent_persistent"}]),
        _vm("shared", disks=[{"sharing": "sharingMultiWriter"}]),
        _vm("raw", disks=[{"rdm": True}]),
        _vm("mixed", disks=[{"controller": "lsilogic"}, {"controller": "pvscsi"}, {"controller": "lsilogic"}]),
        _vm("old-snapshots", snapshots=["before upgrade", "after"]),
        _vm("restless", folder="/DC0/vm/Blue"),
        _vm("doomed", folder="/DC0/vm/Blue"),
        _vm("no-tools", powerState="poweredOn", guest={"toolsRunningStatus": "guestToolsNotRunning"}),
        _vm(
            "cutover",
            folder="/DC0/vm/Cutover",
            powerState="poweredOn",
            nics=[
                _nic("00:50:56:9a:20:01"),
                _nic("00:50:56:9a:20:02", "Front/End"),
                {**_nic("00:50:56:9a:20:03"), "disconnected": True},
            ],
            guest={"net": [{"mac": "00:50:56:9a:20:01", "ipAddresses": ["192.0.2.20/24"]}]},
        ),
        _vm("deaf", folder="/DC0/vm/Cutover", powerState="poweredOn", guest={"ignores_shutdown": True}),
        _vm("retired", folder="/DC0/vm/Cutover"),
    ],
}


class Admin:
    """The simulator's second listener: what clients left behind, and how to end their sessions."""

    def __init__(self, vcenter: Vcenter) -> None:
        self._vcenter = vcenter

    def get(self, path: str) -> Any:
        return self._vcenter.admin("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._vcenter.admin("POST", path, body)

    def delete(self, path: str) -> Any:
        return self._vcenter.admin("DELETE", path)

    def end_sessions(self) -> None:
        self._vcenter.admin("DELETE", "/sessions")

    def machine(self, moref: str) -> Any:
        """What the vCenter itself holds of a VM, whatever a client was told."""
        (found,) = [each for each in self.get("/machines") if each["moref"] == moref]
        return found

    def as_it_was(self) -> None:
        """Take back every fault of VMs, tasks and privileges."""
        self.delete("/machines/faults")
        self.delete("/tasks")
        self.post("/privileges", {"missing": []})


@pytest.fixture(scope="session")
def vcenter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcenter]:
    state = tmp_path_factory.mktemp("vcenter")
    inventory = state / "inventory.json"
    inventory.write_text(json.dumps(INVENTORY))
    started = start(state, inventory, user=USER, password=PASSWORD)
    yield started
    stop(started)


@pytest.fixture
def admin(vcenter: Vcenter) -> Admin:
    return Admin(vcenter)


@pytest.fixture
def cutover(session: Session, admin: Admin) -> Iterator[str]:
    """A VM that runs, with Tools and three adapters, the third disconnected; as it was again afterwards."""
    moref = find_vm(session, "cutover")
    before = connections(session, moref)
    yield moref
    admin.as_it_was()
    power_on(session, moref)
    restore(session, moref, before)
    _wait_for_tools(session, moref)


def _wait_for_tools(session: Session, moref: str) -> None:
    limit = time.monotonic() + 30
    while not read_vm(session, moref).tools_running:
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.fixture
def session(vcenter: Vcenter) -> Iterator[Session]:
    with connect(vcenter.host, vcenter.port, user=USER, password=PASSWORD, thumbprint=vcenter.thumbprint) as opened:
        yield opened
