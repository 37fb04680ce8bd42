"""What libvirt is asked: no more of a host with many domains than of one with few, where one domain is meant."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hyperflow.kvmhost import domains
from hyperflow.kvmhost.ledger import Entry, Ledger
from hyperflow.kvmhost.stage import Job
from hyperflow.kvmhost.stages import janitor

RUN = "migrate.lab.web01/manual__1"
OWNER = {"airflow": "a-1", "dag": "migrate.lab.web01", "run": "manual__1"}
MANY = 200  # domains of the host
FEW = 25  # calls for one of them

VIRSH = """#!/bin/sh
shift 3  # --quiet --connect URI
echo "$*" >> "%(folder)s/calls"
for last; do :; done
case "$1" in
  list) ls "%(folder)s/domains" ;;
  dumpxml) cat "%(folder)s/domains/$last" ;;
  domstate) [ -e "%(folder)s/domains/$last" ] && echo "shut off" ;;
  dominfo) echo "Managed save: no" ;;
  undefine) rm "%(folder)s/domains/$last" ;;
esac
"""


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A host with many domains of a run; their UUIDs."""
    (tmp_path / "domains").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/virsh").write_text(VIRSH % {"folder": tmp_path})
    (tmp_path / "bin/virsh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    names = [str(uuid.uuid4()) for _ in range(MANY)]
    for name in names:
        ours = f"<h:migration xmlns:h='{domains.NAMESPACE}' vm='vm-1' run='{RUN}'/>"
        xml = f"<domain><name>vm-{name[:8]}</name><uuid>{name}</uuid><metadata>{ours}</metadata></domain>"
        (tmp_path / "domains" / name).write_text(xml)
    return names


def test_the_janitor_asks_little_for_a_domain_of_a_host_with_many(many: list[str], tmp_path: Path) -> None:
    """It has the ledgers for itself meanwhile, and everybody who is about to create something waits."""
    root = tmp_path / "staging/.hyperflow"
    book = Ledger(root)
    book.add(RUN, [Entry("domain", many[7], {"vm": "vm-1"})], OWNER)
    ended = janitor.EndedRun(RUN, True, False, "Airflow has no such run any more", book.read(RUN).bytes)

    done = janitor.run(janitor.Options(root, [ended], dry_run=False), Job("janitor"))

    (finding,) = done["findings"]
    assert finding["action"] == "removed", finding
    assert sorted(many) == sorted([*(one.name for one in (tmp_path / "domains").iterdir()), many[7]])
    assert len((tmp_path / "calls").read_text().splitlines()) < FEW


def test_what_names_no_domain_is_none(many: list[str]) -> None:
    assert domains.find("qemu:///system", str(uuid.uuid4())) is None
    assert domains.find("qemu:///system", "--help") is None
    found = domains.find("qemu:///system", many[0])
    assert found is not None
    assert found.name == f"vm-{many[0][:8]}"
