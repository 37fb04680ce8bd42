"""The source renamed and marked after its migration, never deleted; on the lab's vCenter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from hyperflow.vsphere.errors import NameTaken, NotFound, PermissionMissing, TaskUnfinished, VsphereError
from hyperflow.vsphere.finalize import finalize, name_after
from hyperflow.vsphere.inventory import find_vm, read_vm
from hyperflow.vsphere.mark import ATTRIBUTE
from hyperflow.vsphere.session import Session
from hyperflow.vsphere.snapshot import wait_for_task
from pyVmomi import vim

NAME = "retired-migrated"
MARK = "migrated to kvm01 by run manual__2026-11-24"


@pytest.fixture
def retired(session: Session, admin: Any) -> Iterator[str]:
    moref = find_vm(session, "/DC0/vm/Cutover/retired")
    yield moref
    admin.as_it_was()
    machine = session.object(vim.VirtualMachine, moref)
    if marked(admin, moref):
        session.call(machine.SetCustomValue, ATTRIBUTE, "")
    if read_vm(session, moref).name != "retired":
        wait_for_task(session, session.call(machine.Rename_Task, "retired"), "the renaming back", 30)


def marked(admin: Any, moref: str) -> str:
    text = admin.machine(moref)["attributes"].get(ATTRIBUTE, "")
    assert isinstance(text, str)
    return text


def test_the_source_is_renamed_and_marked_and_otherwise_left_alone(session: Session, admin: Any, retired: str) -> None:
    before = read_vm(session, retired)
    done = finalize(session, retired, NAME, MARK)
    assert (done.name, done.previous_name, done.changed) == (NAME, "retired", ("renamed", "marked"))
    after = read_vm(session, retired)
    assert after.inventory_path == f"/DC0/vm/Cutover/{NAME}"
    assert marked(admin, retired) == MARK
    asked: dict[str, Any] = {"name": "", "inventory_path": "", "change_version": ""}
    assert dataclasses.replace(after, **asked) == dataclasses.replace(before, **asked)


def test_finalizing_again_changes_nothing(session: Session, admin: Any, retired: str) -> None:
    finalize(session, retired, NAME, MARK)
    version = admin.machine(retired)["change_version"]
    again = finalize(session, retired, NAME, MARK)
    assert (again.changed, again.previous_name) == ((), NAME)
    assert admin.machine(retired)["change_version"] == version


def test_one_that_was_renamed_but_not_marked_is_marked(session: Session, admin: Any, retired: str) -> None:
    admin.post("/privileges", {"missing": ["Global.SetCustomField"]})
    with pytest.raises(PermissionMissing, match=r"Global\.SetCustomField"):
        finalize(session, retired, NAME, MARK)
    admin.post("/privileges", {"missing": []})
    assert finalize(session, retired, NAME, MARK).changed == ("marked",)
    assert marked(admin, retired) == MARK


def test_where_the_attribute_cannot_be_made_nothing_is_renamed(session: Session, admin: Any, retired: str) -> None:
    remove_attribute(session)
    admin.post("/privileges", {"missing": ["Global.ManageCustomFields"]})
    with pytest.raises(PermissionMissing, match=r"Global\.ManageCustomFields"):
        finalize(session, retired, NAME, MARK)
    assert read_vm(session, retired).name == "retired"


def remove_attribute(session: Session) -> None:
    manager = session.content.customFieldsManager
    for field in manager.field:
        if field.name == ATTRIBUTE:
            manager.RemoveCustomFieldDef(field.key)


def test_an_ending_is_put_to_a_long_name_too(session: Session, retired: str) -> None:
    assert name_after("web01", "-migrated") == "web01-migrated"
    name = name_after("x" * 78, "-migrated")
    assert (len(name), name[-10:]) == (80, "x-migrated")
    assert finalize(session, retired, name, MARK).name == name


def test_the_mark_of_a_later_run_replaces_the_earlier_one(session: Session, admin: Any, retired: str) -> None:
    finalize(session, retired, NAME, MARK)
    assert finalize(session, retired, NAME, "by run 2").changed == ("marked",)
    assert marked(admin, retired) == "by run 2"


def test_a_name_that_is_taken_in_the_folder_is_refused_and_nothing_is_marked(
    session: Session, admin: Any, retired: str
) -> None:
    other = find_vm(session, "/DC0/vm/Cutover/deaf")
    with pytest.raises(NameTaken, match=rf"'retired'.*to 'deaf'.*taken by {other}"):
        finalize(session, retired, "deaf", MARK)
    assert read_vm(session, retired).name == "retired"
    assert marked(admin, retired) == ""


def test_a_name_of_another_folder_is_free(session: Session, retired: str) -> None:
    assert finalize(session, retired, "off01", MARK).name == "off01"


def test_a_name_with_slash_and_percent_is_escaped_for_vcenter(session: Session, retired: str) -> None:
    odd = "100%25 done/é \\ twice"
    finalize(session, retired, odd, MARK)
    facts = read_vm(session, retired)
    assert facts.name == odd
    assert find_vm(session, facts.inventory_path) == retired


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\nb"])
def test_a_name_that_vcenter_can_not_hold_is_refused(session: Session, retired: str, name: str) -> None:
    with pytest.raises(VsphereError, match="1 to 80 printable"):
        finalize(session, retired, name, MARK)
    with pytest.raises(VsphereError, match="empty"):
        finalize(session, retired, NAME, " ")


def test_a_rename_that_never_ends_is_an_error_at_its_time_limit(session: Session, admin: Any, retired: str) -> None:
    admin.post("/tasks", {"method": "Rename_Task", "vm": "retired"})
    with pytest.raises(TaskUnfinished, match="renaming"):
        finalize(session, retired, NAME, MARK, time_limit=1)
    assert marked(admin, retired) == ""


def test_a_session_that_ended_does_not_stop_it(session: Session, admin: Any, retired: str) -> None:
    admin.end_sessions()
    assert finalize(session, retired, NAME, MARK).changed == ("renamed", "marked")


def test_a_missing_privilege_to_rename_is_named(session: Session, admin: Any, retired: str) -> None:
    admin.post("/privileges", {"missing": ["VirtualMachine.Config.Rename"]})
    with pytest.raises(PermissionMissing, match=r"VirtualMachine\.Config\.Rename"):
        finalize(session, retired, NAME, MARK)


def test_a_machine_that_is_gone_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound):
        finalize(session, "vm-999999", NAME, MARK)
