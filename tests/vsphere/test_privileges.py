"""What a user may not do is known before anything is tried; the lab's vCenter refuses by the same list."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hyperflow.vsphere.errors import NotFound
from hyperflow.vsphere.inventory import find_vm
from hyperflow.vsphere.privileges import ATTRIBUTES, CUTOVER, EXPORT, missing_privileges
from hyperflow.vsphere.session import Session


@pytest.fixture
def web01(session: Session, admin: Any) -> Iterator[str]:
    yield find_vm(session, "web01")
    admin.as_it_was()


def test_a_user_with_the_whole_role_lacks_nothing(session: Session, web01: str) -> None:
    assert missing_privileges(session, web01, for_cutover=True) == []


def test_what_a_cutover_needs_is_asked_for_a_cutover_only(session: Session, admin: Any, web01: str) -> None:
    admin.post("/privileges", {"missing": ["VApp.Export", "VirtualMachine.Config.Rename"]})
    assert [each.privilege for each in missing_privileges(session, web01, for_cutover=False)] == ["VApp.Export"]
    both = missing_privileges(session, web01, for_cutover=True)
    assert [(each.privilege, each.moref) for each in both] == [
        ("VApp.Export", web01),
        ("VirtualMachine.Config.Rename", web01),
    ]
    assert "docs/vcenter.md" in both[1].sentence()


def test_a_session_that_ended_does_not_stop_the_question(session: Session, admin: Any, web01: str) -> None:
    admin.end_sessions()
    admin.post("/privileges", {"missing": ["VApp.Export"]})
    assert [each.privilege for each in missing_privileges(session, web01, for_cutover=False)] == ["VApp.Export"]


def test_a_vcenter_that_tells_an_ended_session_by_an_empty_property_is_asked_again(
    session: Session, admin: Any, web01: str
) -> None:
    # A real vCenter does; the simulator raises. A login puts the real content in the place of this one.
    admin.end_sessions()
    session.content = SimpleNamespace(sessionManager=SimpleNamespace(currentSession=None))
    admin.post("/privileges", {"missing": ["VApp.Export"]})
    assert [each.privilege for each in missing_privileges(session, web01, for_cutover=False)] == ["VApp.Export"]


def test_every_privilege_is_in_the_document(request: pytest.FixtureRequest) -> None:
    document = (request.config.rootpath / "docs" / "vcenter.md").read_text()
    assert [each for each in (*EXPORT, *CUTOVER, *ATTRIBUTES) if each not in document] == []


def test_a_machine_that_is_gone_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound):
        missing_privileges(session, "vm-999999", for_cutover=True)
