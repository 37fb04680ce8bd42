"""Network adapters disconnected and put back exactly as they were, on the lab's vCenter."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hyperflow.vsphere import nics
from hyperflow.vsphere.errors import Busy, NicsChanged, NotFound, PermissionMissing, TaskUnfinished, VsphereError
from hyperflow.vsphere.facts import VmFacts
from hyperflow.vsphere.inventory import find_vm, read_vm
from hyperflow.vsphere.nics import connections, disconnect, require_same, restore
from hyperflow.vsphere.power import power_off, power_on
from hyperflow.vsphere.session import Session
from hyperflow.vsphere.snapshot import wait_for_task
from pyVmomi import vim

AS_BUILT = [(True, True), (True, True), (False, False)]


def switches(found: list[Any]) -> list[tuple[bool, bool]]:
    return [(nic["start_connected"], nic["connected"]) for nic in found]


def test_connections_are_plain_json_with_what_tells_adapters_apart(session: Session, cutover: str) -> None:
    found = connections(session, cutover)
    assert json.loads(json.dumps(found)) == found
    assert [nic["mac"][-2:] for nic in found] == ["01", "02", "03"]
    assert [nic["network"] for nic in found] == ["VM Network", "Front/End", "VM Network"]
    assert switches(found) == AS_BUILT


def test_every_adapter_is_disconnected_now_and_at_power_on_and_nothing_else_is_changed(
    session: Session, admin: Any, cutover: str
) -> None:
    before = read_vm(session, cutover)
    found = disconnect(session, cutover)
    assert switches(found) == [(False, False)] * 3
    assert [(nic["start_connected"], nic["connected"]) for nic in admin.machine(cutover)["nics"]] == switches(found)
    assert without_switches(read_vm(session, cutover)) == without_switches(before)


def without_switches(facts: VmFacts) -> VmFacts:
    cards = tuple(dataclasses.replace(nic, connected=False, connect_at_power_on=False) for nic in facts.nics)
    return dataclasses.replace(facts, nics=cards, change_version="")


def test_what_was_recorded_is_put_back_exactly(session: Session, cutover: str) -> None:
    recorded = connections(session, cutover)
    disconnect(session, cutover)
    assert restore(session, cutover, json.loads(json.dumps(recorded))) == recorded
    assert connections(session, cutover) == recorded


def test_what_is_done_already_asks_vcenter_for_no_change(session: Session, admin: Any, cutover: str) -> None:
    recorded = connections(session, cutover)
    restore(session, cutover, recorded)
    disconnect(session, cutover)
    version = admin.machine(cutover)["change_version"]
    disconnect(session, cutover)
    assert admin.machine(cutover)["change_version"] == version
    restore(session, cutover, recorded)
    assert admin.machine(cutover)["change_version"] != version


def test_a_source_that_is_started_by_mistake_stays_off_the_network(session: Session, cutover: str) -> None:
    power_off(session, cutover)
    disconnect(session, cutover)
    power_on(session, cutover)
    assert switches(connections(session, cutover)) == [(False, False)] * 3


def test_adapters_recorded_while_it_ran_and_put_back_while_it_is_off_connect_at_power_on(
    session: Session, cutover: str
) -> None:
    recorded = connections(session, cutover)
    disconnect(session, cutover)
    power_off(session, cutover)
    assert switches(restore(session, cutover, recorded)) == [(True, False), (True, False), (False, False)]
    power_on(session, cutover)
    assert connections(session, cutover) == recorded


def test_an_adapter_that_is_gone_is_named_and_nothing_is_changed(session: Session, admin: Any, cutover: str) -> None:
    recorded = connections(session, cutover)
    disconnect(session, cutover)
    version = admin.machine(cutover)["change_version"]
    more = [*recorded, {**recorded[0], "key": 4999, "label": "Network adapter 9", "mac": "00:50:56:00:00:09"}]
    with pytest.raises(NicsChanged, match=r"Network adapter 9 \(00:50:56:00:00:09\) is gone.*Nothing was changed"):
        restore(session, cutover, more)
    assert admin.machine(cutover)["change_version"] == version


def test_an_adapter_that_was_added_is_named_and_nothing_is_changed(session: Session, cutover: str) -> None:
    recorded = connections(session, cutover)
    disconnect(session, cutover)
    with pytest.raises(NicsChanged, match=r"Network adapter 3 \(00:50:56:9a:20:03\) is new"):
        restore(session, cutover, recorded[:2])
    assert switches(connections(session, cutover)) == [(False, False)] * 3


def test_an_adapter_with_another_mac_is_another_adapter(session: Session, cutover: str) -> None:
    recorded = connections(session, cutover)
    other: Any = [{**recorded[0], "mac": "00:50:56:00:00:01"}, *recorded[1:]]
    with pytest.raises(NicsChanged, match=r"00:50:56:00:00:01\) is gone; Network adapter 1 .* is new"):
        restore(session, cutover, other)


@pytest.mark.parametrize(
    "recorded",
    [None, {}, "x", [None], [{"key": 4000}], [{"key": True, "label": "", "mac": "", "connected": 1}]],
)
def test_what_is_no_record_is_refused(session: Session, cutover: str, recorded: object) -> None:
    with pytest.raises(VsphereError, match=r"network adapter 0 has no usable"):
        restore(session, cutover, recorded)


def test_one_adapter_recorded_twice_is_refused(session: Session, cutover: str) -> None:
    recorded = connections(session, cutover)
    with pytest.raises(VsphereError, match="one key"):
        restore(session, cutover, [*recorded, recorded[0]])


def test_a_machine_without_adapters_has_nothing_to_disconnect(session: Session) -> None:
    moref = find_vm(session, "off01")
    assert connections(session, moref) == disconnect(session, moref) == restore(session, moref, []) == []


def test_a_configuration_that_somebody_changes_between_reading_and_writing_is_not_overwritten(
    session: Session, cutover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = nics._cards

    def read_and_be_overtaken(asking: Session, moref: str) -> Any:
        cards = read(asking, moref)
        spec: Any = vim.vm.ConfigSpec
        task = session.object(vim.VirtualMachine, moref).ReconfigVM_Task(spec(annotation="somebody was here"))
        wait_for_task(session, task, "the note", 30)
        return cards

    monkeypatch.setattr(nics, "_cards", read_and_be_overtaken)
    with pytest.raises(Busy, match="ConcurrentAccess"):
        disconnect(session, cutover)
    assert switches(connections(session, cutover)) == AS_BUILT


def test_a_change_that_never_ends_is_an_error_at_its_time_limit(session: Session, admin: Any, cutover: str) -> None:
    admin.post("/tasks", {"method": "ReconfigVM_Task", "vm": "cutover"})
    with pytest.raises(TaskUnfinished, match="the change of 2 network adapters"):
        disconnect(session, cutover, time_limit=1)


def test_a_session_that_ended_does_not_stop_the_change(session: Session, admin: Any, cutover: str) -> None:
    admin.end_sessions()
    assert switches(disconnect(session, cutover)) == [(False, False)] * 3


def test_a_missing_privilege_is_named_and_nothing_is_changed(session: Session, admin: Any, cutover: str) -> None:
    admin.post("/privileges", {"missing": ["VirtualMachine.Config.EditDevice"]})
    with pytest.raises(PermissionMissing, match=r"VirtualMachine\.Config\.EditDevice"):
        disconnect(session, cutover)
    assert switches(connections(session, cutover)) == AS_BUILT


def test_a_machine_that_is_gone_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound):
        disconnect(session, "vm-999999")


def test_whether_adapters_can_be_put_back_is_known_without_a_change(session: Session, admin: Any, cutover: str) -> None:
    recorded = connections(session, cutover)
    disconnect(session, cutover)
    version = admin.machine(cutover)["change_version"]
    require_same(session, cutover, recorded)
    with pytest.raises(NicsChanged, match="is new"):
        require_same(session, cutover, recorded[:2])
    assert admin.machine(cutover)["change_version"] == version
