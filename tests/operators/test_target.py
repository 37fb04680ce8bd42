"""What the proof of a boot expects is what inspection found."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hyperflow.operators.target import ProveBootOperator, configured_networks, expectations
from hyperflow.vsphere.facts import NicFacts

ROOT = {"uuid": "1111", "device": "/dev/sda1", "fstype": "ext4", "disk_id": "disk-0"}


def mount(path: str, options: str = "defaults", **changes: str) -> dict[str, Any]:
    about = {"spec": f"UUID={path}", "fstype": "ext4", "device": "/dev/sdb1", "uuid": "2222", "disk_id": "disk-1"}
    return {"path": path, "options": options, **about, **changes}


def test_a_mount_is_expected_with_its_options_which_tell_whether_a_boot_mounts_it() -> None:
    mounts = [mount("/data"), mount("/backup", "noauto,user"), mount("none", fstype="swap")]
    found = expectations({"root": ROOT, "network": [], "mounts": mounts})
    assert found["mounts"] == [
        {"path": "/data", "uuid": "2222", "options": "defaults"},
        {"path": "/backup", "uuid": "2222", "options": "noauto,user"},
    ]


@pytest.mark.parametrize(
    ("seen", "leases"),
    [
        (("192.0.2.10/24", "fe80::250:56ff:fe9a:1001/64"), []),
        (("192.0.2.77/24",), ["00:50:56:9a:10:01"]),
        (("192.0.2.10/24", "192.0.2.77/24"), ["00:50:56:9a:10:01"]),
        (("169.254.7.7/16",), []),
        ((), []),
    ],
)
def test_an_address_that_no_file_of_the_guest_has_came_by_dhcp(seen: tuple[str, ...], leases: list[str]) -> None:
    nic = NicFacts(4000, "Network adapter 1", "00:50:56:9A:10:01", "VM Network", True, True, "vmxnet3", seen)
    network = [{"name": "ens192", "mac": None, "addresses": ["192.0.2.10/24"]}]
    assert expectations({"root": ROOT, "network": network, "mounts": []}, [nic])["leases"] == leases


def test_an_interface_of_a_card_that_the_vm_has_no_more_is_not_expected() -> None:
    nic = NicFacts(4000, "Network adapter 1", "00:50:56:9A:10:01", "VM Network", True, True, "vmxnet3")
    there = [
        {"name": "ens192", "mac": None, "addresses": ["192.0.2.10/24"]},
        {"name": "", "mac": "00:50:56:9a:10:01", "addresses": ["192.0.2.11/24"]},
        {"name": "", "mac": None, "addresses": ["192.0.2.12/24"]},
        {"name": "bond0", "mac": "00:50:56:9a:77:77", "addresses": ["192.0.2.13/24"]},
    ]
    left_behind = [
        {"name": "ens224", "mac": None, "addresses": ["198.51.100.5/24"]},
        {"name": "", "mac": "00:50:56:9a:66:66", "addresses": ["198.51.100.6/24"]},
    ]
    guest = {"root": ROOT, "network": [*there, *left_behind], "mounts": []}
    fix = {"network_without_card": ["ens224"]}
    assert configured_networks(guest, [nic], fix) == there
    assert expectations(guest, [nic], fix)["networks"] == there
    assert left_behind[0] in configured_networks(guest, [nic], None), "without fix nobody knows it"


def test_the_proof_is_asked_what_inspect_and_fix_have_found() -> None:
    guest = {"root": ROOT, "network": [{"name": "ens224", "mac": None, "addresses": ["192.0.2.5/24"]}], "mounts": []}
    folders = {"work_directory": "/w", "boot_directory": "/b"}
    operator: Any = SimpleNamespace(
        settings=SimpleNamespace(skip_boot=False, boot_memory_mb=None, boot_timeout_seconds=60, **folders),
        vm={"nics": []},
        facts=SimpleNamespace(nics=()),
        guest=guest,
        fix={"network_without_card": ["ens224"]},
        hardware=dict,
        ordered_images=list,
    )
    context: Any = {}
    assert ProveBootOperator.options(operator, context)["expect"]["networks"] == []
    operator.fix = None
    assert [one["name"] for one in ProveBootOperator.options(operator, context)["expect"]["networks"]] == ["ens224"]
