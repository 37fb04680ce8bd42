"""What libvirt on this host has: domains, networks, and which of the domains are ours."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import stat
import xml.etree.ElementTree as ET
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperflow.kvmhost import commands
from hyperflow.kvmhost.stage import StageError

NAMESPACE = "urn:hyperflow:migration:1"  # of our element in a domain's metadata
NAME = re.compile(r"[^\s/\-][^/]{0,199}")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
OFF, GONE = "shut off", "gone"  # states of a domain
LIMIT = 60.0  # seconds a call of virsh may take
ADDRESS_SOURCES = ("lease", "agent", "arp")  # libvirt's own DHCP, the guest's word, what this host has heard


@dataclass(frozen=True)
class Domain:
    """A domain as libvirt keeps it: ``vm`` and ``run`` are our metadata, empty in domains of others."""

    name: str
    uuid: str
    macs: tuple[str, ...]
    vm: str
    run: str
    xml: str


def virsh(uri: str, *arguments: str) -> str:
    """Run virsh and return what it printed.

    :raises StageError: with virsh's own message
    """
    try:
        done = commands.run(
            ["virsh", "--quiet", "--connect", uri, *arguments],
            stdin=commands.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as fault:
        raise StageError("no virsh; install libvirt-clients (Debian, Ubuntu) or libvirt-client (RHEL)") from fault
    except commands.TimeoutExpired as fault:
        raise StageError(f"libvirt at {uri} did not answer within {LIMIT:.0f} s; is libvirtd well?") from fault
    if done.returncode != 0:
        message = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise StageError(f"virsh {arguments[0]}: {message.replace('error: ', '')}")
    return str(done.stdout)


def addresses_of(uri: str, uuid: str, macs: Collection[str]) -> dict[str, str]:
    """Ask libvirt which IPv4 addresses a running domain has, as a guest with DHCP got them on this side.

    :param macs: the domain's own; what a guest agent says of others, such as of containers in the guest, is left out
    :return: address -> MAC; nothing when nobody knows any
    """
    found: dict[str, str] = {}
    for source in ADDRESS_SOURCES:
        try:
            rows = virsh(uri, "domifaddr", uuid, "--full", "--source", source).splitlines()
        except StageError:  # no agent in it, or a libvirt that does not know the source
            continue
        for row in rows:
            fields = row.split()
            if len(fields) != 4 or fields[2] != "ipv4" or fields[1].lower() not in macs:
                continue
            with contextlib.suppress(ValueError):  # the agent's words are the guest's
                found.setdefault(str(ipaddress.IPv4Address(fields[3].partition("/")[0])), fields[1].lower())
    return found


def every_domain(uri: str) -> list[Domain]:
    """Read all domains, running or not."""
    found = []
    for uuid in virsh(uri, "list", "--all", "--uuid").split():
        try:
            found.append(read_domain(virsh(uri, "dumpxml", "--inactive", uuid)))
        except StageError:
            if state_of(uri, uuid) != GONE:  # somebody undefined it between the two calls
                raise
    return found


def find(uri: str, uuid: str) -> Domain | None:
    """Read one domain, with as many calls on a host of a thousand as on one of two; None where there is none.

    :param uuid: in lower case; what is none names no domain
    """
    if not UUID.fullmatch(uuid):
        return None
    try:
        domain = read_domain(virsh(uri, "dumpxml", "--inactive", uuid))
    except StageError:
        if state_of(uri, uuid) != GONE:
            raise
        return None
    return domain if domain.uuid == uuid else None  # virsh takes it for a name, too


def state_of(uri: str, uuid: str, *, reason: bool = False) -> str:
    """Tell a domain's state in libvirt's words, ``running``, ``shut off`` and others; ``gone`` when it is not there.

    :param reason: with libvirt's word for why, as ``shut off (crashed)``
    """
    try:
        return virsh(uri, "domstate", *(["--reason"] if reason else []), uuid).strip()
    except StageError:
        if uuid in virsh(uri, "list", "--all", "--uuid").split():
            raise
        return GONE


def read_domain(text: str) -> Domain:
    """Read the XML of a domain."""
    root = ET.fromstring(text)  # noqa: S314 - it comes from libvirt, which parsed and wrote it itself
    ours = root.find(f"metadata/{{{NAMESPACE}}}migration")
    return Domain(
        name=root.findtext("name") or "",
        uuid=(root.findtext("uuid") or "").lower(),
        macs=tuple(nic.get("address", "").lower() for nic in root.findall("devices/interface/mac")),
        vm="" if ours is None else ours.get("vm", ""),
        run="" if ours is None else ours.get("run", ""),
        xml=text,
    )


def why_left(uri: str, domain: Domain, vm: str, run: str | None) -> str | None:
    """Say why a domain that is to go is left: it is another's, an earlier run's, or people may already use it.

    :param vm: whose it must be
    :param run: the run that must have defined it; None for any
    :return: None when it may be undefined
    """
    if domain.vm != vm or not vm:
        return f"found it defined for {domain.vm or 'nobody known'}, expected {vm}"
    if run and domain.run != run:
        return f"found it defined by the run {domain.run}, expected {run}"
    if state_of(uri, domain.uuid) != OFF:
        return "it runs, and may already be used"
    if has_saved_memory(uri, domain.uuid):
        return "its memory is saved, so somebody has used it"
    return None


def undefine(uri: str, domain: Domain) -> None:
    """Undefine a domain and see that it is gone; its images are left.

    :raises StageError: when it is still there
    """
    try:
        virsh(uri, "undefine", "--managed-save", "--snapshots-metadata", "--nvram", domain.uuid)
    except StageError:
        if state_of(uri, domain.uuid) != GONE:  # one that is not defined, but only runs, goes when it is off
            raise
    if find(uri, domain.uuid) is not None:
        raise StageError(f"the domain {domain.name} is still defined")


def networks(uri: str) -> dict[str, bool]:
    """Name the networks, and whether each is active."""
    active = virsh(uri, "net-list", "--name").splitlines()
    every = virsh(uri, "net-list", "--all", "--name").splitlines()
    return {name.strip(): name in active for name in every if name.strip()}


def conflicts(existing: list[Domain], name: str, uuid: str, macs: list[str], vm: str) -> list[str]:
    """Say what stands in the way of a domain: its name, UUID or a MAC is another's.

    The same UUID, defined by us for the same VM, is the domain itself, to be defined anew.
    """
    found = []
    for domain in existing:
        itself = domain.uuid == uuid and vm != "" and domain.vm == vm
        owner = f"of {domain.vm}" if domain.vm else "not defined by Hyperflow"
        if domain.name == name and not itself:
            found.append(f"domain {name}: found one with UUID {domain.uuid}, {owner}; rename or undefine it")
        elif domain.uuid == uuid and not itself:
            found.append(f"UUID {uuid}: found the domain {domain.name}, {owner}; undefine it")
        elif itself and domain.name != name:
            found.append(f"UUID {uuid}: found it named {domain.name}, expected {name}; undefine it first")
        if domain.uuid != uuid:
            found += [f"MAC {mac}: found it in the domain {domain.name}" for mac in macs if mac in domain.macs]
    return found


def running_faults(uri: str, existing: list[Domain], uuid: str, vm: str) -> list[str]:
    """Say when the domain itself, of an earlier run, is not off, or would go on from a saved memory at its next start:
    with the disks that it had open.
    """
    faults = []
    for domain in existing:
        if domain.uuid != uuid or domain.vm != vm:
            continue
        of, state = domain.run or "a run", state_of(uri, uuid)
        if state not in (OFF, GONE):
            faults.append(
                f"domain {domain.name}: found it {state}, expected it off: it runs from the images of {of}; shut it "
                f"down (virsh shutdown {domain.name}) if it is not wanted"
            )
        elif state == OFF and has_saved_memory(uri, uuid):
            faults.append(
                f"domain {domain.name}: found its memory saved, expected it shut down: a start would go on with the "
                f"images of {of}; throw it away (virsh managedsave-remove {domain.name}) if it is not wanted"
            )
    return faults


def has_saved_memory(uri: str, uuid: str) -> bool:
    """Tell whether a domain's next start goes on from where it was, instead of booting."""
    return _told(uri, uuid, "Managed save") == "yes"


def starts_with_host(uri: str, uuid: str) -> bool:
    """Tell whether libvirt starts a domain when it comes up itself."""
    return _told(uri, uuid, "Autostart") == "enable"


def _told(uri: str, uuid: str, what: str) -> str:
    """What ``virsh dominfo`` says in one of its lines; nothing where it has none."""
    lines = (line.partition(":") for line in virsh(uri, "dominfo", uuid).splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == what), "")


def network_faults(there: dict[str, bool], wanted: list[str]) -> list[str]:
    """Say which wanted networks are missing."""
    has = ", ".join(there) or "none"
    return [
        f"network {name}: found none of this name, expected one of this host's ({has}); map it in the plan or define it"
        for name in sorted(set(wanted))
        if name not in there
    ]


def closed_to_qemu(path: Path) -> Path | None:
    """Find the folder above ``path`` that other users may not enter: libvirt's QEMU is another user.

    :return: the topmost one that is closed; None when all are open, or are not there yet
    """
    for folder in reversed([path, *path.parents]):
        if folder.is_dir() and not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def devices(text: str) -> dict[str, Any]:
    """Read disks and interfaces of a domain, in order.

    :return: ``{"disks": [{path, format, target, bus, boot_order}], "nics": [{mac, network, model}]}``
    """
    root = ET.fromstring(text)  # noqa: S314 - libvirt or virt-install wrote it
    disks = [
        {
            "path": _attribute(disk, "source", "file"),
            "format": _attribute(disk, "driver", "type"),
            "target": _attribute(disk, "target", "dev"),
            "bus": _attribute(disk, "target", "bus"),
            "boot_order": int(_attribute(disk, "boot", "order") or 0) or None,
        }
        for disk in root.findall("devices/disk")
    ]
    nics = [
        {
            "mac": _attribute(nic, "mac", "address").lower(),
            "network": _attribute(nic, "source", "network"),
            "model": _attribute(nic, "model", "type"),
        }
        for nic in root.findall("devices/interface")
    ]
    return {"disks": disks, "nics": nics}


def use_fault(image: Path, existing: list[Domain]) -> str | None:
    """Say which domain uses an image that is about to be made anew; None when none does.

    :param existing: every domain of the host
    """
    for domain in existing:
        used = [os.path.realpath(disk["path"]) for disk in devices(domain.xml)["disks"] if disk["path"]]
        if os.path.realpath(image) in used:
            return (
                f"{image}: is a disk of the domain {domain.name}; undefine it ('virsh undefine {domain.name} --nvram "
                "--managed-save') to convert again, or take another output directory"
            )
    return None


def _attribute(element: ET.Element, child: str, name: str) -> str:
    found = element.find(child)
    return "" if found is None else found.get(name, "")
