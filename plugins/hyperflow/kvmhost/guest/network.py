"""Interfaces keep their names on virtio: a .link file of systemd for each, matched by its MAC address."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.guest.interfaces import Interface, is_physical, mac_address
from hyperflow.kvmhost.stage import Job, StageError

LINK_FOLDER = "/etc/systemd/network"
RULES = "/etc/udev/rules.d/70-persistent-net.rules"  # where there is no systemd
UDEVD = ("/usr/lib/systemd/systemd-udevd", "/lib/systemd/systemd-udevd", "/usr/bin/udevadm", "/bin/udevadm")
SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
DRIVER = "virtio_net"

# The numbers that ESXi gives the PCI slots of network cards, in the order in which the cards were added: the guest
# calls them ens192, ens224, ...
VMWARE_SLOTS = (160, 192, 224, 256, 161, 193, 225, 257, 162, 194, 226, 258)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # IFNAMSIZ with its zero is 16 bytes
# A stack that takes an interface by its driver: systemd-networkd (Driver=), netplan (driver:)
_BY_DRIVER = re.compile(r"^([ \t]*(?:Driver=|driver:[ \t]*)[\"']?)(?:vmxnet3|vmxnet|e1000e?|pcnet32|flexible)\b", re.M)


@dataclass(frozen=True)
class Nic:
    """An interface of the target's hardware, in the source's order.

    :param addresses: what VMware Tools saw on it, where known; it tells which name is whose
    """

    mac: str
    addresses: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Naming:
    """Which interface is which.

    :param pairs: (name in the guest, MAC address)
    :param doubts: what was assumed, for a person
    :param gone: names that the guest configures, which are certainly of cards that it has no more
    """

    pairs: tuple[tuple[str, str], ...]
    doubts: tuple[str, ...]
    gone: tuple[str, ...] = ()


def assign(
    interfaces: Sequence[Interface],
    nics: Sequence[Nic],
    fixed: dict[str, str],
    complete: bool = True,
    kernel_names: bool = False,
) -> Naming:
    """Tell which of the guest's interface names belongs to which network card.

    What the guest's files say about MAC addresses comes first, then addresses, then the order: names sorted as
    VMware numbers its slots, cards in the order of the VM. A guest may configure cards that it had once: where there
    are more names than cards, those that do not start at boot and those of another kind are left out.

    :param fixed: names that the guest's udev rules and .link files tie to a MAC address
    :param complete: whether these are all interfaces that the guest configures. Where they are not, and there are more
        cards than names, the order tells nothing: a name that is not known may be the first card's
    :param kernel_names: whether the guest's kernel names the cards itself: eth0, eth1, ...
    :raises StageError: when it is not known which of its names are of cards that are there
    """
    macs = [mac for nic in nics for mac in [mac_address(nic.mac)] if mac]
    found: dict[str, str] = {name: mac for name, mac in fixed.items() if mac in macs}
    doubts = []
    gone: tuple[str, ...] = ()
    for one in interfaces:
        if one.name and one.mac in macs and one.name not in found and is_physical(one.name):
            found[one.name] = str(one.mac)
    by_address: dict[str, set[str]] = {}  # several cards have one address on isolated networks
    for nic in nics:
        for address in nic.addresses:
            by_address.setdefault(_bare(address), set()).add(str(mac_address(nic.mac)))
    for one in interfaces:
        hits = set().union(*(by_address.get(_bare(address), set()) for address in one.addresses)) & set(macs)
        if is_physical(one.name) and one.name not in found and len(hits) == 1 and not hits & set(found.values()):
            found[one.name] = hits.pop()
    names = sorted({one.name for one in interfaces if is_physical(one.name) and one.name not in found}, key=slot_order)
    free = [mac for mac in macs if mac not in found.values()]
    if len(names) > len(free) > 0:
        there = _of_cards(names, len(free), interfaces, kernel_names)
        old = ", ".join(name for name in names if name not in there)
        doubts.append(f"{old} were given to no network card: the guest configures more interfaces than it has cards")
        names = there
    free = _left_for(names, free, interfaces)
    if not complete and names and len(free) > len(names):
        doubts.append(
            f"{', '.join(names)} were given to no network card: not all files of the guest were read, so the order of "
            f"{len(free)} cards tells nothing; see after the boot how the interfaces are named"
        )
        names = []
    elif len(names) > len(free):
        doubts.append(f"the guest configures {', '.join(names)}, and there are {len(free)} network cards left for them")
        gone = _gone(names, found, interfaces, nics)
    elif len(names) > 1 or (names and len(free) > len(names)):
        doubts.append(
            f"{', '.join(names)} were given to network cards in VMware's order; the boot shows whether that holds"
        )
    found.update(zip(names, free))
    return Naming(tuple(sorted(found.items(), key=lambda pair: slot_order(pair[0]))), tuple(doubts), gone)


def _of_cards(names: list[str], count: int, interfaces: Sequence[Interface], kernel_names: bool) -> list[str]:
    """Find the names of the cards that are there; the others are of cards that are gone.

    :param count: of the cards that have no name yet
    :raises StageError: when nothing tells them apart
    """
    start = {one.name for one in interfaces if one.starts}
    there = [name for name in names if name in start]
    if len(there) <= count:
        return there
    there = [name for name in there if (name.startswith("eth") if kernel_names else _is_vmware_slot(name))]
    if len(there) == count:
        return there
    raise StageError(
        f"network: the guest configures {', '.join(names)}, and there are {count} network cards left for them: it "
        "is not known whose names these are; remove the configuration of cards that are gone from the source VM"
    )


def _gone(
    names: Sequence[str], found: Iterable[str], interfaces: Sequence[Interface], nics: Sequence[Nic]
) -> tuple[str, ...]:
    """Tell which names are certainly of no card, where every card has another that the guest configures.

    A card whose addresses nobody has seen, and for whose name there are none in the files, may be known to the guest by
    two names, of which the other one has the address: then nothing is certain.

    :param found: the names of the cards
    """
    starting = {one.name for one in interfaces if one.starts}
    with_address = {one.name for one in interfaces if one.starts and one.addresses}
    if not set(found) <= (starting if all(nic.addresses for nic in nics) else with_address):
        return ()
    seen = {_bare(address) for nic in nics for address in nic.addresses}  # whatever the files say, it is of a card
    there = {one.name for one in interfaces if not set(map(_bare, one.addresses)).isdisjoint(seen)}
    return tuple(name for name in names if name not in there)


def _left_for(names: Sequence[str], free: list[str], interfaces: Sequence[Interface]) -> list[str]:
    """Leave out cards that a profile takes by their MAC address without a name, unless the names need them all.

    A card may have both: a profile that some installer made for its MAC address, and one that a person made by name.
    """
    by_mac = {one.mac for one in interfaces if one.mac and not is_physical(one.name)}
    others = [mac for mac in free if mac not in by_mac]
    return others if len(others) >= len(names) else free


def slot_order(name: str) -> tuple[int, int, str]:
    """Sort names as VMware adds cards: ens192 before ens224 before ens161, eth0 before eth1."""
    match = re.search(r"(\d{1,9})", name)
    number = int(match[1]) if match else 0
    if _is_vmware_slot(name):
        return 1, VMWARE_SLOTS.index(number), name
    return 0, number, name


def _is_vmware_slot(name: str) -> bool:
    return any(name == f"ens{number}" for number in VMWARE_SLOTS)


def link_path(name: str) -> str:
    """Where the .link file of an interface goes; 10 is before the distribution's own."""
    return f"{LINK_FOLDER}/10-hyperflow-{name}.link"


def link_file(name: str, mac: str) -> str:
    """Write a .link file.

    The driver is matched too: VLANs, bridges and teams take the MAC address of their card, and would get its name.
    """
    return (
        "# by hyperflow: the interface keeps the name that it had on VMware\n"
        f"[Match]\nMACAddress={mac}\nDriver={DRIVER}\n\n[Link]\nName={name}\n"
    )


def udev_rule(name: str, mac: str) -> str:
    """Write the rule that does the same where udev reads no .link files."""
    match = f'SUBSYSTEM=="net", ACTION=="add", DRIVERS=="{DRIVER}", ATTR{{address}}=="{mac}", ATTR{{type}}=="1"'
    return f'{match}, NAME="{name}"\n'


def keep_names(
    files: GuestFiles, changes: Changes, interfaces: Sequence[Interface], naming: Naming, job: Job
) -> list[dict[str, str | None]]:
    """Write the files that name the interfaces; what was written, read back.

    :return: for each interface ``name``, ``mac``, ``link`` (or ``rule``), and the configuration that uses it
    """
    for doubt in naming.doubts:
        job.warn(f"network: {doubt}")
    has_links = files.first(SYSTEMD) is not None and files.first(UDEVD) is not None
    written: list[dict[str, str | None]] = []
    rules = (files.read_text(RULES) or "") if not has_links else ""
    for name, mac in naming.pairs:
        if not _NAME.fullmatch(name) or name in (".", ".."):
            job.warn(f"network: {name!r} is no name for an interface; it is left to the guest")
            continue
        configured = next((one.file for one in interfaces if one.name == name), None)
        if has_links:
            changes.write(link_path(name), link_file(name, mac))
        elif udev_rule(name, mac) not in rules:
            rules += udev_rule(name, mac)
            changes.write(RULES, rules)
        written.append(
            {"name": name, "mac": mac, "link": link_path(name) if has_links else RULES, "configuration": configured}
        )
    _follow_driver(files, changes, {one.file for one in interfaces})
    return written


def _follow_driver(files: GuestFiles, changes: Changes, paths: Iterable[str]) -> None:
    """Let configurations that take the interface by VMware's driver take virtio's."""
    for path in sorted(paths):
        text = files.read_text(path)
        if text is not None and _BY_DRIVER.search(text):
            changes.write(path, _BY_DRIVER.sub(lambda match: match[1] + DRIVER, text))


def _bare(address: str) -> str:
    return address.split("/", 1)[0].lower()
