"""What somebody did to a VM between two looks, told apart from what we did; on the lab's vCenter."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hyperflow.vsphere import drift, properties
from hyperflow.vsphere.drift import Difference, differences, other_host, state
from hyperflow.vsphere.errors import NotFound
from hyperflow.vsphere.inventory import read_vm
from hyperflow.vsphere.nics import disconnect
from hyperflow.vsphere.power import power_off
from hyperflow.vsphere.session import Session
from hyperflow.vsphere.snapshot import Ownership, create_snapshot, find_snapshots, remove_owned_snapshots, wait_for_task
from pyVmomi import vim

OURS = Ownership(dag="migrate__cutover", run="drift", created="2026-11-24T06:00:00Z")
NAME = "hyperflow-drift"


@pytest.fixture
def watched(session: Session, cutover: str) -> Iterator[str]:
    yield cutover
    machine = session.object(vim.VirtualMachine, cutover)
    for left in find_snapshots(session, cutover):
        task = session.object(vim.vm.Snapshot, left.moref).RemoveSnapshot_Task(False, True)
        wait_for_task(session, task, "the removal", 30)
    if read_vm(session, cutover).name != "cutover":
        wait_for_task(session, machine.Rename_Task("cutover"), "the renaming back", 30)


def kinds(found: list[Difference]) -> list[str]:
    return [each["kind"] for each in found]


def reconfigure(session: Session, moref: str, **spec: Any) -> None:
    config_spec: Any = vim.vm.ConfigSpec
    task = session.object(vim.VirtualMachine, moref).ReconfigVM_Task(config_spec(**spec))
    wait_for_task(session, task, "the change", 30)


def test_the_state_is_plain_json_of_what_identifies_a_machine(session: Session, watched: str) -> None:
    found = state(session, watched)
    assert json.loads(json.dumps(found)) == found
    assert (found["name"], found["inventory_path"]) == ("cutover", "/DC0/vm/Cutover/cutover")
    assert (found["power_state"], found["snapshots"], found["current_snapshot"]) == ("poweredOn", [], None)
    assert found["host"]["moref"].startswith("host-")
    assert found["host"]["name"] == read_vm(session, watched).host
    (disk,) = found["disks"]
    assert disk["capacity_bytes"] == 64 << 20
    assert disk["file"].endswith("cutover/cutover.vmdk")
    assert disk["uuid"]
    assert found["change_version"]


def test_nothing_done_is_no_drift(session: Session, watched: str) -> None:
    assert differences(state(session, watched), state(session, watched)) == []


def test_our_own_snapshot_is_no_drift_whether_it_is_there_or_gone_again(session: Session, watched: str) -> None:
    before = state(session, watched)
    made = create_snapshot(session, watched, name=NAME, description=OURS.description())
    there = state(session, watched)
    assert there["change_version"] != before["change_version"]
    assert there["current_snapshot"] == made.moref
    for ours in ([made.moref], [NAME]):
        assert differences(before, there, ours) == []
    remove_owned_snapshots(session, watched, name=NAME, ownership=OURS)
    gone = state(session, watched)
    assert gone["change_version"] != there["change_version"]
    for earlier in (before, there):
        assert differences(earlier, gone, [made.moref]) == []


def test_a_snapshot_of_somebody_else_is_drift_and_so_is_its_removal(session: Session, watched: str) -> None:
    before = state(session, watched)
    theirs = create_snapshot(session, watched, name="by hand", description="")
    there = state(session, watched)
    (taken,) = differences(before, there, [NAME])
    assert (taken["kind"], f"'by hand' ({theirs.moref}) was taken" in taken["sentence"]) == ("snapshot", True)
    machine = session.object(vim.vm.Snapshot, theirs.moref)
    wait_for_task(session, machine.RemoveSnapshot_Task(False, True), "the removal", 30)
    (removed,) = differences(there, state(session, watched), [NAME])
    assert "was removed" in removed["sentence"]


def test_a_machine_that_is_reverted_holds_other_data(session: Session, watched: str) -> None:
    first = create_snapshot(session, watched, name="monday", description="")
    create_snapshot(session, watched, name="tuesday", description="")
    before = state(session, watched)
    reference = session.object(vim.vm.Snapshot, first.moref)
    wait_for_task(session, reference.RevertToSnapshot_Task(), "the revert", 30)
    (told,) = differences(before, state(session, watched), [NAME])
    assert "was reverted" in told["sentence"]


def test_a_rename_a_power_change_and_a_larger_disk_are_told_each(session: Session, watched: str) -> None:
    before = state(session, watched)
    machine = session.object(vim.VirtualMachine, watched)
    wait_for_task(session, machine.Rename_Task("cutover-old"), "the renaming", 30)
    power_off(session, watched)
    found = differences(before, state(session, watched))
    assert kinds(found) == ["name", "power"]
    grown = copy.deepcopy(before)
    grown["disks"][0]["capacity_bytes"] *= 2
    (told,) = differences(before, grown)
    assert (told["kind"], "for the new size" in told["sentence"]) == ("disk", True)


def test_a_machine_that_is_moved_to_another_folder_is_told(session: Session, watched: str) -> None:
    before = state(session, watched)
    machine = session.object(vim.VirtualMachine, watched)
    home = machine.parent
    (blue,) = [each for each in home.parent.childEntity if each.name == "Blue"]
    wait_for_task(session, blue.MoveIntoFolder_Task([machine]), "the move", 30)
    try:
        (told,) = differences(before, state(session, watched))
    finally:
        wait_for_task(session, home.MoveIntoFolder_Task([machine]), "the move back", 30)
    assert told["kind"] == "path"
    assert "from /DC0/vm/Cutover/cutover to /DC0/vm/Blue/cutover" in told["sentence"]


def test_a_disk_replaced_added_or_taken_away_is_told(session: Session, watched: str) -> None:
    before = state(session, watched)
    other = copy.deepcopy(before)
    other["disks"][0] |= {"uuid": "6000C29a-0000", "file": "[ds] else/else.vmdk"}
    (told,) = differences(before, other)
    assert "another disk" in told["sentence"]
    none = {**before, "disks": []}
    assert "was taken from the VM" in differences(before, none)[0]["sentence"]
    assert "was added" in differences(none, before)[0]["sentence"]
    moved = copy.deepcopy(before)
    moved["disks"][0]["file"] = "[other] cutover/cutover.vmdk"
    assert kinds(differences(before, moved)) == ["disk-file"]


def test_another_host_is_told_and_drift_only_where_it_is_asked_for(session: Session, watched: str) -> None:
    before = state(session, watched)
    moved = {**before, "host": {"moref": "host-999", "name": "elsewhere"}}
    assert differences(before, moved) == []
    (host,) = differences(before, moved, host_counts=True)
    assert (host["kind"], host["sentence"]) == ("host", other_host(before, moved))
    assert differences(before, before, host_counts=True) == []
    assert "on ESXi host elsewhere now" in str(other_host(before, moved))
    assert other_host(before, before) is other_host({**before, "host": None}, moved) is None


def test_a_change_of_anything_else_is_seen_by_its_version_alone(session: Session, watched: str) -> None:
    before = state(session, watched)
    disconnect(session, watched)
    after = state(session, watched)
    assert kinds(differences(before, after)) == ["config"]
    assert differences(before, after, [NAME]) == []  # our snapshots change the version too, so it tells nothing


def test_a_delta_file_over_a_disk_leaves_its_base_what_it_was(
    session: Session, watched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The simulator lays no delta files over a disk; vSphere's form of one is put where its answer is read.
    before = state(session, watched)
    read = properties.retrieve

    def with_delta(*arguments: Any) -> Any:
        found = read(*arguments)
        for device in found[0].get("config.hardware.device", []):
            if isinstance(device, vim.vm.device.VirtualDisk):
                backing: Any = vim.vm.device.VirtualDisk.FlatVer2BackingInfo
                delta = backing(fileName="[LocalDS_0] cutover/cutover-000001.vmdk", diskMode="persistent")
                base: Any = device.backing
                delta.uuid, delta.parent = base.uuid, base
                device.backing = delta
        return found

    monkeypatch.setattr(drift, "retrieve", with_delta)
    assert differences(before, state(session, watched)) == []


def test_a_machine_that_is_gone_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound):
        state(session, "vm-999999")


def test_a_session_that_ended_does_not_stop_the_look(session: Session, admin: Any, watched: str) -> None:
    admin.end_sessions()
    assert state(session, watched)["name"] == "cutover"
