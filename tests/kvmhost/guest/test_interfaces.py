"""Network configuration is read from every stack a guest may have."""

from __future__ import annotations

import pytest
from hyperflow.kvmhost.guest import interfaces, netplan, network
from hyperflow.kvmhost.guest.interfaces import Interface
from hyperflow.kvmhost.guest.network import Nic

IFUPDOWN = """source /etc/network/interfaces.d/*
auto lo
iface lo inet loopback
allow-hotplug ens192
iface ens192 inet static
\taddress 192.0.2.10
\tnetmask 255.255.255.0
\tgateway 192.0.2.1
iface ens192 inet6 static
\taddress 2001:db8::10/64
iface ens224 inet static
\taddress 198.51.100.7/24
auto br0
iface br0 inet dhcp
\tbridge_ports ens256 \\
\t  ens161
"""

NETPLAN = """# This is the network config written by 'subiquity'
network:
  version: 2
  ethernets:
    ens192:
      addresses:
      - 192.0.2.10/24
      - "2001:db8::10/64": {label: "web"}
      nameservers: {addresses: [192.0.2.1, 192.0.2.2], search: []}
      routes:
      - to: default
        via: 192.0.2.1
    lan:
      match:
        macaddress: "00:50:56:9A:10:02"
      set-name: eth7
      dhcp4: true
  bonds:
    bond0: {interfaces: [ens224, ens256], addresses: [198.51.100.7/24]}
"""

KEYFILE = """[connection]
id=ens192
uuid=1
type=ethernet
interface-name=ens192

[ethernet]
mac-address=00:50:56:9A:10:01

[ipv4]
address1=192.0.2.10/24,192.0.2.1
dns=192.0.2.1;
method=manual
"""

NETWORKD = """[Match]
Name=ens192

[Network]
Address=192.0.2.10/24
Address=2001:db8::10/64
Gateway=192.0.2.1
DNS=192.0.2.1
"""
IFCFG = """TYPE="Ethernet"
BOOTPROTO=none
DEVICE=ens192
HWADDR=00:50:56:9A:10:01
ONBOOT=yes
IPADDR=192.0.2.10
PREFIX=24
GATEWAY=192.0.2.1
"""
WICKED = "BOOTPROTO='static'\nSTARTMODE='auto'\nIPADDR='192.0.2.10/24'\n"


def test_ifupdown_is_read_with_masks_aliases_and_ports_of_bridges() -> None:
    found = {one.name: one for one in interfaces.ifupdown("/etc/network/interfaces", IFUPDOWN)}
    assert found["ens192"].addresses == ["192.0.2.10/24", "2001:db8::10/64"]
    assert found["ens192"].gateway == "192.0.2.1"
    assert found["ens224"].addresses == [], "nothing brings it up at boot"
    assert {"ens256", "ens161"} <= found.keys()


def test_netplan_is_read_with_lists_flow_style_and_matches() -> None:
    found = {one.name: one for one in interfaces.netplan_file("/etc/netplan/00.yaml", NETPLAN)}
    assert found["ens192"].addresses == ["192.0.2.10/24", "2001:db8::10/64"]
    assert found["ens192"].gateway == "192.0.2.1"
    assert found["eth7"].mac == "00:50:56:9a:10:02"
    assert found["bond0"].addresses == ["198.51.100.7/24"]


@pytest.mark.parametrize("text", ["a: &x 1\n", "a: |\n  b\n", "a: [1,\n 2]\n", "\ta: 1\n", "a\n", "a: 1\n  b: 2\n"])
def test_yaml_that_is_more_than_netplan_needs_is_refused_and_not_misread(text: str) -> None:
    with pytest.raises(netplan.NotUnderstood):
        netplan.read(text)


def test_deep_nesting_ends_with_an_error() -> None:
    with pytest.raises(netplan.NotUnderstood):
        netplan.read("\n".join(" " * level + "a:" for level in range(500)))
    with pytest.raises(netplan.NotUnderstood):
        netplan.read("a: " + "[" * 3000 + "]" * 3000)


def test_keyfiles_of_network_manager_are_read() -> None:
    (one,) = interfaces.keyfile("/etc/NetworkManager/system-connections/ens192.nmconnection", KEYFILE)
    assert (one.name, one.mac, one.addresses, one.gateway) == (
        "ens192",
        "00:50:56:9a:10:01",
        ["192.0.2.10/24"],
        "192.0.2.1",
    )


def test_files_of_systemd_networkd_are_read() -> None:
    (one,) = interfaces.networkd("/etc/systemd/network/10.network", NETWORKD)
    assert (one.name, one.addresses, one.gateway) == ("ens192", ["192.0.2.10/24", "2001:db8::10/64"], "192.0.2.1")


def test_ifcfg_files_of_red_hat_and_suse_are_read() -> None:
    (red_hat,) = interfaces.ifcfg("/etc/sysconfig/network-scripts/ifcfg-ens192", IFCFG, interfaces.IFCFG)
    assert (red_hat.name, red_hat.mac, red_hat.addresses) == ("ens192", "00:50:56:9a:10:01", ["192.0.2.10/24"])
    (suse,) = interfaces.ifcfg("/etc/sysconfig/network/ifcfg-eth0", WICKED, interfaces.WICKED)
    assert (suse.name, suse.addresses) == ("eth0", ["192.0.2.10/24"])
    assert interfaces.ifcfg("/etc/sysconfig/network/ifcfg-eth0.rpmsave", WICKED, interfaces.WICKED) == []


def test_the_only_interface_belongs_to_the_only_card() -> None:
    naming = network.assign([Interface("ens192", "ifupdown", "f")], [Nic("00:50:56:9A:10:01")], {})
    assert naming == network.Naming((("ens192", "00:50:56:9a:10:01"),), ())


def test_cards_are_counted_as_vmware_numbers_its_slots() -> None:
    found = [Interface(name, "ifupdown", "f") for name in ("ens161", "ens224", "ens192", "lo", "bond0", "ens192.7")]
    naming = network.assign(found, [Nic(f"00:50:56:00:00:0{number}") for number in range(3)], {})
    assert naming.pairs == (
        ("ens192", "00:50:56:00:00:00"),
        ("ens224", "00:50:56:00:00:01"),
        ("ens161", "00:50:56:00:00:02"),
    )
    assert naming.doubts


def test_what_the_guest_says_of_mac_addresses_comes_before_the_order() -> None:
    found = [Interface("ens192", "ifcfg", "f", mac="00:50:56:00:00:02"), Interface("ens224", "ifcfg", "f")]
    naming = network.assign(found, [Nic("00:50:56:00:00:01"), Nic("00:50:56:00:00:02")], {})
    assert dict(naming.pairs) == {"ens192": "00:50:56:00:00:02", "ens224": "00:50:56:00:00:01"}


def test_addresses_that_vmware_tools_saw_tell_which_card_is_which() -> None:
    found = [
        Interface("ens192", "i", "f", addresses=["192.0.2.1/24"]),
        Interface("ens224", "i", "f", addresses=["192.0.2.2/24"]),
    ]
    naming = network.assign(
        found, [Nic("00:50:56:00:00:01", ["192.0.2.2"]), Nic("00:50:56:00:00:02", ["192.0.2.1"])], {}
    )
    assert dict(naming.pairs) == {"ens192": "00:50:56:00:00:02", "ens224": "00:50:56:00:00:01"}
    assert naming.doubts == ()


def test_more_interfaces_than_cards_is_a_doubt_and_no_crash() -> None:
    naming = network.assign(
        [Interface(f"eth{number}", "i", "f") for number in range(3)], [Nic("00:50:56:00:00:01")], {}
    )
    assert naming.pairs == (("eth0", "00:50:56:00:00:01"),)
    assert naming.doubts


def test_the_link_file_matches_the_card_and_not_what_borrows_its_address() -> None:
    text = network.link_file("ens192", "00:50:56:9a:10:01")
    assert "[Match]\nMACAddress=00:50:56:9a:10:01\nDriver=virtio_net\n" in text
    assert "[Link]\nName=ens192\n" in text
