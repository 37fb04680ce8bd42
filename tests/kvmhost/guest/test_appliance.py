"""The appliance itself: one that does not come up keeps no stage for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hyperflow.errors.catalogue import find
from hyperflow.kvmhost import acceleration, processes
from hyperflow.kvmhost.guest import appliance
from hyperflow.kvmhost.stage import Job, StageError, TryAgain

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 300.0  # seconds until a test gives up

# In place of QEMU: answers what libguestfs asks of it, and starts the appliance with its processor stopped (-S).
STOPPED = """#!/bin/sh
case "$*" in *guestfsd.sock*) set -- -S "$@" ;; esac
exec /usr/bin/qemu-system-x86_64 "$@"
"""
# Run by the host's own Python, which has guestfs.
PROGRAM = """
import json, sys
from pathlib import Path
from hyperflow.kvmhost import processes
from hyperflow.kvmhost.guest import appliance
from hyperflow.kvmhost.stage import Job, StageError

appliance.LAUNCH_LIMIT = float(sys.argv[2])
try:
    with appliance.Appliance([Path(sys.argv[1])], Job("inspect")):
        pass
except StageError as fault:
    print(json.dumps({"kind": fault.kind, "message": str(fault), "left": processes.children("")}))
"""


def test_an_appliance_that_does_not_come_up_is_ended_and_may_be_tried_again(tmp_path: Path) -> None:
    hypervisor, disk = tmp_path / "qemu", tmp_path / "disk.qcow2"
    hypervisor.write_text(STOPPED)
    hypervisor.chmod(0o755)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M"], check=True)

    done = subprocess.run(
        ["/usr/bin/python3", "-c", PROGRAM, str(disk), "3"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "plugins"), "LIBGUESTFS_HV": str(hypervisor)},
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )

    told = json.loads(done.stdout.splitlines()[-1])
    assert told["message"] == "libguestfs' appliance was not up after 3 s, and was ended"
    assert told["kind"] == TryAgain.kind
    assert told["left"] == []
    found = find(f"inspect on kvm01: {told['message']}")
    assert found is not None
    assert found.code == "HF-INSPECT-013"


# In place of supermin: the kernel calls a script as its file is called.
HANGS = """#!/usr/bin/python3 -IS
import signal
while True:
    signal.pause()
"""


def test_a_supermin_that_does_not_end_is_ended_and_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libguestfs has it make the appliance before there is any QEMU."""
    program, disk = tmp_path / "supermin", tmp_path / "disk.qcow2"
    program.write_text(HANGS)
    program.chmod(0o755)
    started: list[subprocess.Popen[bytes]] = []

    class GuestFS:
        def __init__(self, **_: Any) -> None:
            pass

        def __getattr__(self, _: str) -> Any:
            return lambda *_, **__: None

        def launch(self) -> None:
            started.append(subprocess.Popen([str(program)]))
            raise RuntimeError(f"supermin exited with error status {started[0].wait()}")

    monkeypatch.setitem(sys.modules, "guestfs", SimpleNamespace(GuestFS=GuestFS))
    monkeypatch.setattr(acceleration, "detect", lambda _: acceleration.TCG)
    monkeypatch.setattr(appliance, "BUILD_LIMIT", 1.0)
    faults: list[StageError] = []

    def launch() -> None:
        try:
            appliance.Appliance([disk], Job("inspect")).__enter__()
        except StageError as fault:
            faults.append(fault)

    thread = threading.Thread(target=launch, daemon=True)
    thread.start()
    thread.join(30)
    try:
        assert not thread.is_alive()
    finally:
        started[0].kill()
    (fault,) = faults
    assert str(fault) == "supermin had not made libguestfs' appliance after 1 s, and was ended"
    assert isinstance(fault, TryAgain)
    assert processes.children("supermin") == []
    found = find(f"inspect on kvm01: {fault}")
    assert found is not None
    assert found.code == "HF-INSPECT-014"
