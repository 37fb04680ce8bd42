"""The guest's network configuration, read from whichever stack it has: names, MAC addresses, addresses, gateways."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable

from hyperflow.kvmhost.guest import netplan
from hyperflow.kvmhost.guest.files import GuestFiles, TooLarge, printable
from hyperflow.kvmhost.stage import Job

IFUPDOWN = "ifupdown"
NETPLAN = "netplan"
NETWORK_MANAGER = "NetworkManager"
NETWORKD = "networkd"
IFCFG = "ifcfg"
WICKED = "wicked"

NETPLAN_KINDS = ("ethernets", "bonds", "bridges", "vlans")

# What is read of a guest's network configuration; a guest with more is not configured by people. What is over a limit
# is told as a warning, and is left as it is.
MANY = 500  # files of one folder
FILE_LIMIT = 64 * 1024  # bytes of one file; one of netplan with a hundred interfaces has some 20 kB
FOLDER_LIMIT = 2 * 1024 * 1024  # characters of all files of one folder
LINE_LIMIT = 16 * 1024  # characters; a certificate in a file of NetworkManager has some 4,000
MOST = 1000  # interfaces
TOLD = 20  # warnings of files that were left; the next one says that there are more
NAME_LIMIT = 15  # characters of an interface's name: IFNAMSIZ with its zero is 16 bytes

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
# Names that udev or the kernel give to a network card; not bonds, bridges, VLANs, lo
_PHYSICAL = re.compile(r"(?:en[opsxPv]\w+|eth\d+|em\d+|p\d+p\d+\w*)")


# A part of a word as a shell reads it: plain, in either kind of quotes, or behind a backslash.
_WORD_PART = re.compile(r"([^ \t\r\n\"'\\#]+)|\"((?:[^\"\\]|\\.)*)\"|'([^']*)'|\\(.)", re.DOTALL)
_IN_QUOTES = re.compile(r"\\([\"\\])")


@dataclass
class Interface:
    """An interface as one file configures it.

    :param name: nothing where the file takes whatever card has the MAC address, or any card at all
    :param addresses: static ones that come up at boot, with prefix length where the file has one: ``192.0.2.10/24``
    :param file: the file in the guest
    :param starts: whether the file brings it up at boot
    """

    name: str
    stack: str
    file: str
    mac: str | None = None
    addresses: list[str] = field(default_factory=list)
    gateway: str | None = None
    starts: bool = True

    def as_json(self) -> dict[str, Any]:
        """The interface for a result."""
        keys = ("name", "mac", "addresses", "gateway", "stack", "file")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True)
class Configured:
    """What the guest's files say of interfaces.

    :param complete: whether every file was read and understood; what was not was told as a warning
    """

    interfaces: list[Interface]
    complete: bool


def is_physical(name: str) -> bool:
    """Whether a name is a network card's, so that another machine may name the card otherwise."""
    return len(name) <= NAME_LIMIT and _PHYSICAL.fullmatch(name) is not None


def mac_address(value: str | None) -> str | None:
    """Write a MAC address as the kernel does: lower case, with colons; None for what is none."""
    text = (value or "").strip().strip("\"'").lower().replace("-", ":")
    return text if _MAC.fullmatch(text) else None


def read(files: GuestFiles, job: Job) -> Configured:
    """Read all the stacks whose files there are, within limits; a file that is not understood is a warning."""
    found: list[Interface] = []
    reading = _Reading(files, job, "its interfaces are not in the result")
    for parse, paths, folder, pattern in _STACKS:
        for path, text in reading.texts(paths, folder, pattern):
            try:
                found += (one for one in parse(path, text) if one.name != "lo")
            except netplan.NotUnderstood as fault:
                reading.left(f"{path} in the guest: not understood at {fault}")
            if len(found) > MOST:
                del found[MOST:]
                reading.left(f"{path} in the guest: found more than {MOST} interfaces up to here")
                return Configured(found, complete=False)
    return Configured(found, reading.complete)


def ifupdown(path: str, text: str) -> list[Interface]:
    """Read /etc/network/interfaces: one interface however many ``iface`` stanzas it has."""
    found: dict[str, Interface] = {}
    starts: set[str] = set()
    ports: set[str] = set()  # what they are ports of brings them up
    current: Interface | None = None
    for line in text.replace("\\\n", " ").split("\n"):
        key, *rest = line.split() or [""]
        if not rest or key.startswith("#"):
            continue
        if key == "auto" or key.startswith("allow-"):
            starts.update(rest)
        elif key == "iface":
            name = rest[0].split(":")[0]  # ens192:0 is an alias of ens192
            current = found.setdefault(name, Interface(name, IFUPDOWN, path))
        elif key in ("bridge_ports", "bridge-ports", "bond-slaves", "slaves"):
            ports.update(rest)
            for name in filter(is_physical, rest):
                found.setdefault(name, Interface(name, IFUPDOWN, path))
        elif current is not None:
            _ifupdown_option(current, key, rest)
    for one in found.values():
        if one.name not in starts:
            one.addresses = []
            one.starts = one.name in ports
    return list(found.values())


def _ifupdown_option(interface: Interface, key: str, rest: list[str]) -> None:
    if key == "address":
        interface.addresses += _address(rest[0], "")
    elif key == "netmask" and interface.addresses:
        interface.addresses[-1:] = _with_mask(interface.addresses[-1], rest[0])
    elif key == "gateway" and interface.gateway is None:
        interface.gateway = rest[0]
    elif key == "hwaddress":
        interface.mac = mac_address(rest[-1])


def netplan_file(path: str, text: str) -> list[Interface]:
    """Read a netplan file.

    :raises netplan.NotUnderstood: when it is not plain YAML
    """
    network = _mapping(_mapping(netplan.read(text)).get("network"))
    found = []
    for kind in NETPLAN_KINDS:
        for key, value in _mapping(network.get(kind)).items():
            settings = _mapping(value)
            match = _mapping(settings.get("match"))
            name = _text(settings.get("set-name")) or _one_name(_text(match.get("name")) or "")
            if not name and (not match or is_physical(key)):  # with a match it is no more than a label
                name = str(key)
            one = Interface(name, NETPLAN, path, mac_address(_text(match.get("macaddress"))))
            for address in settings.get("addresses") or []:
                one.addresses += _address(next(iter(address), "") if isinstance(address, dict) else str(address), "")
            one.gateway = _text(settings.get("gateway4")) or _netplan_gateway(settings.get("routes"))
            found.append(one)
    return found


def keyfile(path: str, text: str) -> list[Interface]:
    """Read a connection of NetworkManager; one without an interface's name or MAC address applies to any."""
    sections = _ini(text)
    connection = sections.get("connection", [])
    name, mac = _last(connection, "interface-name"), mac_address(_last(sections.get("ethernet", []), "mac-address"))
    mac = mac or mac_address(_last(sections.get("802-3-ethernet", []), "mac-address"))
    if not name and not mac:
        return []
    one = Interface(name or "", NETWORK_MANAGER, path, mac)
    if _last(connection, "autoconnect").lower() in ("false", "no", "0"):
        one.starts = False
        return [one]
    for version in ("ipv4", "ipv6"):
        for key, value in sections.get(version, []):
            if re.fullmatch(r"address(?:es)?\d*", key):
                parts = [part.strip() for part in re.split(r"[,;]", value) if part.strip()]
                one.addresses += [found for part in parts if "/" in part for found in _address(part, "")]
                one.gateway = one.gateway or next((part for part in parts if "/" not in part), None)
            elif key == "gateway":
                one.gateway = one.gateway or value
    return [one]


def networkd(path: str, text: str) -> list[Interface]:
    """Read a .network file of systemd-networkd; one that matches any interface without a word is left out."""
    sections = _ini(text)
    match = sections.get("Match", [])
    mac = mac_address(_last(match, "MACAddress") or _last(match, "PermanentMACAddress"))
    name = _last(match, "Name")
    if not name and not mac:
        return []
    one = Interface(_one_name(name), NETWORKD, path, mac)
    for section in ("Network", "Address"):
        for key, value in sections.get(section, []):
            if key == "Address":
                one.addresses += _address(value, "")
    gateways = [
        value for section in ("Network", "Route") for key, value in sections.get(section, []) if key == "Gateway"
    ]
    one.gateway = next(iter(gateways), None)
    return [one]


def ifcfg(path: str, text: str, stack: str) -> list[Interface]:
    """Read an ifcfg file of RHEL (IPADDR with PREFIX or NETMASK) or SUSE (IPADDR=192.0.2.10/24)."""
    file_name = path.rsplit("/ifcfg-", 1)[1]
    if file_name.endswith(("~", ".bak", ".orig", ".rpmnew", ".rpmsave", ".rpmorig", ".old")):
        return []
    values: dict[str, str] = {}
    for line in text.split("\n"):
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            values[key] = first_word(value)
    name = (values.get("DEVICE") or file_name).split(":")[0]  # eth0:1 is an alias of eth0
    if stack == IFCFG and not values.get("DEVICE") and name != "lo" and not is_physical(name):
        name = ""  # NetworkManager's, named like its connection: Wired_connection_1
    mac = mac_address(values.get("HWADDR") or values.get("LLADDR"))
    one = Interface(name, stack, path, mac, gateway=values.get("GATEWAY") or None)
    starts = {values.get("ONBOOT", "yes").lower(), values.get("ONPARENT", "yes").lower()}  # the latter of an alias
    if "no" in starts or values.get("STARTMODE", "auto") in ("off", "manual"):
        one.starts = False
        return [one]
    for suffix in ("", *(f"{separator}{number}" for separator in ("", "_") for number in range(10))):
        address = values.get(f"IPADDR{suffix}", "")
        if address:
            mask = (
                values.get(f"PREFIX{suffix}") or values.get(f"PREFIXLEN{suffix}") or values.get(f"NETMASK{suffix}", "")
            )
            one.addresses += _address(address, mask)
    one.addresses += _address(values.get("IPV6ADDR", ""), "")
    return [one]


def first_word(text: str) -> str:
    """Read the first word as a shell does, without its quotes; all of the text where a quote has no end."""
    text = text.lstrip(" \t\r\n")
    parts: list[str] = []
    at = 0
    while at < len(text) and text[at] not in " \t\r\n#":
        match = _WORD_PART.match(text, at)
        if match is None:
            return text
        parts.append(match[1] or match[3] or match[4] or _IN_QUOTES.sub(r"\1", match[2] or ""))
        at = match.end()
    return "".join(parts)


_STACKS: tuple[tuple[Callable[[str, str], list[Interface]], Sequence[str], str, str], ...] = (
    (ifupdown, ["/etc/network/interfaces"], "/etc/network/interfaces.d", r"[\w.-]+"),
    (netplan_file, [], "/etc/netplan", r"[^\0/]*\.yaml"),
    (keyfile, [], "/etc/NetworkManager/system-connections", r"[^\0]*"),
    (networkd, [], "/etc/systemd/network", r"[^\0]*\.network"),
    (partial(ifcfg, stack=IFCFG), [], "/etc/sysconfig/network-scripts", r"ifcfg-[^\0]*"),
    (partial(ifcfg, stack=WICKED), [], "/etc/sysconfig/network", r"ifcfg-[^\0]*"),
)


def udev_names(files: GuestFiles, job: Job) -> dict[str, str]:
    """Names that the guest's own udev rules and .link files tie to a MAC address: name -> MAC address."""
    found = {}
    reading = _Reading(files, job, "the names that it gives are not known")
    for _, text in reading.texts([], "/etc/udev/rules.d", r"[^\0]*\.rules"):
        for line in text.replace("\\\n", " ").split("\n"):
            mac = re.search(r'ATTRS?\{address\}=="([^"]*)"', line)
            name = re.search(r'\bNAME=?="([^"%$]+)"', line)
            if mac and name and not line.lstrip().startswith("#") and mac_address(mac[1]):
                found[name[1]] = str(mac_address(mac[1]))
    for _, text in reading.texts([], "/etc/systemd/network", r"[^\0]*\.link"):
        sections = _ini(text)
        match = sections.get("Match", [])
        link_mac = mac_address(_last(match, "MACAddress") or _last(match, "PermanentMACAddress"))
        link_name = _last(sections.get("Link", []), "Name")
        if link_mac and link_name:
            found[link_name] = link_mac
    return found


class _Reading:
    """Reads files of configuration one by one, within the limits of this module, and warns of what it leaves.

    :param what: what is not known of a file that is left
    """

    def __init__(self, files: GuestFiles, job: Job, what: str) -> None:
        self._files = files
        self._job = job
        self._what = what
        self._left = 0

    @property
    def complete(self) -> bool:
        """Whether no file was left."""
        return not self._left

    def texts(self, paths: Sequence[str], folder: str, pattern: str) -> Iterator[tuple[str, str]]:
        """Read some files, then those of a folder whose names match; (path, text) of each."""
        every = [*paths, *(f"{folder}/{name}" for name in self._files.names(folder, pattern))]
        room = FOLDER_LIMIT
        for number, path in enumerate(every):
            if number == MANY:
                self.left(f"{path} in the guest and those behind it: found {len(every)} files, expected at most {MANY}")
                return
            try:
                text = self._files.read_text(path, FILE_LIMIT)
            except TooLarge as fault:
                self.left(str(fault))
                continue
            if text is None:
                continue
            room -= len(text)
            if room < 0:
                self.left(f"{path} in the guest and those behind it: found more than {FOLDER_LIMIT} bytes in {folder}")
                return
            longest = max(map(len, text.split("\n")))
            if longest > LINE_LIMIT:
                self.left(f"{path} in the guest: found a line of {longest} characters, expected at most {LINE_LIMIT}")
                continue
            yield path, text

    def left(self, fault: str) -> None:
        """Warn of a file that is left as it is, once however often it is read."""
        self._left += 1
        warning = f"{printable(fault)}; {self._what}"
        if self._left > TOLD:
            warning = f"network: more than {TOLD} files of the guest were left; {self._what}"
        if warning not in self._job.warnings:
            self._job.warn(warning)


def _address(value: str, mask: str) -> list[str]:
    """An address with its prefix length; nothing for what is no address, such as a variable or ``dhcp``.

    Without a mask it stays without: the guest's programs take that of the address' class, or others.
    """
    value = value.strip()
    try:
        if not mask and "/" not in value:
            return [str(ipaddress.ip_address(value))]
        return [ipaddress.ip_interface(f"{value}/{mask}" if "/" not in value else value).with_prefixlen]
    except ValueError:
        return []


def _with_mask(address: str, mask: str) -> list[str]:
    return _address(address.rsplit("/", 1)[0], mask) or [address]


def _ini(text: str) -> dict[str, list[tuple[str, str]]]:
    """Read sections with keys that may come more than once, as systemd and GLib write them."""
    sections: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for raw in text.split("\n"):
        line = raw.strip()
        if line.startswith("[") and line.endswith("]"):
            current = sections.setdefault(line[1:-1], [])
        elif line and line[0] not in "#;" and "=" in line:
            key, _, value = line.partition("=")
            current.append((key.strip(), value.strip()))
    return sections


def _last(pairs: Iterable[tuple[str, str]], key: str) -> str:
    return next((value for name, value in reversed(list(pairs)) if name == key), "")


def _one_name(text: str) -> str:
    """Give the name that a match is of; nothing where it is a pattern, or a list of names."""
    return "" if re.search(r"[*?\[!\s]", text) else text


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _netplan_gateway(routes: Any) -> str | None:
    for route in routes if isinstance(routes, list) else []:
        if isinstance(route, dict) and route.get("to") in ("default", "0.0.0.0/0"):
            return _text(route.get("via"))
    return None
