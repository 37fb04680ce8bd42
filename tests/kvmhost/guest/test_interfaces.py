"""Network configuration is read from every stack a guest may have."""

from __future__ import annotations

import shlex

import pytest
from hyperflow.kvmhost.guest import interfaces, netplan, network
from hyperflow.kvmhost.guest.interfaces import Interface
from hyperflow.kvmhost.guest.network import Nic
from hyperflow.kvmhost.stage import Job, StageError
from hypothesis import given
from hypothesis import strategies as st

from tests.kvmhost.guest.memory import guest

MEGABYTES = 4 << 20

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


SCRIPTS = "/etc/sysconfig/network-scripts/ifcfg-"
STATIC = "IPADDR=192.0.2.11\nPREFIX=24\n"


@pytest.mark.parametrize(
    ("path", "text", "name", "mac"),
    [
        (f"{SCRIPTS}eth0:1", f"DEVICE=eth0:1\n{STATIC}", "eth0", None),
        (f"{SCRIPTS}Wired_connection_1", f"HWADDR=00:50:56:9A:10:01\n{STATIC}", "", "00:50:56:9a:10:01"),
        (f"{SCRIPTS}Wired_connection_1", STATIC, "", None),
        (f"{SCRIPTS}ens192", STATIC, "ens192", None),
        ("/etc/sysconfig/network/ifcfg-bond0", STATIC, "bond0", None),
        ("/etc/systemd/network/a.network", "[Match]\nName=en*\n[Network]\nAddress=192.0.2.11/24\n", "", None),
        ("/etc/systemd/network/a.network", "[Match]\nName=en1 en2\n[Network]\nAddress=192.0.2.11/24\n", "", None),
    ],
)
def test_a_file_that_names_no_interface_names_none(path: str, text: str, name: str, mac: str | None) -> None:
    (found,) = interfaces.read(guest({path: text}), Job("inspect")).interfaces
    assert (found.name, found.mac, found.addresses) == (name, mac, ["192.0.2.11/24"])


@pytest.mark.parametrize(
    ("label", "match", "name"),
    [
        ("lan0", 'match: {macaddress: "00:50:56:9A:10:01"}, ', ""),
        ("ens192", 'match: {macaddress: "00:50:56:9A:10:01"}, ', "ens192"),
        ("lan0", 'match: {macaddress: "00:50:56:9A:10:01"}, set-name: lan7, ', "lan7"),
        ("all", 'match: {name: "en*"}, ', ""),
        ("all", "match: {name: ens192}, ", "ens192"),
        ("lan0", "", "lan0"),
    ],
)
def test_with_a_match_the_id_of_netplan_is_a_label_and_no_name(label: str, match: str, name: str) -> None:
    text = f"network: {{ethernets: {{{label}: {{{match}addresses: [192.0.2.11/24]}}}}}}\n"
    (found,) = interfaces.netplan_file("/etc/netplan/a.yaml", text)
    assert (found.name, found.addresses) == (name, ["192.0.2.11/24"])


def test_an_alias_that_does_not_start_with_its_interface_has_no_address() -> None:
    (found,) = interfaces.ifcfg(f"{SCRIPTS}eth0:1", f"DEVICE=eth0:1\nONPARENT=no\n{STATIC}", interfaces.IFCFG)
    assert (found.addresses, found.starts) == ([], False)


@pytest.mark.parametrize(
    ("path", "text", "address"),
    [
        (f"{SCRIPTS}eth0", "DEVICE=eth0\nIPADDR=192.0.2.11\n", "192.0.2.11"),
        (f"{SCRIPTS}eth0", "DEVICE=eth0\nIPV6ADDR=2001:DB8::11\n", "2001:db8::11"),
        ("/etc/network/interfaces", "auto eth0\niface eth0 inet static\naddress 192.0.2.11\n", "192.0.2.11"),
        (f"{SCRIPTS}eth0", "DEVICE=eth0\nIPADDR=192.0.2.11\nPREFIX=32\n", "192.0.2.11/32"),
        (f"{SCRIPTS}eth0", "DEVICE=eth0\nIPADDR=192.0.2.11\nNETMASK=255.255.255.0\n", "192.0.2.11/24"),
    ],
)
def test_an_address_without_a_mask_is_told_without_one(path: str, text: str, address: str) -> None:
    (found,) = interfaces.read(guest({path: text}), Job("inspect")).interfaces
    assert found.addresses == [address]


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


def test_a_card_that_a_profile_takes_by_its_mac_address_is_not_given_a_name_of_another_profile() -> None:
    found = [Interface("", "NetworkManager", "a", "00:50:56:00:00:01"), Interface("ens224", "NetworkManager", "b")]
    naming = network.assign(found, [Nic("00:50:56:00:00:01"), Nic("00:50:56:00:00:02")], {})
    assert naming == network.Naming((("ens224", "00:50:56:00:00:02"),), ())
    one_card = network.assign(found, [Nic("00:50:56:00:00:01")], {})
    assert one_card.pairs == (("ens224", "00:50:56:00:00:01"),), "both profiles are of the only card"


def test_an_address_that_several_cards_have_tells_nothing_of_them() -> None:
    found = [Interface("ens192", "i", "f", addresses=["192.0.2.1/24"]), Interface("ens224", "i", "f")]
    cards = [Nic(f"00:50:56:00:00:0{number}", ["192.0.2.1/24"]) for number in (1, 2)]
    assert network.assign(found, cards, {}) == network.assign(found, [Nic(card.mac) for card in cards], {})


ONLY = Nic("00:50:56:00:00:01")
STARTS_NOT = [
    ("/etc/sysconfig/network-scripts/ifcfg-ens32", "DEVICE=ens32\nONBOOT=no\nBOOTPROTO=dhcp\n"),
    ("/etc/sysconfig/network/ifcfg-ens32", "STARTMODE='off'\n"),
    ("/etc/NetworkManager/system-connections/a", "[connection]\ninterface-name=ens32\nautoconnect=false\n"),
    ("/etc/network/interfaces", "iface ens32 inet dhcp\n"),
]


@pytest.mark.parametrize(("path", "text"), STARTS_NOT)
def test_a_card_that_is_gone_and_does_not_start_leaves_its_place_to_the_one_that_is_there(path: str, text: str) -> None:
    files = {path: text, "/etc/netplan/a.yaml": "network: {ethernets: {ens192: {dhcp4: true}}}\n"}
    found = interfaces.read(guest(files), Job("fix")).interfaces
    naming = network.assign(found, [ONLY], {})
    assert naming.pairs == (("ens192", ONLY.mac),)
    assert naming.doubts[0].startswith("ens32 were given to no network card")


def test_what_starts_not_has_its_name_where_there_is_a_card_for_it() -> None:
    found = [Interface("ens192", "i", "f", starts=False), Interface("ens224", "i", "f")]
    naming = network.assign(found, [ONLY, Nic("00:50:56:00:00:02")], {})
    assert dict(naming.pairs) == {"ens192": ONLY.mac, "ens224": "00:50:56:00:00:02"}


def test_a_port_of_a_bridge_starts_with_it() -> None:
    starts = {one.name: one.starts for one in interfaces.ifupdown("/etc/network/interfaces", IFUPDOWN)}
    assert starts == {"lo": True, "ens192": True, "ens224": False, "br0": True, "ens256": True, "ens161": True}


@pytest.mark.parametrize("old", ["ens32", "eth0", "enp0s3"])
def test_of_more_names_than_cards_those_of_vmwares_slots_are_meant(old: str) -> None:
    naming = network.assign([Interface(name, "i", "f") for name in (old, "ens192")], [ONLY], {})
    assert naming.pairs == (("ens192", ONLY.mac),)
    assert naming.doubts[0].startswith(f"{old} were given to no network card")


def test_of_more_names_than_cards_the_kernels_are_meant_where_udev_gives_none() -> None:
    found = [Interface(name, "i", "f") for name in ("eth0", "ens192")]
    assert network.assign(found, [ONLY], {}, kernel_names=True).pairs == (("eth0", ONLY.mac),)


@pytest.mark.parametrize("names", [("eth0", "eth1"), ("ens33", "ens34"), ("ens192", "ens224", "eth0")])
def test_names_that_nothing_tells_apart_are_not_guessed(names: tuple[str, ...]) -> None:
    with pytest.raises(StageError, match="there are 1 network cards left for them: it is not known"):
        network.assign([Interface(name, "i", "f") for name in names], [ONLY], {})


def gone(seen: list[str], *configured: Interface, fixed: dict[str, str] | None = None) -> tuple[str, ...]:
    return network.assign(configured, [Nic(ONLY.mac, seen)], fixed or {}).gone


def test_a_name_is_of_a_card_that_is_gone_when_every_card_certainly_has_another() -> None:
    here = Interface("ens192", "i", "f", addresses=["192.0.2.10/24"])
    left = Interface("ens224", "i", "f", addresses=["198.51.100.5/24"])
    assert gone(["192.0.2.10"], here, left) == ("ens224",)
    assert gone(["192.0.2.10", "198.51.100.5"], here, left, fixed={"ens192": ONLY.mac}) == (), "it was seen on the card"
    assert gone([], left, fixed={"eth0": ONLY.mac}) == (), "a rule was left over, of a name that nothing configures"
    by_mac = Interface("eth0", "i", "f", mac=ONLY.mac)
    assert gone([], by_mac, here) == (), "a card may have two names, of which the other one has the address"
    assert gone(["198.51.100.7"], by_mac, here) == ("ens192",), "the card had another address"
    guessed = Interface("eth0", "i", "f", addresses=["198.51.100.5/24"])
    assert gone([], here, guessed) == (), "the boot shows whether the guess holds"


def test_a_name_too_many_does_no_harm_where_every_card_has_its_own() -> None:
    found = [Interface("ens192", "i", "f", mac=ONLY.mac), Interface("ens224", "i", "f"), Interface("eth0", "i", "f")]
    naming = network.assign(found, [ONLY], {})
    assert naming.pairs == (("ens192", ONLY.mac),)
    assert naming.doubts


def test_the_link_file_matches_the_card_and_not_what_borrows_its_address() -> None:
    text = network.link_file("ens192", "00:50:56:9a:10:01")
    assert "[Match]\nMACAddress=00:50:56:9a:10:01\nDriver=virtio_net\n" in text
    assert "[Link]\nName=ens192\n" in text


def test_a_guest_with_less_known_names_than_cards_is_not_named_by_an_order_that_may_be_another() -> None:
    nics = [Nic("00:50:56:00:00:01"), Nic("00:50:56:00:00:02")]
    naming = network.assign([Interface("ens224", "i", "f")], nics, {}, complete=False)
    assert naming.pairs == ()
    assert "ens224 were given to no network card: not all files" in naming.doubts[0]
    one_card = network.assign([Interface("ens224", "i", "f")], nics[:1], {}, complete=False)
    assert one_card.pairs == (("ens224", "00:50:56:00:00:01"),), "there is no other card that it could be"


def test_a_key_in_front_of_megabytes_of_blanks_is_read_at_once() -> None:
    with pytest.raises(netplan.NotUnderstood):
        netplan.read("a" + " " * MEGABYTES + "x")
    assert netplan.read("a" + " " * MEGABYTES + ": b") == {"a": "b"}
    assert netplan.read("a" + ": " * (MEGABYTES // 2))


def test_hundreds_of_thousands_of_lines_of_netplan_are_read_at_once() -> None:
    assert len(netplan.read("".join(f"a{number}: b\n" for number in range(200_000)))) == 200_000
    assert netplan.read("- a\n" * 200_000) == ["a"] * 200_000
    assert netplan.read("- a: b\n  c: d\n" * 100_000) == [{"a": "b", "c": "d"}] * 100_000


def test_a_line_that_is_not_understood_is_not_told_at_full_length() -> None:
    with pytest.raises(netplan.NotUnderstood) as fault:
        netplan.read("*" * MEGABYTES)
    assert len(str(fault.value)) < 200


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        ("a: b", ("a", "b")),
        ("a :", ("a", "")),
        ('"a: b" : c', ("a: b", "c")),
        ("2001:db8::1/64: {label: x}", ("2001:db8::1/64", "{label: x}")),
        ("a:b", None),
        ('"a" b: c', None),
        ('"a', None),
        ("a#b: c", None),
        ("[a: b", None),
        ("a", None),
    ],
)
def test_the_colon_behind_a_key_is_the_first_with_a_blank_behind_it(line: str, pair: tuple[str, str] | None) -> None:
    assert netplan._key(line) == pair


def test_megabytes_of_words_and_quotes_are_read_at_once() -> None:
    assert interfaces.first_word("a" * MEGABYTES) == "a" * MEGABYTES
    assert interfaces.first_word("''a" * 300_000) == "a" * 300_000
    assert interfaces.first_word('"' + "a" * MEGABYTES) == '"' + "a" * MEGABYTES, "a quote without its end"


@given(st.text(alphabet="ab \t\"'\\#\u00e9", max_size=12))
def test_a_value_is_read_as_a_shell_reads_its_first_word(text: str) -> None:
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        return
    assert interfaces.first_word(text) == (words[0] if words else "")


def test_a_name_with_megabytes_of_digits_is_no_cards_and_ends_nothing() -> None:
    assert not interfaces.is_physical("p1p" + "1" * MEGABYTES + "!")
    found = interfaces.ifupdown("f", "auto eth0\niface eth" + "1" * 5000 + " inet dhcp\n")
    assert network.assign(found, [Nic("00:50:56:00:00:01")], {}).pairs == ()


GOOD = "network: {ethernets: {ens192: {addresses: [192.0.2.10/24]}}}\n"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (
            GOOD + "#" * interfaces.FILE_LIMIT,
            f"found {len(GOOD) + interfaces.FILE_LIMIT} bytes, expected at most 65536",
        ),
        (GOOD + "#" * 20_000, "found a line of 20000 characters, expected at most 16384"),
        ("a" + " " * 10_000 + "x", "not understood at the line 'a   "),
    ],
)
def test_a_file_over_a_limit_is_a_warning_and_the_others_are_read(bad: str, why: str) -> None:
    job = Job("inspect")
    found = interfaces.read(guest({"/etc/netplan/a.yaml": bad, "/etc/netplan/b.yaml": GOOD}), job)
    assert [one.file for one in found.interfaces] == ["/etc/netplan/b.yaml"]
    assert not found.complete
    (warning,) = job.warnings
    assert warning.startswith(f"/etc/netplan/a.yaml in the guest: {why}")
    assert warning.endswith("; its interfaces are not in the result")


def test_a_guest_within_the_limits_is_complete() -> None:
    job = Job("inspect")
    found = interfaces.read(guest({"/etc/netplan/b.yaml": GOOD, "/etc/network/interfaces": IFUPDOWN}), job)
    assert (found.complete, job.warnings) == (True, [])
    assert {one.name for one in found.interfaces} == {"ens192", "ens224", "ens256", "ens161", "br0"}


def test_a_folder_of_hostile_files_is_read_no_further_than_its_limit_and_never_all_at_once() -> None:
    files = {f"/etc/netplan/{number:03}.yaml": GOOD + ("#\n" * 30_000) for number in range(500)}
    files["/etc/sysconfig/network/ifcfg-eth0"] = WICKED
    there, job = guest(files), Job("inspect")
    found = interfaces.read(there, job)
    assert len(there.handle.asked) <= interfaces.FOLDER_LIMIT // 60_000 + 3
    assert found.interfaces[-1].name == "eth0", "another folder is read whatever this one holds"
    (warning,) = job.warnings
    assert "034.yaml in the guest and those behind it: found more than 2097152 bytes in /etc/netplan" in warning


def test_more_files_than_are_read_are_told() -> None:
    job = Job("inspect")
    found = interfaces.read(guest({f"/etc/netplan/{number:03}.yaml": GOOD for number in range(501)}), job)
    assert (len(found.interfaces), found.complete) == (500, False)
    (warning,) = job.warnings
    assert warning.startswith("/etc/netplan/500.yaml in the guest and those behind it: found 501 files")


def test_more_interfaces_than_a_person_configures_are_told() -> None:
    job = Job("inspect")
    text = "".join(f"iface x{number} inet dhcp\n" for number in range(1500))
    found = interfaces.read(guest({"/etc/network/interfaces": text}), job)
    assert (len(found.interfaces), found.complete) == (interfaces.MOST, False)
    (warning,) = job.warnings
    assert "/etc/network/interfaces in the guest: found more than 1000 interfaces" in warning


def test_a_folder_full_of_faults_does_not_fill_the_log() -> None:
    job = Job("inspect")
    files = guest({f"/etc/netplan/{number:03}.yaml": "*" for number in range(400)})
    interfaces.read(files, job)
    interfaces.read(files, job)
    assert len(job.warnings) == interfaces.TOLD + 1, "and a second reading says nothing again"


def test_rules_of_udev_over_a_limit_are_told() -> None:
    rule = 'SUBSYSTEM=="net", ATTR{address}=="00:50:56:00:00:01", NAME="ens192"\n'
    job = Job("fix")
    files = {"/etc/udev/rules.d/70-net.rules": rule, "/etc/udev/rules.d/99.rules": rule * 1000}
    assert interfaces.udev_names(guest(files), job) == {"ens192": "00:50:56:00:00:01"}
    (warning,) = job.warnings
    assert "99.rules in the guest: found 68000 bytes" in warning


def test_a_name_of_a_rule_with_thousands_of_digits_ends_nothing() -> None:
    mac = "00:50:56:00:00:01"
    assert network.assign([], [Nic(mac)], {"eth" + "1" * 5000: mac}).pairs == (("eth" + "1" * 5000, mac),)
