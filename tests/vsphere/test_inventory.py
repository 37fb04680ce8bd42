"""Finding and reading virtual machines, against the lab's vCenter."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hyperflow.vsphere import properties
from hyperflow.vsphere.errors import Ambiguous, NotFound
from hyperflow.vsphere.facts import VmFacts
from hyperflow.vsphere.inventory import find_vm, list_vms, read_vm
from hyperflow.vsphere.power import power_state
from hyperflow.vsphere.session import Session

ODD = 'a/b "c" ../100%'


def test_a_machine_is_found_by_name_by_path_and_by_moref(session: Session) -> None:
    moref = find_vm(session, "web01")
    assert find_vm(session, "/DC0/vm/Production/web01") == moref
    assert find_vm(session, moref) == moref


@pytest.mark.parametrize("name", [ODD, "Straße 店"])
def test_odd_names_are_found_by_name_and_by_the_path_that_is_reported(session: Session, name: str) -> None:
    moref = find_vm(session, name)
    facts = read_vm(session, moref)
    assert facts.name == name
    assert find_vm(session, facts.inventory_path) == moref


def test_a_slash_in_a_name_is_escaped_in_the_inventory_path(session: Session) -> None:
    facts = read_vm(session, find_vm(session, ODD))
    assert facts.inventory_path.lower() == '/dc0/vm/x%2fy/a%2fb "c" ..%2f100%25'


def test_an_unknown_machine_names_those_that_are_near(session: Session) -> None:
    with pytest.raises(NotFound, match=r"Near names: .*'web01'"):
        find_vm(session, "WEB02")


def test_a_wrong_folder_names_the_right_one(session: Session) -> None:
    with pytest.raises(NotFound, match="/DC0/vm/Production/web01"):
        find_vm(session, "/DC0/vm/web01")


def test_a_folder_is_no_machine(session: Session) -> None:
    with pytest.raises(NotFound, match="is a Folder"):
        find_vm(session, "/DC0/vm/Production")


def test_two_machines_of_one_name_are_listed_by_path_and_moref(session: Session) -> None:
    with pytest.raises(Ambiguous) as raised:
        find_vm(session, "twin")
    blue, green = (find_vm(session, f"/DC0/vm/{folder}/twin") for folder in ("Blue", "Green"))
    assert f"/DC0/vm/Blue/twin ({blue})" in str(raised.value)
    assert f"/DC0/vm/Green/twin ({green})" in str(raised.value)


def test_a_machine_that_is_gone_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound, match="vm-999999"):
        read_vm(session, "vm-999999")


def test_all_pages_of_a_long_list_are_read_and_the_view_is_destroyed(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {vm.moref for vm in list_vms(session)}
    monkeypatch.setattr(properties, "PAGE", 2)
    assert {vm.moref for vm in list_vms(session)} == whole
    assert len(whole) >= 13
    assert not session.content.viewManager.viewList


def test_hardware_and_guest_are_read_as_vcenter_describes_them(session: Session) -> None:
    facts = read_vm(session, find_vm(session, "web01"))
    assert (facts.name, facts.inventory_path) == ("web01", "/DC0/vm/Production/web01")
    assert (facts.datacenter, facts.firmware, facts.secure_boot) == ("DC0", "bios", False)
    assert (facts.cpus, facts.memory_mb) == (2, 1024)
    assert (facts.power_state, facts.connection_state) == ("poweredOn", "connected")
    assert (facts.guest_id, facts.guest_hostname) == ("debian12_64Guest", "web01.example.org")
    assert (facts.annotation, facts.tools_running) == ("the shop", True)
    assert facts.host
    assert facts.instance_uuid
    assert facts.bios_uuid
    assert facts.change_version
    assert power_state(session, facts.moref) == "poweredOn"


def test_disks_come_in_boot_order_with_their_place_and_size(session: Session) -> None:
    disks = read_vm(session, find_vm(session, "web01")).disks
    assert [(disk.id, disk.bus, disk.bus_number, disk.unit) for disk in disks] == [
        ("disk-0", "scsi", 0, 0),
        ("disk-1", "scsi", 0, 1),
    ]
    assert [disk.capacity_bytes for disk in disks] == [64 << 20, 128 << 20]
    assert [disk.thin for disk in disks] == [True, False]
    assert {disk.controller for disk in disks} == {"ParaVirtualSCSIController"}
    assert all(disk.datastore and disk.file and disk.file.startswith(f"[{disk.datastore}] ") for disk in disks)


def test_nics_carry_mac_network_and_the_guests_addresses(session: Session) -> None:
    first, second = read_vm(session, find_vm(session, "web01")).nics
    assert (first.mac, first.network, first.type) == ("00:50:56:9a:10:01", "VM Network", "vmxnet3")
    assert first.addresses == ("192.0.2.10/24", "2001:db8::10/64")
    assert (second.network, second.type, second.addresses) == ("Front/End", "e1000e", ())


def test_uefi_secure_boot_and_snapshots_are_seen(session: Session) -> None:
    off = read_vm(session, find_vm(session, "off01"))
    assert (off.firmware, off.secure_boot, off.power_state) == ("uefi", True, "poweredOff")
    old = read_vm(session, find_vm(session, "old-snapshots"))
    assert [snapshot.name for snapshot in old.snapshots] == ["before upgrade", "after"]


def test_disks_that_can_not_be_exported_are_told_apart(session: Session) -> None:
    (independent,) = read_vm(session, find_vm(session, "independent")).disks
    assert independent.mode == "independent_persistent"
    (shared,) = read_vm(session, find_vm(session, "shared")).disks
    assert shared.sharing == "multi-writer"
    (raw,) = read_vm(session, find_vm(session, "raw")).disks
    assert (raw.backing, raw.is_rdm) == ("rdm-physical", True)


def test_facts_go_through_json_and_back(session: Session) -> None:
    for name in ("web01", "old-snapshots", "raw"):
        facts = read_vm(session, find_vm(session, name))
        assert VmFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


def test_many_threads_share_one_session(session: Session) -> None:
    moref = find_vm(session, "web01")
    with ThreadPoolExecutor(8) as pool:
        facts = list(pool.map(lambda _: read_vm(session, moref), range(16)))
    assert len(set(facts)) == 1


def test_a_name_that_looks_like_a_moref_is_taken_as_the_name_it_is(session: Session) -> None:
    moref = find_vm(session, "web01")
    with pytest.raises(NotFound):
        find_vm(session, moref, kind="name")
    assert find_vm(session, moref, kind="moref") == moref


def test_a_name_can_be_looked_for_in_one_datacenter(session: Session) -> None:
    assert find_vm(session, "web01", kind="name", datacenter="DC0") == find_vm(session, "web01")
    with pytest.raises(NotFound):
        find_vm(session, "web01", kind="name", datacenter="DC9")
