"""The check of a host, on this one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost.images import files

from lab import kvmhost
from tests.kvmhost.stages import running


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "staging_directory": str(folder / "staging/not/made"),
        "output_directory": str(folder / "output"),
        "staging_bytes": 1 << 20,
        "output_bytes": 2 << 20,
        "endpoints": [],
        "domain": None,
        **changes,
    }


def test_a_host_that_is_ready_is_described(tmp_path: Path) -> None:
    result = running.run("check", options(tmp_path))

    assert result["exit_status"] == 0, result["log"]
    observed = result["observed"]
    for tool in ("qemu-img", "qemu-nbd", "qemu-system", "python guestfs", "python nbd", "virsh", "virt-install"):
        assert observed["tools"][tool][0].isdigit(), tool
    assert observed["acceleration"]["kind"] in ("kvm", "tcg")
    assert observed["acceleration"]["reason"]
    assert observed["cpus"] >= 1
    assert observed["memory_mb"] > 0
    assert observed["space"][str(tmp_path / "output")]["needed_bytes"] == 2 << 20
    assert list(tmp_path.iterdir()) == [], "nothing is left where it tried to write"


def test_a_host_that_is_to_take_any_migration_needs_libvirt(tmp_path: Path) -> None:
    away = "qemu+unix:///system?socket=/nowhere/libvirt-sock"
    result = running.run("check", options(tmp_path, any_migration=True, uri=away))
    assert result["exit_status"] == 1
    assert "systemctl enable --now libvirtd" in result["error"]["message"]

    result = running.run("check", options(tmp_path, any_migration=True, uri="test:///default"))
    assert result["exit_status"] == 0, result["log"]
    assert result["observed"]["domain"]["domains"] == 1
    assert result["observed"]["domain"]["firmware"]


def test_every_fault_is_told_at_once_with_what_to_do(tmp_path: Path) -> None:
    wrong = options(
        tmp_path,
        staging_directory="/proc/nowhere",
        endpoints=["127.0.0.1:1", "no-such-host.invalid:443"],
        guests=100_000,
    )

    result = running.run("check", wrong)

    assert result["exit_status"] == 1
    message = result["error"]["message"]
    assert "/proc/nowhere: cannot be written" in message
    assert "127.0.0.1:1: " in message
    assert "no-such-host.invalid:443: " in message
    assert "open the way from this host" in message
    assert "expected 128000000 or more, 1280 for each of the 100000 guest(s) at once" in message
    assert "lower pools.guests_per_host" in message
    assert result["log"].count("not ready: ") == 5, "four, and no space on /proc"


def test_staging_and_output_on_one_file_system_are_added_up(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    each = free * 2 // 3

    result = running.run("check", options(tmp_path, staging_bytes=each, output_bytes=each))

    assert result["exit_status"] == 1
    assert f"{tmp_path}/output and {tmp_path}/staging/not/made: found" in result["error"]["message"]
    assert running.run("check", options(tmp_path, staging_bytes=each))["exit_status"] == 0


def test_an_endpoint_counts_as_reached_when_tls_is_spoken(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=esxi"),
        ],
        check=True,
        capture_output=True,
    )
    server = subprocess.Popen(
        ["openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", str(certificate), "-key", str(key)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = next(line for line in server.stdout if line.startswith("ACCEPT")).rpartition(":")[2].strip()
        endpoint = f"127.0.0.1:{port}"
        result = running.run("check", options(tmp_path, endpoints=[endpoint]))
    finally:
        server.kill()
        server.communicate()

    assert result["exit_status"] == 0, result["log"]
    assert result["observed"]["endpoints"][endpoint]["tls"].startswith("TLS")
    assert len(result["observed"]["endpoints"][endpoint]["sha256"]) == 64


def test_a_program_that_is_missing_is_named_with_its_packages(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as empty:
        result = running.run("check", options(tmp_path), {"PATH": empty})

    assert (
        "qemu-img: found none; install qemu-utils (Debian, Ubuntu) or qemu-img (RHEL, Fedora)"
        in result["error"]["message"]
    )
    assert "qemu-system-x86_64: found none" in result["error"]["message"]


@pytest.mark.lab
def test_a_domain_whose_name_and_network_are_free_passes_and_another_does_not(
    tmp_path: Path, host: kvmhost.KvmHost
) -> None:
    domain = {
        "name": "no-such-domain",
        "uuid": "6f1a0b52-57c1-4e0e-9d0c-6f6a2f1b7c11",
        "macs": ["00:50:56:00:00:01"],
        "networks": [host.network],
        "firmware": "uefi",
    }

    good = running.run("check", options(tmp_path, domain=domain))
    bad = running.run("check", options(tmp_path, domain={**domain, "networks": ["no-such-network"]}))

    assert good["exit_status"] == 0, good["log"]
    assert good["observed"]["domain"]["networks"][host.network] is True
    assert "network no-such-network: found none" in bad["error"]["message"]


def image_of_ours(folder: Path) -> Path:
    image = folder / "output/disk-0.qcow2"
    image.parent.mkdir()
    descriptor = files.create_partial(image)
    os.write(descriptor, b"ours")
    os.close(descriptor)
    note = {"kind": "hyperflow-image", "observed": {"bytes": 4}}
    files.put_in_place(image, note, files.partial_path(image).stat().st_ino)
    return image


def rewrite_in_place(image: Path) -> None:
    """What a guest does that was started from it: the file and its size are as before."""
    with image.open("r+b") as file:
        file.write(b"work")
    os.utime(image, ns=(image.stat().st_atime_ns, image.stat().st_mtime_ns + 1))


def forget_state(image: Path) -> None:
    """As an older version has noted it."""
    note = json.loads(files.note_path(image).read_text())
    del note["file"]
    files.note_path(image).write_text(json.dumps(note))


def put_back(image: Path) -> None:
    """As from a backup: another inode, and else as before."""
    copy = image.with_name("copy")
    shutil.copy2(image, copy)
    copy.replace(image)


def grow(image: Path) -> None:
    forget_state(image)
    image.write_bytes(b"ours, and more")


@pytest.mark.parametrize("act", [rewrite_in_place, grow])
def test_an_image_that_a_guest_has_written_to_is_refused_before_anything_is_shut_down(
    tmp_path: Path, act: Callable[[Path], None]
) -> None:
    image = image_of_ours(tmp_path)
    act(image)
    result = running.run("check", options(tmp_path, images=[str(image)]))
    assert result["exit_status"] == 1
    message = result["error"]["message"]
    assert f"{image}: found " in message
    assert "the image was changed since it was converted (was the VM started?); move it and its note" in message


@pytest.mark.parametrize("act", [lambda _: None, put_back, forget_state])
def test_an_image_that_may_be_made_anew_is_no_fault(tmp_path: Path, act: Callable[[Path], None]) -> None:
    image = image_of_ours(tmp_path)
    act(image)
    result = running.run("check", options(tmp_path, images=[str(image), str(tmp_path / "output/disk-1.qcow2")]))
    assert result["exit_status"] == 0, result["log"]


def test_a_file_of_somebody_elses_is_refused_before_anything_is_shut_down(tmp_path: Path) -> None:
    image = image_of_ours(tmp_path)
    files.note_path(image).unlink()
    result = running.run("check", options(tmp_path, images=[str(image)]))
    assert f"{image}: exists and is no image of ours; move it away" in result["error"]["message"]


def test_an_endpoint_that_is_none_is_a_bad_request(tmp_path: Path) -> None:
    assert running.run("check", options(tmp_path, endpoints=["esxi01"]))["exit_status"] == 64
