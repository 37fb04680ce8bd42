"""Addresses of the guest's interfaces, in the two stacks whose files leave no doubt: ifupdown and NetworkManager."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any

from hyperflow.kvmhost.guest import interfaces
from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.guest.hostname import is_address
from hyperflow.kvmhost.stage import Job, StageError

IFUPDOWN = "/etc/network/interfaces"
KEYFILES = "/etc/NetworkManager/system-connections"
RESOLV = "/etc/resolv.conf"
PRIORITY = 999  # of NetworkManager's profiles for an interface the highest is taken, and 999 is the most
MARK = "# by hyperflow"
_STANZA = ("iface", "auto", "mapping", "source", "source-directory", "rename", "no-auto-down", "no-scripts")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")


@dataclass(frozen=True)
class Interface:
    """How an interface gets its addresses: dhcp, or addresses with their prefix lengths."""

    dhcp: bool = False
    addresses: list[str] = field(default_factory=list)
    gateway: str = ""
    dns: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Network:
    """The interfaces to set, by name."""

    interfaces: dict[str, Interface]

    def faults(self) -> list[str]:
        """List what must not be written."""
        found = []
        for name, one in self.interfaces.items():
            plain = [*one.dns, *([one.gateway] if one.gateway else [])]
            if not _NAME.fullmatch(name):
                found.append(f"network.interfaces: found {name!r}, expected the name of an interface")
            if one.dhcp == bool(one.addresses):
                found.append(f"network.interfaces.{name}: expected either dhcp or addresses")
            if not all(is_address(text) for text in plain) or not all(_has_prefix(text) for text in one.addresses):
                found.append(f"network.interfaces.{name}: found what is no address, expected IP addresses")
        return found


def apply(files: GuestFiles, changes: Changes, wanted: Network, job: Job) -> list[dict[str, Any]]:
    """Write the interfaces' configuration; what is read of it afterwards.

    :raises StageError: a stack in which this cannot be done yet, or what does not read back
    """
    if _stack(files) == interfaces.IFUPDOWN:
        written = dict.fromkeys(wanted.interfaces, IFUPDOWN)
        for name, one in wanted.interfaces.items():
            _write_ifupdown(files, changes, name, one)
        _set_name_servers(files, changes, [server for one in wanted.interfaces.values() for server in one.dns], job)
    else:
        written = {name: f"{KEYFILES}/hyperflow-{name}.nmconnection" for name in wanted.interfaces}
        for name, one in wanted.interfaces.items():
            changes.write(written[name], keyfile(name, one), 0o600)
    found = {(one.name, one.file): one for one in interfaces.read(files, job).interfaces}
    observed = []
    for name, one in wanted.interfaces.items():
        read = found.get((name, written[name]))
        addresses = {ipaddress.ip_interface(text).with_prefixlen for text in one.addresses}
        if read is None or set(read.addresses) != addresses or (read.gateway or "") != one.gateway:
            raise StageError(f"configuration.network: {name} reads back as {read and read.as_json()}")
        observed.append({**read.as_json(), "dhcp": one.dhcp})
    return observed


def _stack(files: GuestFiles) -> str:
    if files.names("/etc/netplan", r"[^\0/]*\.yaml"):
        raise StageError(
            "configuration.network: the guest uses netplan; only ifupdown and NetworkManager can be set yet"
        )
    if files.is_file(IFUPDOWN) and files.program("ifup"):
        return interfaces.IFUPDOWN
    if files.program("NetworkManager"):
        return interfaces.NETWORK_MANAGER
    raise StageError("configuration.network: found neither ifupdown nor NetworkManager in the guest")


def _write_ifupdown(files: GuestFiles, changes: Changes, name: str, one: Interface) -> None:
    for path in [f"{IFUPDOWN}.d/{file}" for file in files.names(f"{IFUPDOWN}.d", r"[\w.-]+")]:
        text = files.read_text(path)
        if text is not None and without_interface(text, name) != text:
            changes.write(path, without_interface(text, name))
    kept = without_interface(files.read_text(IFUPDOWN) or "", name)
    resolvconf = files.program("resolvconf") is not None
    changes.write(IFUPDOWN, f"{kept.rstrip()}\n\n{stanzas(name, one, resolvconf)}")


def _set_name_servers(files: GuestFiles, changes: Changes, servers: list[str], job: Job) -> None:
    """Set the name servers of a guest with ifupdown; resolvconf takes them out of the interface's stanza."""
    if not servers or files.program("resolvconf") is not None:
        return
    if files.handle.is_symlink(RESOLV):
        job.warn(f"network: {RESOLV} is a link to what another program writes, so the name servers are not set")
        return
    others = [line for line in (files.read_text(RESOLV) or "").splitlines() if line.split()[:1] != ["nameserver"]]
    changes.write(RESOLV, "\n".join([*others, *(f"nameserver {server}" for server in servers)]) + "\n")


def stanzas(name: str, one: Interface, resolvconf: bool) -> str:
    """Write an interface for ifupdown, a stanza for each address."""
    lines = [f"{MARK}: {name}", f"auto {name}"]
    if one.dhcp:
        return "\n".join([*lines, f"iface {name} inet dhcp"]) + "\n"
    gateway = ipaddress.ip_address(one.gateway).version if one.gateway else 0
    for text in one.addresses:
        version = ipaddress.ip_interface(text).version
        lines += [f"iface {name} {'inet' if version == 4 else 'inet6'} static", f"    address {text}"]
        if version == gateway:
            lines.append(f"    gateway {one.gateway}")
            gateway = 0
        if one.dns and resolvconf:
            lines.append(f"    dns-nameservers {' '.join(one.dns)}")
            resolvconf = False
    return "\n".join(lines) + "\n"


def without_interface(text: str, name: str) -> str:
    """Take an interface's stanzas, and our mark, out of a file of ifupdown; all else stays."""
    kept, inside = [], False
    for line in text.splitlines():
        words = line.split()
        key = words[0] if words else ""
        if key in _STANZA or key.startswith("allow-"):
            inside = key == "iface" and words[1:2] != [] and words[1].split(":")[0] == name
            if (key == "auto" or key.startswith("allow-")) and name in words[1:]:
                rest = [word for word in words[1:] if word != name]
                if not rest:
                    continue
                line = " ".join([key, *rest])  # noqa: PLW2901 - the line as it is kept
        if line != f"{MARK}: {name}" and (not inside or key.startswith("#")):
            kept.append(line)
    return "\n".join(kept) + "\n"


def keyfile(name: str, one: Interface) -> str:
    """Write an interface as a profile of NetworkManager."""
    lines = [MARK, "[connection]", f"id=hyperflow-{name}", "type=ethernet", f"interface-name={name}"]
    lines += ["autoconnect=true", f"autoconnect-priority={PRIORITY}"]
    for version in (4, 6):
        own = [text for text in one.addresses if ipaddress.ip_interface(text).version == version]
        servers = [text for text in one.dns if ipaddress.ip_address(text).version == version]
        lines += [
            "",
            f"[ipv{version}]",
            f"method={'manual' if own else 'auto' if one.dhcp or version == 6 else 'disabled'}",
        ]
        lines += [f"address{number}={text}" for number, text in enumerate(own, 1)]
        if one.gateway and ipaddress.ip_address(one.gateway).version == version:
            lines.append(f"gateway={one.gateway}")
        if servers:
            lines.append("dns=" + "".join(f"{server};" for server in servers))
    return "\n".join(lines) + "\n"


def _has_prefix(text: str) -> bool:
    address, _, prefix = text.partition("/")
    if not is_address(address) or not prefix.isdigit():
        return False
    return int(prefix) <= ipaddress.ip_address(address).max_prefixlen
