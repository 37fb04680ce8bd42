"""A target's guest agent, asked through libvirt: a real qemu-ga, in a domain as the define stage makes it."""

from __future__ import annotations

import shutil
import subprocess
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import kvmhost
from lab.agent_guest import ensure_agent_guest
from tests.kvmhost.stages import running

pytestmark = pytest.mark.lab


@pytest.fixture
def target(host: kvmhost.KvmHost, open_folder: Path) -> Iterator[dict[str, Any]]:
    """A defined domain that boots the guest with the agent; the options of its start."""
    image = open_folder / "disk-0.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "16M"], check=True)
    name, identity = f"test-{uuid.uuid4().hex[:8]}", str(uuid.uuid4())
    hardware = {"firmware": "bios", "cpus": 1, "memory_mb": 256, "nics": []}
    images = [{"path": str(image), "format": "qcow2"}]
    asked = {"name": name, "uuid": identity, "images": images, "hardware": hardware, "metadata": {"vm": "vm-1"}}
    try:
        defined = running.run("define", asked)
        assert defined["succeeded"], defined["log"]
        give_kernel(identity, open_folder)
        yield {"uuid": identity, "vm": "vm-1", "timeout_seconds": 600, "guest_agent": True}
    finally:
        subprocess.run(["virsh", "-c", kvmhost.URI, "destroy", identity], check=False, capture_output=True)
        kvmhost.undefine_domains_below(host, open_folder)


def give_kernel(identity: str, folder: Path) -> None:
    """Have the domain boot the agent's guest in place of its empty disk.

    :param folder: one that libvirt's QEMU may enter, which the cache is not
    """
    guest = ensure_agent_guest()
    kernel, initramfs = (shutil.copy(path, folder / path.name) for path in (guest.kernel, guest.initramfs))
    described = subprocess.run(["virsh", "-c", kvmhost.URI, "dumpxml", identity], check=True, capture_output=True)
    domain = ET.fromstring(described.stdout)  # noqa: S314 - libvirt wrote it
    system = domain.find("os")
    assert system is not None
    for name, text in (("kernel", kernel), ("initrd", initramfs), ("cmdline", "console=ttyS0 panic=-1")):
        ET.SubElement(system, name).text = str(text)
    changed = ["virsh", "-c", kvmhost.URI, "define", "/dev/stdin"]
    subprocess.run(changed, input=ET.tostring(domain), check=True, capture_output=True)


def start(target: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return running.run("start", {**target, **changes})


def why_not(target: dict[str, Any], said: str, wanted: dict[str, Any]) -> str:
    """Why the guest is not well; it is given more time while it does not say so: on a busy machine it is late."""
    for seconds in (3, 12, 48, 192):
        failed = start(target, timeout_seconds=seconds, **wanted)
        assert not failed["succeeded"], wanted
        if said in failed["error"]["message"]:
            break
    return str(failed["error"]["message"])


def test_a_real_agent_is_asked_through_libvirt_and_runs_the_plans_command(target: dict[str, Any]) -> None:
    command = ["sh", "-c", "cat /proc/sys/kernel/ostype; echo more >&2"]
    result = start(target, command=command)
    assert result["succeeded"], result["log"]
    observed = result["observed"]
    assert observed["answers"]["guest agent"] == "its guest agent"
    (words,) = (answer for what, answer in observed["answers"].items() if what.startswith("command sh"))
    assert words == "sh: exit status 0: Linux more"

    for wanted, said in (
        ({"command": ["cat", "/nowhere"]}, "exit status 1: cat: /nowhere: No such file or directory"),
        ({"command": ["sh", "-c", "kill -9 $$"]}, "signal 9"),
        ({"command": ["sh", "-c", "while sleep 1; do :; done"]}, "still runs"),
        ({"command": ["no-such-program"]}, "no-such-program"),
        ({"target_state": True}, "systemctl"),
    ):
        assert said in why_not(target, said, wanted)

    freed = start(target, command=["cat", "/proc/version"])
    assert freed["succeeded"], "what was asked before stands in nobody's way"
    assert freed["observed"]["was_running"] is True
