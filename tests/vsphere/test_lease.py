"""Export leases against the lab's vCenter: their URLs serve real VMDKs, and they end when they should."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hyperflow.vsphere.errors import LeaseError, LeaseLost, NotFound
from hyperflow.vsphere.inventory import find_vm, read_vm
from hyperflow.vsphere.lease import LeaseDisk, open_lease
from hyperflow.vsphere.session import Session, connect
from hyperflow.vsphere.snapshot import Ownership, create_snapshot, remove_owned_snapshots

from lab.vcenter import Vcenter, start, stop
from tests.vsphere.conftest import PASSWORD, USER, Admin

# Seconds a lease lives at the vCenter where a test waits for the end of one: a busy machine may be late by most of it.
BRIEF = 10
LIMIT = 60  # seconds until a lease that is over is told to be
OURS = Ownership(dag="migrate__web01", run="lease-tests", created="2026-11-23T21:00:00Z")
NAME = "hyperflow-lease-tests"


@pytest.fixture
def snapshot(session: Session) -> Iterator[str]:
    moref = find_vm(session, "web01")
    yield create_snapshot(session, moref, name=NAME, description=OURS.description()).moref
    remove_owned_snapshots(session, moref, name=NAME, ownership=OURS)


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcenter]:
    """A vCenter of its own whose leases soon time out: those of other tests must not, however slow the machine is."""
    state = tmp_path_factory.mktemp("brief")
    inventory = state / "inventory.json"
    inventory.write_text(json.dumps({"vms": [{"name": "off01", "disks": [{}]}]}))
    started = start(state, inventory, user=USER, password=PASSWORD, lease_timeout_seconds=BRIEF)
    yield started
    stop(started)


@pytest.fixture
def soon(brief: Vcenter) -> Iterator[Session]:
    with connect(brief.host, brief.port, user=USER, password=PASSWORD, thumbprint=brief.thumbprint) as opened:
        yield opened


def download(disk: LeaseDisk, ca_file: Any) -> bytes:
    context = ssl.create_default_context(cafile=str(ca_file))
    assert disk.url.startswith("https://")
    with urllib.request.urlopen(disk.url, context=context, timeout=10) as answer:  # noqa: S310 - https, see above
        data: bytes = answer.read()
    return data


def live(admin: Any) -> list[dict[str, Any]]:
    leases: list[dict[str, Any]] = admin.get("/leases")["live"]
    return leases


def last_end(admin: Any) -> str:
    return str(admin.get("/leases")["ended"][-1]["reason"])


def test_a_running_machines_snapshot_offers_each_disk_once_and_nothing_else(session: Session, snapshot: str) -> None:
    facts = read_vm(session, find_vm(session, "web01"))
    with open_lease(session, snapshot) as lease:
        assert [disk.disk_key for disk in lease.disks] == [disk.key for disk in facts.disks]
        assert {disk.matched_by for disk in lease.disks} == {"device"}
        assert lease.state() == "ready"
        assert lease.timeout > 0


def test_the_urls_serve_the_disks(session: Session, snapshot: str, vcenter: Any) -> None:
    with open_lease(session, snapshot) as lease:
        first, second = lease.disks
        data = download(first, vcenter.certificate)
        assert data[:4] == b"KDMV"
        assert first.file_size == len(data)
        assert second.file_size is None  # as real servers often say
        assert first.thumbprint == vcenter.thumbprint_sha1
        lease.complete()


def test_disks_on_several_controllers_are_told_apart(session: Session) -> None:
    moref = find_vm(session, "mixed")
    places = {(disk.controller, disk.bus_number, disk.unit): disk.key for disk in read_vm(session, moref).disks}
    with open_lease(session, moref) as lease:
        assert len(lease.disks) == len(places) == 3
        for disk in lease.disks:
            (place,) = [place for place in places if disk.key.endswith(f"/{place[0]}{place[1]}:{place[2]}")]
            assert places[place] == disk.disk_key


def test_a_completed_lease_is_over(session: Session, snapshot: str, admin: Any, vcenter: Any) -> None:
    with open_lease(session, snapshot) as lease:
        lease.keep_alive(50)
        assert live(admin)[-1]["percent"] == 50
        lease.complete()
        lease.complete()
        assert lease.state() == "gone"
    assert (live(admin), last_end(admin)) == ([], "completed")
    with pytest.raises(urllib.error.HTTPError):
        download(lease.disks[0], vcenter.certificate)


def test_leaving_without_completion_aborts(session: Session, snapshot: str, admin: Any) -> None:
    with pytest.raises(RuntimeError), open_lease(session, snapshot):
        raise RuntimeError
    assert (live(admin), last_end(admin)) == ([], "aborted")


def test_a_lease_lives_as_long_as_it_is_kept_alive(soon: Session) -> None:
    with open_lease(soon, find_vm(soon, "off01")) as lease:
        kept_until = time.monotonic() + lease.timeout + 1
        while time.monotonic() < kept_until:
            lease.keep_alive(10)
            time.sleep(0.5)
        assert lease.state() == "ready"


def test_a_lease_that_timed_out_is_lost_and_closing_it_is_no_error(soon: Session, brief: Vcenter) -> None:
    with open_lease(soon, find_vm(soon, "off01")) as lease:
        limit = time.monotonic() + BRIEF + LIMIT
        while lease.state() == "ready":  # and no more by its list, which it leaves a moment before its state is told
            assert time.monotonic() < limit
            time.sleep(0.2)
        assert lease.state() == "error"
        with pytest.raises(LeaseLost, match="Open a new one"):
            lease.keep_alive(10)
        with pytest.raises(LeaseLost):
            lease.complete()
    assert last_end(Admin(brief)) == "timed out"


def test_a_lease_ends_with_its_session_and_says_so(session: Session, admin: Any) -> None:
    with open_lease(session, find_vm(session, "off01")) as lease:
        admin.end_sessions()
        with pytest.raises(LeaseLost, match="its session was"):
            lease.keep_alive(10)


def test_a_machine_that_runs_is_only_exported_from_a_snapshot(session: Session, admin: Any) -> None:
    with pytest.raises(LeaseError, match=r"poweredOn.*Export a snapshot of it, or shut it down"):
        open_lease(session, find_vm(session, "web01"))
    assert live(admin) == []


def test_what_is_gone_can_not_be_exported(session: Session) -> None:
    for moref in ("snapshot-999999", "vm-999999"):
        with pytest.raises(NotFound, match=moref):
            open_lease(session, moref)


def test_a_disk_that_is_not_offered_is_a_clear_error(session: Session) -> None:
    with (
        open_lease(session, find_vm(session, "off01")) as lease,
        pytest.raises(LeaseError, match="no download"),
    ):
        lease.disk(99)


def test_several_threads_may_hold_leases_of_one_machine(session: Session, snapshot: str, admin: Any) -> None:
    def hold(_: int) -> int:
        with open_lease(session, snapshot) as lease:
            lease.keep_alive(1)
            lease.complete()
            return len(lease.disks)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(hold, range(8))) == [2] * 8
    assert live(admin) == []


def test_the_ticket_is_not_shown(session: Session) -> None:
    with open_lease(session, find_vm(session, "off01")) as lease:
        shown = repr(lease) + repr(lease.disks)
        assert lease.disks[0].url not in shown
        assert "session" not in shown.lower()
