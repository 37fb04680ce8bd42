"""Calling programs of QEMU: one that hangs keeps no stage for ever, and one with much to do is given the time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hyperflow.errors.catalogue import find
from hyperflow.kvmhost import overlay
from hyperflow.kvmhost.hardware import Hardware, Nic
from hyperflow.kvmhost.images import qemu
from hyperflow.kvmhost.stage import Job, StageError, TryAgain
from hyperflow.kvmhost.stages import boot, define

FOR_EVER = 60  # seconds that a program hangs here, unless it is ended
LIMIT = 20.0  # seconds until it counts as one that was not
GIB = 2**30


def program(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program in the place of another."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return path


def known_as(fault: BaseException, stage: str) -> str:
    found = find(f"{stage} on kvm01: {fault}")
    assert found is not None
    return found.code


def slow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image whose tables take two seconds, where a question may take one."""
    program(folder, "qemu-img", "sleep 2\nexec echo '{\"required\": 7}'", monkeypatch)
    monkeypatch.setattr(qemu, "SECONDS", 1.0)
    return folder / "disk.qcow2"


def test_a_large_disk_is_given_the_time_that_its_tables_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = slow(tmp_path, monkeypatch)

    assert qemu.check(image, "qcow2", 20 * GIB)["exit_status"] == 0
    assert qemu.measure({}, "qcow2", 20 * GIB) == 7


def test_a_check_of_a_small_one_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = slow(tmp_path, monkeypatch)

    with pytest.raises(StageError, match="qemu-img check: no answer within 1 s") as caught:
        qemu.check(image, "qcow2", 0)
    assert known_as(caught.value, "validate") == "HF-CONVERT-006"


def test_a_conversion_that_complains_at_length_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complains = "head -c 500000 /dev/zero | tr '\\\\0' x >&2"  # more than a pipe holds
    program(tmp_path, "qemu-img", f'timeout {FOR_EVER} sh -c "{complains}; echo the end >&2; exit 1"', monkeypatch)
    begun = time.monotonic()

    with pytest.raises(StageError, match=r"the end$"):
        qemu.convert((tmp_path / "a", "vmdk"), (tmp_path / "b", "raw"), [], print)
    assert time.monotonic() - begun < LIMIT


def test_an_overlay_that_is_not_made_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "qemu-img", f"exec sleep {FOR_EVER}", monkeypatch)
    monkeypatch.setattr(overlay, "LIMIT", 1.0)
    begun = time.monotonic()

    with pytest.raises(StageError, match="qemu-img create: no answer within 1 s") as caught:
        overlay.create(tmp_path / "disk.raw", "raw", tmp_path / "overlay.qcow2")
    assert time.monotonic() - begun < LIMIT
    assert known_as(caught.value, "boot") == "HF-CONVERT-006"


def test_a_qemu_that_does_not_say_what_it_is_built_with_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = program(tmp_path, "qemu-system-x86_64", f"exec sleep {FOR_EVER}", monkeypatch)
    monkeypatch.setattr(boot, "ANSWER", 1.0)
    begun = time.monotonic()

    with pytest.raises(TryAgain) as caught:
        boot._offers(str(emulator), "-netdev help", "user")
    assert time.monotonic() - begun < LIMIT
    assert known_as(caught.value, "boot") == "HF-BOOT-018"


def test_a_virt_install_that_waits_for_libvirt_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "virt-install", f"exec sleep {FOR_EVER}", monkeypatch)
    monkeypatch.setattr(define, "DESCRIBE_LIMIT", 1.0)
    hardware = Hardware(firmware="bios", cpus=1, memory_mb=64, nics=[Nic("52:54:00:00:00:01", network="default")])
    options = define.Options("web01", "50100000-0000-0000-0000-000000000000", [], hardware, {"vm": "vm-1"})
    begun = time.monotonic()

    with pytest.raises(TryAgain) as caught:
        define._virt_install(options, "tcg", None, Job("define"))
    assert time.monotonic() - begun < LIMIT
    assert known_as(caught.value, "define") == "HF-DEFINE-009"
