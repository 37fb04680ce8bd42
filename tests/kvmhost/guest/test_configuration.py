"""The texts of a guest's configuration: what is written where, and that writing it again changes nothing."""

from __future__ import annotations

import re

import pytest
from hyperflow.kvmhost.guest import addresses, configuration, hostname, users
from hyperflow.kvmhost.guest.addresses import Interface, Network
from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.configuration import Configuration
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.guest.hostname import Hostname
from hyperflow.kvmhost.guest.interfaces import ifupdown
from hyperflow.kvmhost.guest.interfaces import keyfile as read_keyfile
from hyperflow.kvmhost.guest.services import Services
from hyperflow.kvmhost.guest.users import User
from hyperflow.kvmhost.stage import BadRequest, Job, StageError

HASH = "$6$saltsalt$" + "a" * 86
PASSWD = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n"
INTERFACES = """\
# the admin's own
source /etc/network/interfaces.d/*
auto lo ens192 ens224
iface lo inet loopback
iface ens192 inet static
    address 10.0.0.5
    # an old note
    up ip route add 10.9.0.0/16 via 10.0.0.9
iface ens192:0 inet static
    address 10.0.0.6
allow-hotplug ens224
iface ens224 inet dhcp
"""


def test_the_old_name_leaves_the_machines_own_addresses_and_no_others() -> None:
    old = "127.0.0.1 localhost web.example.org web\n127.0.1.1 web\n::1 ip6-localhost web # here\n10.0.0.9 web web-old\n"
    wanted = Hostname("app01", "example.com", {"192.0.2.7": ["db", "db.example.com"], "10.0.0.9": ["web"]})
    new = hostname.hosts_text(old, wanted, "web")
    assert new.splitlines() == [
        "127.0.0.1 localhost",
        "127.0.1.1 app01.example.com app01",
        "::1 ip6-localhost # here",
        "10.0.0.9 web web-old",
        "192.0.2.7 db db.example.com",
    ]
    assert hostname.hosts_text(new, wanted, "app01") == new


def test_an_interface_of_ifupdown_is_replaced_and_everything_else_stays() -> None:
    wanted = Interface(addresses=["192.0.2.10/24", "2001:db8::10/64"], gateway="192.0.2.1", dns=["192.0.2.53"])
    new = (
        addresses.without_interface(INTERFACES, "ens192").rstrip() + "\n\n" + addresses.stanzas("ens192", wanted, True)
    )
    found = {one.name: one for one in ifupdown("interfaces", new)}
    assert sorted(found["ens192"].addresses) == ["192.0.2.10/24", "2001:db8::10/64"]
    assert found["ens192"].gateway == "192.0.2.1"
    assert "10.0.0.5" not in new
    assert "10.0.0.6" not in new, "an alias of the interface goes with it"
    assert "10.9.0.0" not in new
    assert "# the admin's own\nsource /etc/network/interfaces.d/*\nauto lo ens224\n" in new
    assert "allow-hotplug ens224\niface ens224 inet dhcp\n" in new
    assert new.count("dns-nameservers 192.0.2.53") == 1
    again = addresses.without_interface(new, "ens192").rstrip() + "\n\n" + addresses.stanzas("ens192", wanted, True)
    assert again == new


def test_a_profile_of_networkmanager_reads_back_as_it_was_meant() -> None:
    wanted = Interface(addresses=["192.0.2.10/24"], gateway="192.0.2.1", dns=["192.0.2.53", "2001:db8::53"])
    text = addresses.keyfile("ens192", wanted)
    (read,) = read_keyfile("ens192.nmconnection", text)
    assert (read.name, read.addresses, read.gateway) == ("ens192", ["192.0.2.10/24"], "192.0.2.1")
    assert "dns=192.0.2.53;\n" in text
    assert "[ipv4]\nmethod=auto\n" in addresses.keyfile("ens192", Interface(dhcp=True))


def test_a_new_user_gets_the_number_after_the_highest_of_people() -> None:
    assert users.free_id(PASSWD) == 1001
    assert users.free_id(PASSWD, "docker:x:1001:\n") == 1002
    assert users.free_id("root:x:0:0::/:/bin/sh\n") == 1000
    assert users.free_id("last:x:59999:1::/:/bin/sh\nann:x:1000:1000::/:/bin/sh\n") == 1001


def test_a_line_goes_before_those_of_nis() -> None:
    assert users.with_line("root:x:0:0::/:/bin/sh\n+::::::\n", "x") == "root:x:0:0::/:/bin/sh\nx\n+::::::\n"


def test_a_hash_replaces_the_old_one_and_setting_it_again_changes_nothing() -> None:
    shadow = "root:*:19000:0:99999:7:::\nann:$6$old$x:19000:0:99999:7:::\n"
    new = users.with_password(shadow, "ann", HASH)
    assert new.startswith("root:*:19000:0:99999:7:::\nann:" + HASH + ":")
    assert users.with_password(new.replace(new.split(":")[-7], "19001"), "ann", HASH).split(":")[-7] == "19001"
    with pytest.raises(StageError, match=r"configuration.users.bob: found no line"):
        users.with_password(shadow, "bob", HASH)


def test_a_key_is_named_as_ssh_keygen_names_it() -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1lZ2VudGx5T2ZUaGVMYWJzT3duS2V5Rm9yVGVzdHMx me"
    assert users.fingerprint(key) == "SHA256:PfRaEHjAVRaPo9Gjh34QfeZGVCauK4mpsnk6kpOr7aE"  # by ssh-keygen -lf


class NoFiles:
    """What guestfs answers about a guest that has nothing."""

    def is_file(self, path: str, followsymlinks: bool) -> bool:
        return False

    def is_dir(self, path: str, followsymlinks: bool) -> bool:
        return False


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Configuration(services=Services(enable=["ssh"])), "configuration.services: the guest has no systemctl"),
        (Configuration(users={"a": User(sudo="nopasswd")}), "the guest has no sudo; install it in the source VM"),
        (Configuration(users={"a": User()}), "configuration.users: the guest has no /etc/passwd"),
        (Configuration(network=Network({"e": Interface(dhcp=True)})), "found neither ifupdown nor NetworkManager"),
        (Configuration(hostname=Hostname("a")), "has no /etc/hostname and no systemd"),
    ],
)
def test_what_a_guest_cannot_have_is_refused_by_name(wanted: Configuration, said: str) -> None:
    files = GuestFiles(NoFiles())
    with pytest.raises(StageError, match=re.escape(said)):
        configuration.apply(files, Changes(files, True, "/kept"), wanted, Job("fix"))


def test_the_stage_refuses_hostile_values_itself_all_of_them_at_once() -> None:
    wanted = Configuration(
        users={"a\nroot2": User(), "b": User(ssh_keys=["ssh-rsa AAAA\nx"], password_hash="x:0:", sudo="ALL")},
        services=Services(enable=["../x"], disable=["a"], mask=["a.service"]),
        hostname=Hostname("a\nb", "c d", {"1.2.3.4%\n": ["x"]}),
        network=Network({"../e": Interface(addresses=["10.0.0.1/24\nup x"]), "f": Interface()}),
    )
    with pytest.raises(BadRequest) as refused:
        configuration.check(wanted)
    for word in (
        r"users: found 'a\nroot2'",
        "users.b.password_hash",
        "users.b.ssh_keys",
        "users.b.sudo: found 'ALL'",
        "services.enable: found '../x'",
        "found a unit in two lists",
        "hostname.hostname",
        "hostname.domain",
        "hostname.hosts",
        "network.interfaces: found '../e'",
        "network.interfaces.../e: found what is no address",
        "network.interfaces.f: expected either dhcp or addresses",
    ):
        assert word in str(refused.value)
    assert "x:0:" not in str(refused.value), "what may be a password is not repeated"


def test_megabytes_of_blanks_in_etc_hosts_are_read_at_once() -> None:
    line = "127.0.0.1" + " " * (4 << 20) + "localhost"
    assert line in hostname.hosts_text(line, Hostname("app01"), "web")
    assert hostname.hosts_text("127.0.0.1 " + "web  " * 9 + "a", Hostname("app01"), "web").startswith("127.0.0.1  a\n")


def test_megabytes_in_etc_hostname_are_no_name_to_look_for() -> None:
    hosts = "127.0.0.1 localhost\n" * 100_000
    assert hosts in hostname.hosts_text(hosts + "127.0.0.1 x\n", Hostname("app01"), "x" * (4 << 20)).replace(
        "127.0.1.1 app01\n", ""
    )


@pytest.mark.parametrize("number", ["9" * 5000, "\u00b2", "-1", ""])
def test_what_is_no_number_of_a_user_ends_nothing(number: str) -> None:
    line = f"bob:x:{number}:1::/home/bob:/bin/sh\n"
    assert users.account(line, "bob") is None
    assert users.free_id(PASSWD, line) == 1001
