"""The boot of the finished guest on VMware's hardware. That it does not on virtio is seen by tests/lab/test_boot.py."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lab.guest import machine

LOG, FACTS = "proof-vmware.log", "proof-vmware.json"
# What a person would type to look at the guest; each answers in one or more lines.
QUESTIONS = {
    "hostname": "hostname",
    "kernel": "uname -r",
    "command_line": "cat /proc/cmdline",
    "virtualization": "systemd-detect-virt",
    "state": "systemctl is-system-running --wait || true",
    "failed_units": "systemctl --failed --plain --no-legend | cat",
    "root": "findmnt --noheadings --output SOURCE /",
    "data": "findmnt --noheadings --output SOURCE /srv/data",
    "data_sums": "cd /srv/data && sha256sum --check --quiet SHA256SUMS && echo OK",
    "address": "ip -4 -oneline address show ens192 | awk '{print $4}'",
    "mac": "cat /sys/class/net/ens192/address",
    "network_driver": "basename $(readlink /sys/class/net/ens192/device/driver)",
    "gateway": "ip route show default",
    "link_files": "find /etc/systemd/network /etc/udev/rules.d -type f",
    "open_vm_tools": "systemctl is-enabled open-vm-tools.service",
    "timezone": "readlink /etc/localtime",
    "kernels": "ls /boot | grep ^vmlinuz-",
}


def prove_on_vmware(folder: Path) -> dict[str, Any]:
    """Boot the guest on VMware's hardware, log in, and keep what was seen as LOG and FACTS in its folder.

    :param folder: holds the guest's VMDKs; they are not written to
    :return: what was seen, by the names of QUESTIONS
    :raises machine.ConsoleError: it does not come up, or is not what it should be
    """
    begun = time.monotonic()
    with (
        machine.overlays(vmdks(folder), folder) as disks,
        machine.started(machine.vmware_hardware(disks), folder / LOG) as console,
    ):
        console.log_in()
        facts: dict[str, Any] = {"seconds_to_login": round(time.monotonic() - begun, 1)}
        facts |= {name: console.run(command, seconds=180) for name, command in QUESTIONS.items()}
        console.power_off()
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    expected = {
        "kernel": json.loads((folder / "guest.json").read_text())["kernels"][-1],
        "root": "/dev/sda1",
        "data": "/dev/sdb1",
        "data_sums": "OK",
        "address": "192.0.2.10/24",
        "mac": machine.MAC,
        "network_driver": "vmxnet3",
        "failed_units": "",
        "link_files": "",
    }
    wrong = {name: facts[name] for name, value in expected.items() if facts[name] != value}
    if wrong:
        raise machine.ConsoleError(f"on VMware's hardware the guest is not what it should be: {wrong}")
    return facts


def vmdks(folder: Path) -> list[Path]:
    """The guest's disks in a cache folder, in their order on the controller."""
    facts = json.loads((folder / "guest.json").read_text())
    return [folder / disk["file"] for disk in facts["disks"]]
