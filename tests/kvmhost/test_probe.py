"""What the probe says is read as it was said, and every difference to what was expected is told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost.probe import evidence

SCRIPT = Path(evidence.__file__).with_name("hyperflow-probe.sh")
NONCE = "0123456789abcdef"
MAC = "00:50:56:9a:10:01"
COME_AND_GO = ("hftest", "vnet")  # interfaces of test_start.py, and of the domains of tests that work beside this one


def lines(facts: dict[str, str], nonce: str = NONCE) -> bytes:
    """Say facts as the probe does."""
    said = {"begin": "", **facts, "end": ""}
    return "".join(f"hyperflow-probe {nonce} {key} {value.encode().hex()}\n" for key, value in said.items()).encode()


def observed(**changes: str) -> dict[str, Any]:
    facts = {
        "state": "running",
        "root": 'SOURCE="/dev/vda1" UUID="aaaa-bbbb" FSTYPE="ext4"',
        "mounts": 'TARGET="/srv/my\\x20data" SOURCE="/dev/vdb1" FSTYPE="ext4" UUID="cccc"\n'
        'TARGET="/proc" SOURCE="proc" FSTYPE="proc" UUID=""',
        "nic": f"ens192\n{MAC}\nvirtio_net\nup",
        "addresses": "1: lo    inet 127.0.0.1/8 scope host lo\n"
        "2: ens192    inet 192.0.2.10/24 brd 192.0.2.255 scope global",
        **changes,
    }
    (report,) = evidence.Reader(NONCE).feed(lines(facts))
    return evidence.read(report)


@pytest.mark.parametrize("options", ["noauto,user", "defaults,x-systemd.automount,x-systemd.idle-timeout=60"])
def test_what_is_mounted_when_somebody_asks_for_it_is_not_expected(options: str) -> None:
    wanted = {"mounts": [{"path": "/mnt/backup", "uuid": "b", "options": options}]}
    assert evidence.differences(observed(), wanted, []) == []


@pytest.mark.parametrize("options", ["defaults", "nofail", "rw,noautodefrag"])
def test_what_a_boot_mounts_is_expected(options: str) -> None:
    wanted = {"mounts": [{"path": "/mnt/backup", "uuid": "b", "options": options}]}
    assert evidence.differences(observed(), wanted, []) == ["/mnt/backup: found nothing mounted, expected b"]


def test_a_slash_at_the_end_of_a_path_means_nothing() -> None:
    wanted = {"mounts": [{"path": "/srv/my data/", "uuid": "cccc"}]}
    assert evidence.differences(observed(), wanted, []) == []


@pytest.mark.parametrize(("found", "kind"), [("ext4", "ext3"), ("fuseblk", "ntfs")])
def test_a_file_system_is_known_by_its_uuid_and_not_by_the_driver_that_mounts_it(found: str, kind: str) -> None:
    mounts = f'TARGET="/data" SOURCE="/dev/vdb1" FSTYPE="{found}" UUID="cccc"\n'
    wanted = {"mounts": [{"path": "/data", "uuid": "cccc", "fstype": kind}]}
    assert evidence.differences(observed(mounts=mounts), wanted, []) == []


def several(*nics: str, **facts: str) -> dict[str, Any]:
    """Read what a guest with these interfaces says: name, MAC address, driver, state, MAC address before a bond."""
    said = [f"hyperflow-probe {NONCE} nic {nic.encode().hex()}\n".encode() for nic in nics]
    begin, *rest = lines(facts).splitlines(keepends=True)
    (report,) = evidence.Reader(NONCE).feed(b"".join([begin, *said, *rest]))
    return evidence.read(report)


def expectation(**changes: Any) -> dict[str, Any]:
    return {
        "root": {"uuid": "AAAA-BBBB", "device": "/dev/sda1"},
        "networks": [{"name": "ens192", "mac": MAC.upper(), "addresses": ["192.0.2.10/24"]}],
        "mounts": [{"path": "/srv/my data", "uuid": "cccc"}],
        **changes,
    }


def test_a_guest_as_expected_has_no_differences() -> None:
    assert evidence.differences(observed(), expectation(), [MAC]) == []


@pytest.mark.parametrize(
    ("facts", "expected", "difference"),
    [
        ({"root": 'SOURCE="/dev/vdb1" UUID="dddd" FSTYPE="ext4"'}, {}, "/: found /dev/vdb1 with UUID dddd"),
        ({"nic": f"enp1s0\n{MAC}\nvirtio_net\nup"}, {}, "found it named enp1s0, expected ens192"),
        ({"addresses": ""}, {}, "found no address, expected 192.0.2.10/24"),
        ({"nic": f"ens192\n{MAC}\ne1000\nup"}, {}, "found e1000, expected the driver virtio_net"),
        ({"nic": "ens224\n00:00:00:00:00:01\nvirtio_net\nup"}, {}, "found none, expected it with 192.0.2.10/24"),
        ({"mounts": ""}, {}, "/srv/my data: found nothing mounted"),
        ({}, {"mounts": [{"path": "/srv/my data", "uuid": "eeee"}]}, "found uuid cccc, expected eeee"),
    ],
)
def test_every_difference_is_told(facts: dict[str, str], expected: dict[str, Any], difference: str) -> None:
    found = evidence.differences(observed(**facts), expectation(**expected), [MAC])

    assert any(difference in one for one in found), found


LEASE = {"networks": [], "leases": [MAC]}


def test_an_interface_that_had_its_address_by_dhcp_must_be_given_one() -> None:
    assert evidence.differences(observed(), expectation(**LEASE), [MAC]) == []
    only_ipv6 = observed(addresses="2: ens192    inet6 fec0::5054:ff:fe12:3456/64 scope site")
    for found in (only_ipv6, observed(addresses="")):
        (told,) = evidence.differences(found, expectation(**LEASE), [MAC])
        assert told == f"interface {MAC}: found no IPv4 address, expected one by DHCP, as the source had"


@pytest.mark.parametrize(
    "card", [f"ens192\n{MAC}\nvirtio_net\nup", f"ens192\n02:00:00:00:00:01\nvirtio_net\nup\n{MAC}"]
)
def test_a_bridge_or_a_bond_has_the_address_of_its_card(card: str) -> None:
    master = card.split("\n")[1]
    found = several(card, f"br0\n{master}\n\nup", addresses="3: br0    inet 10.0.2.15/24 scope global dynamic")
    wanted = {"leases": [MAC]}
    assert evidence.differences(found, wanted, [MAC]) == []


def test_an_address_on_a_bond_is_found_by_its_name_though_the_device_has_the_mac_too() -> None:
    found = several(
        f"ens192\n{MAC}\nvirtio_net\nup",
        f"bond0\n{MAC}\n\nup",
        addresses="3: bond0    inet 192.0.2.10/24 scope global",
    )
    wanted = {"networks": [{"name": "bond0", "mac": None, "addresses": ["192.0.2.10/24"]}]}

    assert evidence.differences(found, wanted, [MAC]) == []


def test_cards_of_a_bond_are_told_apart_by_the_address_that_each_had_before_it() -> None:
    other = MAC[:-1] + "2"
    cards = [f"ens192\n{MAC}\nvirtio_net\nup\n{MAC}", f"ens224\n{MAC}\nvirtio_net\nup\n{other}"]
    found = several(*cards, f"bond0\n{MAC}\n\nup", addresses="4: bond0    inet 192.0.2.10/24 scope global")
    wanted = {
        "networks": [
            {"name": "bond0", "mac": MAC, "addresses": ["192.0.2.10/24"]},
            {"name": "ens224", "mac": other, "addresses": []},
        ]
    }
    assert evidence.differences(found, wanted, [MAC, other]) == []


def test_names_that_were_swapped_are_told_though_each_has_its_address() -> None:
    other = MAC[:-1] + "2"
    found = several(
        f"ens192\n{other}\nvirtio_net\nup",
        f"ens224\n{MAC}\nvirtio_net\nup",
        addresses="2: ens192    inet 192.0.2.10/24 scope global\n3: ens224    inet 198.51.100.7/24 scope global",
    )
    wanted = [
        {"name": "ens192", "mac": MAC, "addresses": ["192.0.2.10/24"]},
        {"name": "ens224", "mac": other, "addresses": ["198.51.100.7/24"]},
    ]
    assert evidence.differences(found, {"networks": wanted}, [MAC, other]) == [
        f"interface ens192 {MAC}: found ens192 on {other}, and {MAC} on ens224",
        f"interface ens224 {other}: found ens224 on {MAC}, and {other} on ens192",
    ]


def test_a_mac_address_that_the_guest_gives_its_card_itself_is_no_difference() -> None:
    found = several("ens192\n02:00:00:00:00:01\nvirtio_net\nup")
    wanted = {"networks": [{"name": "ens192", "mac": MAC, "addresses": []}]}
    assert evidence.differences(found, wanted, []) == []


ANY = {"name": "", "mac": None}


@pytest.mark.parametrize(
    ("network", "difference"),
    [
        ({**ANY, "addresses": ["192.0.2.10/24"]}, None),
        ({**ANY, "addresses": ["192.0.2.1/24"]}, "address 192.0.2.1/24: found it on no interface, expected it on one"),
        ({"name": "", "mac": MAC, "addresses": ["192.0.2.10/24"]}, None),
        ({"name": "ens192", "mac": None, "addresses": ["192.0.2.10"]}, None),
        (
            {"name": "ens192", "mac": None, "addresses": ["192.0.2.1"]},
            "interface ens192: found 192.0.2.10/24, expected 192.0.2.1",
        ),
        (
            {"name": "ens192", "mac": None, "addresses": ["192.0.2.10/32"]},
            "interface ens192: found 192.0.2.10/24, expected 192.0.2.10/32",
        ),
    ],
)
def test_an_address_is_expected_as_far_as_the_guests_files_tell_of_it(
    network: dict[str, Any], difference: str | None
) -> None:
    found = evidence.differences(observed(), {"networks": [network]}, [MAC])
    assert found == ([] if difference is None else [difference])


def test_a_report_arrives_in_any_pieces_and_between_other_lines() -> None:
    data = b"[   12.3] kernel says\n" + lines({"state": "degraded", "kernel": "6.1.0\n"}) + b"web01 login: "
    reader = evidence.Reader(NONCE)
    reports = [report for index in range(len(data)) for report in reader.feed(data[index : index + 1])]

    assert [evidence.read(report)["state"] for report in reports] == ["degraded"]
    assert evidence.read(reports[0])["kernel"] == "6.1.0"


def test_another_nonce_and_a_torn_report_are_no_reports() -> None:
    reader = evidence.Reader(NONCE)

    assert reader.feed(lines({"state": "running"}, nonce="ff")) == []
    assert reader.feed(lines({"state": "running"}).partition(b" end ")[0]) == []


def test_a_guest_that_never_stops_talking_does_not_fill_the_memory() -> None:
    reader = evidence.Reader(NONCE)
    for _ in range(8):
        reader.feed(b"x" * evidence.STREAM_LIMIT)

    assert reader.feed(b"\n" + lines({"state": "running"})) != []


def test_the_probe_says_what_this_very_machine_is(tmp_path: Path) -> None:
    # The functions of the script itself, with this machine's own programs, without its endless loop.
    script = SCRIPT.read_text().partition("\nwhile :")[0] + "\nreport running\n"
    (tmp_path / "probe").write_text(script)
    said = subprocess.run(["sh", str(tmp_path / "probe"), NONCE], capture_output=True, check=True).stdout

    (report,) = evidence.Reader(NONCE).feed(said)
    found = evidence.read(report)

    assert found["kernel"] == os.uname().release
    assert found["hostname"] == os.uname().nodename
    assert found["uptime_seconds"] > 0
    assert found["root_device"]["device"]
    there = set(os.listdir("/sys/class/net")) - {"lo"}  # noqa: PTH208
    told = {nic["name"] for nic in found["nics"]}
    assert {name for name in told if not name.startswith(COME_AND_GO)} == {
        name for name in there if not name.startswith(COME_AND_GO)
    }
