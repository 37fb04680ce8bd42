"""Defining a domain, in a libvirt that runs."""

from __future__ import annotations

import subprocess
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperflow.manifest.shown import shown

from lab import kvmhost
from tests.kvmhost.stages import running

pytestmark = pytest.mark.lab


def virsh(*arguments: str) -> str:
    command = ["virsh", "--quiet", "--connect", kvmhost.URI, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def read(identity: str) -> ET.Element:
    return ET.fromstring(virsh("dumpxml", identity))  # noqa: S314 - libvirt wrote it


@pytest.fixture
def options(host: kvmhost.KvmHost, open_folder: Path) -> Iterator[dict[str, Any]]:
    """Options for a VM with two disks and two interfaces; whatever domain has its disks is gone afterwards."""
    images = []
    for name, kind in (("disk-0.qcow2", "qcow2"), ("a, disk.raw", "raw")):
        path = open_folder / name
        subprocess.run(["qemu-img", "create", "-q", "-f", kind, str(path), "16M"], check=True)
        images.append({"path": str(path), "format": kind})
    name = f"test-{uuid.uuid4().hex[:8]}"
    unique = uuid.uuid4().hex
    macs = [f"52:54:00:{unique[:2]}:{unique[2:4]}:0{index}" for index in (1, 2)]
    yield {
        "name": name,
        "uuid": str(uuid.uuid4()),
        "description": "from vSphere: <web> & more",
        "images": images,
        "hardware": {
            "firmware": "bios",
            "cpus": 2,
            "memory_mb": 256,
            "nics": [{"mac": mac.upper().replace(":", "-"), "network": host.network} for mac in macs],
        },
        "metadata": {"vm": f"vc/{name}", "run": "migrate/1", "source": "dc & <rack>"},
    }
    kvmhost.undefine_domains_below(host, open_folder)


def test_the_domain_that_libvirt_has_is_what_was_asked_for(options: dict[str, Any]) -> None:
    result = running.run("define", options)

    assert result["exit_status"] == 0, result["log"]
    observed = result["observed"]
    assert [(one["path"], one["target"], one["boot_order"]) for one in observed["disks"]] == [
        (options["images"][0]["path"], "vda", 1),
        (options["images"][1]["path"], "vdb", None),
    ]
    assert [one["mac"] for one in observed["nics"]] == [
        one["mac"].lower().replace("-", ":") for one in options["hardware"]["nics"]
    ]
    domain = read(options["uuid"])
    assert domain.findtext("description") == options["description"]
    ours = domain.find("metadata/{urn:hyperflow:migration:1}migration")
    assert ours is not None
    assert (ours.get("vm"), ours.get("run")) == (options["metadata"]["vm"], "migrate/1")
    assert ours.findtext("{urn:hyperflow:migration:1}item") == "dc & <rack>"
    assert virsh("domstate", options["uuid"]).strip() == "shut off"


def test_nothing_but_the_domain_is_made_in_libvirt(options: dict[str, Any]) -> None:
    before = virsh("pool-list", "--all", "--name"), virsh("net-list", "--all", "--name")

    running.run("define", options)

    assert (virsh("pool-list", "--all", "--name"), virsh("net-list", "--all", "--name")) == before


def test_defining_the_same_vm_again_replaces_its_domain(options: dict[str, Any]) -> None:
    running.run("define", options)
    options["hardware"]["memory_mb"] = 512

    result = running.run("define", options)

    assert result["observed"]["redefined"] is True
    assert read(options["uuid"]).findtext("memory") == str(512 * 1024)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"uuid": "6f1a0b52-57c1-4e0e-9d0c-6f6a2f1b7c11"}, "found one with UUID"),
        ({"name": "another-name", "metadata": {"vm": "vc/other"}}, "UUID"),
        ({"metadata": {"vm": "vc/other"}}, "rename or undefine it"),
        ({"name": "another-name", "uuid": "6f1a0b52-57c1-4e0e-9d0c-6f6a2f1b7c11"}, "found it in the domain"),
    ],
    ids=["name", "uuid", "other-vm", "mac"],
)
def test_what_is_anothers_is_not_taken(options: dict[str, Any], changes: dict[str, Any], fault: str) -> None:
    running.run("define", options)
    before = virsh("dumpxml", options["uuid"])

    result = running.run("define", {**options, **changes})

    assert result["exit_status"] == 1
    assert fault in result["error"]["message"]
    assert virsh("dumpxml", options["uuid"]) == before


def test_a_network_that_is_not_there_is_named_with_those_that_are(
    options: dict[str, Any], host: kvmhost.KvmHost
) -> None:
    options["hardware"]["nics"][0]["network"] = "no-such-network"

    result = running.run("define", options)

    assert "network no-such-network: found none of this name" in result["error"]["message"]
    assert host.network in result["error"]["message"]


@pytest.mark.parametrize(("wanted", "secure"), [(False, "no"), (True, "yes")])
def test_a_uefi_guest_gets_the_firmware_the_proof_ran_with(options: dict[str, Any], wanted: bool, secure: str) -> None:
    options["hardware"].update(firmware="uefi", secureboot=wanted)

    result = running.run("define", options)

    assert result["exit_status"] == 0, result["log"]
    loader = read(options["uuid"]).find("os/loader")
    assert loader is not None
    assert loader.get("secure") == secure
    assert Path(loader.text or "").is_file()


def test_any_name_of_a_vm_makes_a_description_that_reads_back_as_it_was_shown(options: dict[str, Any]) -> None:
    """Emoji are joined by characters that are not printable; a name with them once failed a run in its last task."""
    options["description"] = shown("👩‍👩‍👧 web\u202e10\x1b[2J\n<b>&amp;]]><!-- ü, migrated from /DC0/vm/%2f..")

    result = running.run("define", options)

    assert result["exit_status"] == 0, result["log"]
    assert read(options["name"]).findtext("description") == options["description"]


@pytest.mark.parametrize(
    "changes",
    [{"name": "a/b"}, {"name": "-x"}, {"name": ""}, {"uuid": "1234"}, {"metadata": {}}, {"description": "\x1b[2J"}],
)
def test_a_request_that_is_wrong_is_refused_before_libvirt_is_asked(
    options: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert running.run("define", {**options, **changes})["exit_status"] == 64
