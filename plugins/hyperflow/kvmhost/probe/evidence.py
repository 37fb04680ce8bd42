"""Reads what the probe said, and compares it with what was expected of the guest."""

from __future__ import annotations

import re
from typing import Any

UP = ("running", "degraded")  # systemd's states in which the boot is finished and the system serves
NOT_AT_BOOT = {"noauto", "x-systemd.automount"}  # options of mounts that somebody must ask for
STARTING = ("starting", "initializing", "")
LINE = re.compile(rb"hyperflow-probe ([0-9a-f]+) ([a-z]+) ([0-9a-f]*)\s*")
PAIR = re.compile(r'([A-Z]+)="([^"]*)"')
STREAM_LIMIT = 1024 * 1024  # bytes without a whole report: a guest may not fill the host's memory
LIST_LIMIT = 200  # mounts, units, ... in the result; a result is kilobytes

Report = dict[str, list[str]]


class Reader:
    """Collects the probe's lines into reports.

    :param nonce: lines with another one are not this boot's and are dropped
    """

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce.encode()
        self._buffer = b""
        self._open: Report | None = None

    def feed(self, data: bytes) -> list[Report]:
        """Take what came from the guest; the reports that are complete with it, oldest first."""
        lines = (self._buffer + data).split(b"\n")
        self._buffer = lines.pop()[-STREAM_LIMIT:]
        complete = []
        for line in lines:
            match = LINE.search(line)
            if match is None or match[1] != self._nonce or len(match[3]) % 2:
                continue
            key, value = match[2].decode(), bytes.fromhex(match[3].decode()).decode(errors="replace")
            if key == "begin":
                self._open = {}
            elif self._open is not None and key == "end":
                complete.append(self._open)
                self._open = None
            elif self._open is not None and sum(map(len, self._open.values())) < LIST_LIMIT:
                self._open.setdefault(key, []).append(value)
        return complete


def read(report: Report) -> dict[str, Any]:
    """Make the evidence from a report: state, root_device, nics, mounts, block_devices, kernel, hostname, ..."""
    mounts = [_mount(pairs) for pairs in _pairs(report, "mounts") if pairs.get("TARGET")]
    blocks = _pairs(report, "blocks")
    root = next(iter(_pairs(report, "root")), {})
    return {
        "state": _text(report, "state"),
        "failed_units": _units(_text(report, "failed")),
        "root_device": {
            "device": root.get("SOURCE", ""),
            "uuid": root.get("UUID", ""),
            "fstype": root.get("FSTYPE", ""),
        },
        "mounts": [one for one in mounts if one["device"].startswith("/dev/")][:LIST_LIMIT],
        "block_devices": [{key.lower(): value for key, value in one.items()} for one in blocks][:LIST_LIMIT],
        "nics": _nics(report),
        "default_routes": _text(report, "routes").splitlines()[:LIST_LIMIT],
        "kernel": _text(report, "kernel"),
        "kernel_command_line": _text(report, "cmdline"),
        "hostname": _text(report, "hostname"),
        "os": _os(_text(report, "os")),
        "uptime_seconds": _seconds(_text(report, "uptime")),
    }


def differences(evidence: dict[str, Any], expect: dict[str, Any], macs: list[str]) -> list[str]:
    """Compare evidence with what was expected, each difference as ``what: found X, expected Y``.

    :param expect: root {uuid}, networks [{name, mac, addresses}], mounts [{path, uuid, options}], as inspection
        found them, leases [mac] of interfaces that DHCP gives an address; what is None or missing is not compared
    :param macs: the interfaces the guest was given
    """
    found = []
    uuid, root = (expect.get("root") or {}).get("uuid"), evidence["root_device"]
    if uuid and root["uuid"].lower() != uuid.lower():
        found.append(f"/: found {root['device'] or 'nothing'} with UUID {root['uuid'] or 'unknown'}, expected {uuid}")
    devices = sorted(evidence["nics"], key=lambda nic: bool(nic["driver"]))  # a bond has the MAC of its devices
    by_mac = {nic["mac"].lower(): nic for nic in devices}
    by_mac.update({nic["permanent_mac"].lower(): nic for nic in devices if nic.get("permanent_mac")})
    for mac in macs:
        driver = by_mac.get(mac, {}).get("driver", "no interface")
        if driver != "virtio_net":
            found.append(f"interface {mac}: found {driver}, expected the driver virtio_net")
    for network in expect.get("networks") or []:
        found += _network_differences(network, by_mac, evidence["nics"])
    found += [
        f"interface {one}: found no IPv4 address, expected one by DHCP, as the source had"
        for one in expect.get("leases") or []
        if not _has_ipv4(one, evidence["nics"])
    ]
    mounted = {one["path"]: one for one in evidence["mounts"]}
    for mount in expect.get("mounts") or []:
        found += _mount_differences(mount, mounted)
    return found


def _network_differences(network: dict[str, Any], by_mac: dict[str, Any], nics: list[dict[str, Any]]) -> list[str]:
    mac, name = (network.get("mac") or "").lower().replace("-", ":"), network.get("name") or ""
    if not mac and not name:
        return [
            f"address {one}: found it on no interface, expected it on one"
            for one in network.get("addresses") or []
            if not any(_has_address(nic, one) for nic in nics)
        ]
    label = f"interface {' '.join(part for part in (name, mac) if part)}"
    nic = next((one for one in nics if one["name"] == name), None) or by_mac.get(mac)
    if nic is None:
        return [f"{label}: found none, expected it with {', '.join(network.get('addresses') or []) or 'no address'}"]
    found = []
    if name and nic["name"] != name:
        found.append(f"{label}: found it named {nic['name']}, expected {name}")
    owner = by_mac.get(mac, nic)  # one that no card has was given up for another by the guest's configuration
    if mac and nic["mac"].lower() != mac and owner["name"] != nic["name"]:
        # names that were swapped have their addresses, each in the other's network
        found.append(f"{label}: found {nic['name']} on {nic['mac']}, and {mac} on {owner['name']}")
    missing = [one for one in network.get("addresses") or [] if not _has_address(nic, one)]
    if missing:
        has = ", ".join(nic["addresses"]) or "no address"
        found.append(f"{label}: found {has}, expected {', '.join(missing)}")
    return found


def _has_address(nic: dict[str, Any], address: str) -> bool:
    """Whether an interface has an address; one without a prefix length is had with any."""
    return any(address.lower() in (one, one.split("/")[0]) for one in nic["addresses"])


def _has_ipv4(card: str, nics: list[dict[str, Any]]) -> bool:
    """Whether a card has an IPv4 address, or what it is a part of: a bond and a bridge have the address of a card."""
    own = {nic["mac"].lower() for nic in nics if card in (nic["mac"].lower(), (nic.get("permanent_mac") or "").lower())}
    return any("." in one for nic in nics if nic["mac"].lower() in own for one in nic["addresses"])


def _mount_differences(mount: dict[str, Any], mounted: dict[str, dict[str, Any]]) -> list[str]:
    path = mount.get("path") or ""
    if not path.startswith("/") or NOT_AT_BOOT & set((mount.get("options") or "").split(",")):
        return []
    path = path.rstrip("/") or "/"  # as the kernel tells it
    there = mounted.get(path)
    if there is None:
        return [f"{path}: found nothing mounted, expected {mount.get('spec') or mount.get('uuid') or 'a file system'}"]
    uuid = mount.get("uuid") or ""
    if uuid and there["uuid"].lower() != uuid.lower():
        return [f"{path}: found uuid {there['uuid'] or 'unknown'}, expected {uuid}"]
    return []  # its type is the mounting driver's name: ext4 of an ext3, fuseblk of an NTFS


def _text(report: Report, key: str) -> str:
    return report.get(key, [""])[0].strip()


def _pairs(report: Report, key: str) -> list[dict[str, str]]:
    r"""Read lines of ``KEY="value"`` as util-linux writes them: a byte that could harm is \xHH."""
    return [
        {
            name: re.sub(r"\\x([0-9a-f]{2})", lambda hit: chr(int(hit[1], 16)), value)
            for name, value in PAIR.findall(line)
        }
        for line in _text(report, key).splitlines()
    ]


def _mount(pairs: dict[str, str]) -> dict[str, str]:
    names = {"path": "TARGET", "device": "SOURCE", "fstype": "FSTYPE", "uuid": "UUID"}
    return {name: pairs.get(key, "") for name, key in names.items()}


def _units(text: str) -> list[str]:
    """Read ``systemctl list-units``: the name comes first, behind a bullet in some versions."""
    words = [[word for word in line.split() if "." in word] for line in text.splitlines()]
    return [names[0] for names in words if names][:LIST_LIMIT]


def _nics(report: Report) -> list[dict[str, Any]]:
    addresses: dict[str, list[str]] = {}
    for line in _text(report, "addresses").splitlines():
        words = line.split()  # 2: ens192    inet 192.0.2.10/24 brd ... scope global ...
        if len(words) > 3 and words[2] in ("inet", "inet6") and "link" not in words:
            addresses.setdefault(words[1], []).append(words[3].lower())
    nics = []
    for value in report.get("nic", [])[:LIST_LIMIT]:
        keys = ("name", "mac", "driver", "state", "permanent_mac")
        nic: dict[str, Any] = dict(zip(keys, value.split("\n") + [""] * len(keys)))
        nics.append({**nic, "addresses": addresses.get(nic["name"], [])})
    return nics


def _os(text: str) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)', text, re.MULTILINE)
    return match[1] if match else ""


def _seconds(text: str) -> float | None:
    match = re.match(r"\d+(\.\d+)?", text)
    return float(match[0]) if match else None
