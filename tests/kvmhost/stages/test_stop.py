"""Starting a domain for good and taking one back, in a libvirt that runs."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost import domains

from lab import kvmhost
from tests.kvmhost.stages import running

pytestmark = pytest.mark.lab

RUN = "migrate.plan.vm/manual__1"


def virsh(*arguments: str) -> str:
    command = ["virsh", "--quiet", "--connect", kvmhost.URI, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def domain(host: kvmhost.KvmHost, tmp_path: Path) -> Iterator[Path]:
    """A domain without disks: its firmware finds nothing to boot, and hears no shutdown."""
    file = tmp_path / str(uuid.uuid4())
    file.write_text(
        f"<domain type='qemu'><name>test-stop-{file.name[:8]}</name><uuid>{file.name}</uuid>"
        "<memory unit='MiB'>32</memory><os><type arch='x86_64' machine='q35'>hvm</type></os><metadata>"
        f"<h:migration xmlns:h='{domains.NAMESPACE}' vm='vm-1' run='{RUN}'/></metadata></domain>"
    )
    virsh("define", str(file))
    yield file
    for act in ("destroy", "undefine"):
        subprocess.run(["virsh", "-q", "-c", kvmhost.URI, act, file.name], check=False, capture_output=True)


def stop(domain: Path, **more: Any) -> dict[str, Any]:
    return running.run("stop", {"uuid": domain.name, "vm": "vm-1", "run": RUN, "shutdown_seconds": 1, **more})


def state(domain: Path) -> str:
    return domains.state_of(kvmhost.URI, domain.name)


def test_a_domain_that_is_started_for_good_starts_with_its_host_too(domain: Path) -> None:
    done = running.run("start", {"uuid": domain.name, "vm": "vm-1", "timeout_seconds": 5})
    assert done["exit_status"] == 0, done["log"]
    assert (done["observed"]["autostart"], state(domain)) == (True, "running")
    assert domain.name in virsh("list", "--all", "--uuid", "--autostart")


def test_a_domain_that_hears_nothing_is_switched_off_undefined_and_gone(domain: Path) -> None:
    virsh("start", domain.name)
    done = stop(domain)
    assert done["exit_status"] == 0, done["log"]
    assert (done["observed"]["was"], done["observed"]["forced"], state(domain)) == ("running", True, "gone")


def test_one_that_is_gone_is_a_success(domain: Path) -> None:
    virsh("undefine", domain.name)
    assert stop(domain)["observed"] == {"name": None, "was": None, "forced": False}


def test_one_that_must_run_and_is_off_is_left_as_after_a_live_migration_that_kept_its_definition(domain: Path) -> None:
    left = stop(domain, must_run=True)
    assert left["observed"] == {"name": None, "was": "shut off", "forced": False}
    assert state(domain) == "shut off"
    virsh("start", domain.name)
    assert stop(domain, must_run=True)["observed"]["was"] == "running"
    assert state(domain) == "gone"


def test_what_an_earlier_try_has_begun_is_gone_on_with_and_what_it_has_undefined_is_known(
    domain: Path, tmp_path: Path
) -> None:
    asked = {"must_run": True, "attempt": uuid.uuid4().hex, "directory": str(tmp_path)}
    virsh("start", domain.name)
    assert stop(domain, **asked, only_look=True)["observed"]["was"] == "running"
    assert state(domain) == "running"
    virsh("destroy", domain.name)  # as a try that was cut off before it could undefine it
    done = stop(domain, **asked, begun=True)
    assert (done["observed"]["name"], state(domain)) == (f"test-stop-{domain.name[:8]}", "gone")
    for again in ({"only_look": True}, {}):
        assert stop(domain, **asked, begun=True, **again)["observed"]["name"] == done["observed"]["name"]
    other = stop(domain, **{**asked, "attempt": uuid.uuid4().hex}, begun=True)
    assert other["observed"]["name"] is None, "another rollback has not undefined it: it may have been moved"


def test_a_name_of_an_attempt_leads_nowhere(domain: Path, tmp_path: Path) -> None:
    refused = stop(domain, attempt="../../etc/passwd", directory=str(tmp_path))
    assert "expected 32 hexadecimal digits" in refused["error"]["message"]
    assert state(domain) == "shut off"


VIRSH = """#!/bin/sh
shift 3  # --quiet --connect URI
case "$*" in
  "list --all --uuid") [ -e %(folder)s/moved ] || echo %(uuid)s ;;
  dumpxml*) cat %(xml)s ;;
  shutdown*) touch %(folder)s/moved; echo "error: domain is not running" >&2; exit 1 ;;
  "domstate --reason"*) echo "shut off (migrated)" ;;
  domstate*) if [ -e %(folder)s/moved ]; then %(moved)s; else echo running; fi ;;
  *) touch "%(folder)s/$1" ;;
esac
"""


@pytest.mark.parametrize("moved", ['echo "shut off"', "exit 1"], ids=["still-defined", "undefined"])
def test_one_that_is_moved_while_it_is_to_shut_down_is_left(domain: Path, tmp_path: Path, moved: str) -> None:
    """libvirt holds the shutdown back until the migration is over."""
    program = tmp_path / "bin/virsh"
    program.parent.mkdir()
    program.write_text(VIRSH % {"uuid": domain.name, "xml": domain, "folder": tmp_path, "moved": moved})
    program.chmod(0o755)
    path = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    asked = {"uuid": domain.name, "vm": "vm-1", "run": RUN, "must_run": True}
    done = running.run("stop", asked, path)
    assert done["observed"] == {"name": None, "was": "moved to another host meanwhile", "forced": False}, done["log"]
    assert not (tmp_path / "undefine").exists()
    assert (tmp_path / "moved").exists()


def test_one_that_only_runs_and_is_defined_no_more_goes_too(domain: Path) -> None:
    virsh("start", domain.name)
    virsh("undefine", domain.name)
    done = stop(domain)
    assert done["exit_status"] == 0, done["log"]
    assert state(domain) == "gone"


def test_one_of_another_run_is_left_and_refused_when_it_runs(domain: Path) -> None:
    assert stop(domain, run="migrate.plan.vm/manual__2")["observed"]["name"] is None
    assert state(domain) == "shut off"
    virsh("start", domain.name)
    refused = stop(domain, run="migrate.plan.vm/manual__2")
    assert f"it is running, and was defined by the run {RUN}, expected" in refused["error"]["message"]
    assert state(domain) == "running"


def test_one_of_another_vm_is_left(domain: Path) -> None:
    assert "found it of vm-1, expected vm-2" in stop(domain, vm="vm-2")["error"]["message"]
    assert state(domain) == "shut off"


def test_one_that_runs_is_not_defined_anew(domain: Path) -> None:
    virsh("start", domain.name)
    existing = domains.every_domain(kvmhost.URI)
    (fault,) = domains.running_faults(kvmhost.URI, existing, domain.name, "vm-1")
    assert f"found it running, expected it off: it runs from the images of {RUN}" in fault
    assert domains.running_faults(kvmhost.URI, existing, domain.name, "vm-2") == []


def test_one_whose_memory_is_saved_is_not_defined_anew(domain: Path) -> None:
    virsh("start", domain.name)
    virsh("managedsave", domain.name)
    assert state(domain) == "shut off"
    existing = domains.every_domain(kvmhost.URI)
    (fault,) = domains.running_faults(kvmhost.URI, existing, domain.name, "vm-1")
    assert f"found its memory saved, expected it shut down: a start would go on with the images of {RUN}" in fault
    virsh("managedsave-remove", domain.name)
    assert domains.running_faults(kvmhost.URI, existing, domain.name, "vm-1") == []


def test_one_whose_memory_is_saved_is_left_by_who_cleans_up(domain: Path) -> None:
    virsh("start", domain.name)
    virsh("managedsave", domain.name)
    (own,) = (one for one in domains.every_domain(kvmhost.URI) if one.uuid == domain.name)
    assert domains.why_left(kvmhost.URI, own, "vm-1", RUN) == "its memory is saved, so somebody has used it"
    virsh("managedsave-remove", domain.name)
    assert domains.why_left(kvmhost.URI, own, "vm-1", RUN) is None
