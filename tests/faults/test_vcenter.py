"""What befalls a vCenter in the middle of a migration: each run goes on to its end, or says why it does not."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hyperflow.vsphere.inventory import find_vm
from pyVmomi import vim

from lab import lab
from lab.running import RunningLab
from lab.small_guest import ensure_small_guest
from tests.faults.scenario import Scenario, play

pytestmark = [pytest.mark.lab, pytest.mark.night]

OUTAGE = 25  # seconds
HASTY = "vc_hasty"  # a connection whose tasks may last 5 s
THEIRS = "before the week-end"  # a snapshot that somebody else takes
RENAMED = "small16 (moving)"  # what somebody calls small16 while it is exported


def gone(scene: Scenario) -> None:
    """vCenter is away for a while; when the download is under way again, everything about the VM is changed."""
    scene.stall()
    scene.begin()
    scene.until_stalled()
    scene.lab.vcenter.admin("POST", "/outage", {"seconds": OUTAGE})
    scene.until_task("export", "up_for_retry")
    scene.stall()  # of the try that comes 20 s later
    scene.until_stalled()
    with disturbed(scene):
        scene.lab.vcenter.admin("DELETE", f"/sessions?vm={scene.vm}")  # a lease knows its VM by the name it had
        scene.end()


@contextlib.contextmanager
def disturbed(scene: Scenario) -> Iterator[None]:
    """Take a snapshot, add a disk, move, power on and rename the VM; it gets its name back."""
    scene.at_source(lambda vm: vm.CreateSnapshot_Task(THEIRS, "by hand", False, False))
    scene.at_source(lambda vm: vm.ReconfigVM_Task(one_more_disk(vm)))
    move(scene)
    scene.at_source(lambda vm: vm.PowerOnVM_Task())
    rename(scene, scene.vm, RENAMED)
    try:
        yield
    finally:
        rename(scene, RENAMED, scene.vm)


def move(scene: Scenario) -> None:
    """Move the VM into another folder."""
    with scene.session() as session:
        (target,) = [
            each for each in session.content.rootFolder.childEntity[0].vmFolder.childEntity if each.name == "Production"
        ]
        scene.at_source(lambda vm: target.MoveIntoFolder_Task([vm]))


def rename(scene: Scenario, name: str, other: str) -> None:
    """Rename a VM."""
    with scene.session() as session:
        machine = session.object(vim.VirtualMachine, find_vm(session, name, kind="name"))
        task = machine.Rename_Task(other)  # type: ignore[attr-defined]
        scene.until(lambda: task.info.state in ("success", "error"))
        assert task.info.state == "success", task.info.error


def switched_off(scene: Scenario) -> None:
    """A VM that runs is moved and switched off while it is exported."""
    scene.at_source(lambda vm: vm.PowerOnVM_Task())
    scene.stall()
    scene.begin()
    scene.until_stalled()
    move(scene)
    scene.at_source(lambda vm: vm.PowerOffVM_Task())
    scene.lab.vcenter.admin("DELETE", f"/sessions?vm={scene.vm}")
    scene.end()


def one_more_disk(machine: Any) -> Any:
    (disk,) = [each for each in machine.config.hardware.device if isinstance(each, vim.vm.device.VirtualDisk)]
    added = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=disk.controllerKey, unitNumber=disk.unitNumber + 1, capacityInKB=1024
    )
    added.backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(diskMode="persistent", thinProvisioned=True)
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=added)
    return vim.vm.ConfigSpec(deviceChange=[change])


def ended(scene: Scenario) -> None:
    """The lease is lost in three ways, one after the other."""
    scene.stall()
    scene.begin()
    for path in (
        f"/sessions?vm={scene.vm}",
        f"/leases?vm={scene.vm}",
        f"/leases?vm={scene.vm}&reason=timed%20out",
    ):
        scene.until_stalled()
        if "timed" not in path:
            scene.stall()
        ended_before = len(scene.ended_leases())
        scene.lab.vcenter.admin("DELETE", path)
        scene.until(lambda count=ended_before: len(scene.ended_leases()) > count)  # type: ignore[misc]
    scene.end()


def hung(scene: Scenario) -> None:
    """The snapshot's task never ends."""
    scene.lab.vcenter.admin("POST", "/tasks", {"method": "CreateSnapshot_Task", "vm": scene.vm})
    scene.begin(vcenter={"connection": HASTY})
    scene.end()


def deleted(scene: Scenario) -> None:
    """The VM is deleted while it is exported."""
    scene.stall()
    scene.begin()
    scene.until_stalled()
    scene.at_source(lambda vm: vm.Destroy_Task())
    scene.end()


def add_hasty_connection(running_lab: RunningLab) -> None:
    known = {
        one["connection_id"]: one for one in lab.connections(running_lab.folders, running_lab.vcenter, running_lab.host)
    }
    source = known[lab.VCENTER_CONNECTION]
    extra = json.dumps({**json.loads(source["extra"]), "task_time_limit": 5})
    hasty = {**source, "connection_id": HASTY, "extra": extra}
    running_lab.api.request("POST", "/api/v2/connections", json=hasty)


@pytest.fixture(scope="module")
def scenes(running_lab: RunningLab) -> dict[str, Scenario]:
    """All runs of this module, played at once but for one: vCenter's absence would hit what is done to their VMs."""
    add_hasty_connection(running_lab)
    together = play(
        running_lab,
        ("ended", "small17", ended),
        ("hung", "small18", hung),
        ("deleted", "small19", deleted),
        ("switched-off", "small14", switched_off),
    )
    return {**together, **play(running_lab, ("gone", "small16", gone))}


def test_a_vcenter_that_was_away_costs_a_download_and_not_the_run(scenes: dict[str, Scenario]) -> None:
    scene = scenes["gone"]
    report = scene.report()
    assert (scene.end(), report["errors"]) == ("success", [])
    assert scene.staged_sha256() == small_sha256()
    task = scene.task("export")
    assert task is not None
    assert task.try_number >= 3
    ended = [(each["vm"], each["reason"]) for each in scene.lab.vcenter.admin("GET", "/leases")["ended"]]
    assert [reason for vm, reason in ended if vm == RENAMED][-1:] == ["completed"]
    assert "completed" not in scene.ended_leases(), "under its old name"


def test_what_somebody_did_to_the_vm_meanwhile_is_in_the_report(scenes: dict[str, Scenario]) -> None:
    """Of a VM that has another name and another folder, the name is told."""
    told = warnings_of(scenes["gone"])
    for words in (
        f"was renamed from 'small16' to '{RENAMED}': it is migrated under its old name",
        "was poweredOff and is poweredOn now",
        "was added after",
    ):
        assert words in told


def test_a_vm_that_is_switched_off_and_moved_meanwhile_is_migrated_as_its_snapshot_has_it(
    scenes: dict[str, Scenario],
) -> None:
    switched = scenes["switched-off"]
    assert (switched.end(), switched.report()["errors"]) == ("success", [])
    assert switched.staged_sha256() == small_sha256()
    told = warnings_of(switched)
    for words in ("was moved from /DC0/vm/Small/small14 to", "was poweredOn and is poweredOff now"):
        assert words in told
    assert (switched.snapshots(), switched.left(failed=False)) == ([], [])


def test_a_snapshot_of_somebody_else_stays_and_ours_goes(scenes: dict[str, Scenario]) -> None:
    scene = scenes["gone"]
    assert scene.snapshots() == [THEIRS]
    assert scene.left(failed=False) == [f"snapshot {THEIRS}"]


def test_a_lease_that_is_lost_in_any_way_is_replaced_by_a_new_one(scenes: dict[str, Scenario]) -> None:
    scene = scenes["ended"]
    report = scene.report()
    assert (scene.end(), report["errors"]) == ("success", [])
    own = [reason for reason in scene.ended_leases() if reason != "aborted"]
    assert own == ["session ended", "timed out", "completed"]
    assert scene.staged_sha256() == small_sha256()
    assert scene.left(failed=False) == []


def test_a_snapshot_that_never_ends_fails_the_run_and_says_where_the_limit_is(scenes: dict[str, Scenario]) -> None:
    scene = scenes["hung"]
    assert scene.end() == "failed"
    message = scene.lab.failure(scene.dag, scene.run, "snapshot")
    for words in ("within 5 seconds", "recent tasks", f"connection {HASTY}, task_time_limit"):
        assert words in message
    task = scene.task("snapshot")
    assert task is not None
    assert task.try_number == 1
    assert message in scene.report()["errors"][0]["message"]
    assert (scene.snapshots(), scene.left(failed=True)) == ([], [])


def test_a_vm_that_is_deleted_fails_the_run_and_says_so(scenes: dict[str, Scenario]) -> None:
    scene = scenes["deleted"]
    assert scene.end() == "failed"
    message = scene.lab.failure(scene.dag, scene.run, "export", 0)
    for words in ("no longer in the inventory", "Was the VM deleted"):
        assert words in message
    report = scene.report()
    assert [error["stage"] for error in report["errors"]] == ["export"]
    assert "if it was deleted, its snapshots went with it" in json.dumps(report["warnings"])
    assert scene.left(failed=True) == []


def warnings_of(scene: Scenario) -> str:
    return " ".join(warning["message"] for warning in scene.report()["warnings"])


def small_sha256() -> str:
    return hashlib.sha256(ensure_small_guest().read_bytes()).hexdigest()
