"""The guest's name: /etc/hostname and /etc/hosts."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any

from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles, printable
from hyperflow.kvmhost.stage import StageError

HOSTNAME, HOSTS = "/etc/hostname", "/etc/hosts"
OWN_ADDRESS = "127.0.1.1"  # Debian's address of the machine's own name; it harms nobody elsewhere
LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
NAME = re.compile(rf"{LABEL}(?:\.{LABEL})*")
NAME_LIMIT = 253  # characters of a host's name: hostname(7)


@dataclass(frozen=True)
class Hostname:
    """The name to give.

    :param hostname: without a domain
    :param domain: for the full name in /etc/hosts
    :param hosts: further lines of /etc/hosts: address -> names
    """

    hostname: str
    domain: str = ""
    hosts: dict[str, list[str]] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """List what must not be written."""
        found = []
        if not re.fullmatch(LABEL, self.hostname):
            found.append(f"hostname.hostname: found {self.hostname!r}, expected one label of a host name")
        if self.domain and not NAME.fullmatch(self.domain):
            found.append(f"hostname.domain: found {self.domain!r}, expected a domain")
        for address, names in self.hosts.items():
            if not is_address(address) or not names or not all(NAME.fullmatch(name) for name in names):
                found.append(f"hostname.hosts: found {address!r}: {names!r}, expected an address and host names")
        return found

    @property
    def names(self) -> list[str]:
        """The names of the machine as /etc/hosts has them: the full one first."""
        return [f"{self.hostname}.{self.domain}", self.hostname] if self.domain else [self.hostname]


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone's name would be text of any kind


def apply(files: GuestFiles, changes: Changes, wanted: Hostname) -> dict[str, Any]:
    """Write both files; what they say now.

    :raises StageError: when the guest keeps its name elsewhere
    """
    old = files.read_text(HOSTNAME)
    if old is None and not files.is_directory("/etc/systemd"):
        raise StageError(f"configuration.hostname: the guest has no {HOSTNAME} and no systemd, which would read it")
    before = (old or "").strip()
    changes.write(HOSTNAME, f"{wanted.hostname}\n")
    changes.write(HOSTS, hosts_text(files.read_text(HOSTS) or "", wanted, before))
    hosts = files.read_text(HOSTS) or ""
    missing = [f"{address} {name}" for address, name in _pairs(wanted) if name not in names_of(hosts, address)]
    found = (files.read_text(HOSTNAME) or "").strip()
    if found != wanted.hostname or missing:
        raise StageError(f"configuration.hostname: reads back as {found!r}, and {HOSTS} without {missing}")
    return {"before": printable(before), "hostname": found, "hosts": printable(hosts)}


def hosts_text(text: str, wanted: Hostname, before: str) -> str:
    """Write /etc/hosts anew: the machine's own name in place of the old one, further lines where they are missing.

    :param before: the old name; it goes away on the machine's own addresses only
    """
    lines = []
    # an /etc/hostname with several words, or with megabytes, is no name that /etc/hosts would have
    is_name = len(before) <= NAME_LIMIT and before.split() == [before] and before not in ("localhost", wanted.hostname)
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if words[:1] == [OWN_ADDRESS]:
            continue
        own = bool(words) and is_address(words[0]) and ipaddress.ip_address(words[0]).is_loopback
        if own and is_name:
            line = _without(line, before)  # noqa: PLW2901 - the line as it is kept
            if len(line.split()) == 1:
                continue
        lines.append(line)
    place = next((number + 1 for number, line in enumerate(lines) if line.split()[:1] == ["127.0.0.1"]), 0)
    lines.insert(place, " ".join([OWN_ADDRESS, *wanted.names]))
    for address, names in wanted.hosts.items():
        known = names_of("\n".join(lines), address)
        new = [name for name in names if name not in known]
        if new:
            lines.append(" ".join([address, *new]))
    return "\n".join(lines) + "\n"


def names_of(text: str, address: str) -> list[str]:
    """Read the names that /etc/hosts gives an address."""
    lines = (line.split("#", 1)[0].split() for line in text.splitlines())
    return [name for words in lines if words[:1] == [address] for name in words[1:]]


def _pairs(wanted: Hostname) -> list[tuple[str, str]]:
    further = [(address, name) for address, names in wanted.hosts.items() for name in names]
    return [*((OWN_ADDRESS, name) for name in wanted.names), *further]


def _without(line: str, name: str) -> str:
    """Take a name, and the full name that begins with it, off a line of a loopback address."""
    # a run of blanks is tried at its first one only: at each of them a line of megabytes would take for ever
    return re.sub(rf"(?<![ \t])[ \t]+{re.escape(name)}(?:\.[^\s#]*)?(?=[\s#]|$)", "", line)
