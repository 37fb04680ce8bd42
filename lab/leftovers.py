"""What a run has left, looked for where it would lie: vCenter, the host's disks and processes, its ledger."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

from hyperflow.kvmhost.ledger import Ledger

if TYPE_CHECKING:
    from lab.running import RunningLab

KEPT_BY_FAILED = ("work/fix",)  # below the VM's staging folder: so that a person can clear the failed task
NOTED_BY_FAILED = ("staged-disk", "fix-overlay")  # kinds of the ledger that stay open for the same reason


def of_run(running_lab: RunningLab, plan: str, vm: str, *, failed: bool) -> list[str]:
    """List what the only run of a quick plan has left; empty when all is clean.

    :param vm: ``small01`` and so on; its slug is its name
    :param failed: a failed run may keep the fix's overlays
    """
    truth = running_lab.vcenter.admin("GET", "/state")
    left = [f"snapshot {one['name']}" for one in truth["snapshots"] if one["vm"] == vm]
    left += [f"lease {one['moref']}" for one in truth["leases"]["live"] if one["vm"] == vm]
    folders = running_lab.folders
    left += [f"job {path}" for path in (folders.staging / plan / ".hyperflow" / "jobs").glob("*/*")]
    for root in (folders.staging / plan, folders.images / plan):
        left += [f"half-written {path}" for path in root.rglob("*.partial")]
    work = folders.staging / plan / vm / "work"
    kept = KEPT_BY_FAILED if failed else ()
    left += [f"work {path}" for path in work.glob("*") if f"work/{path.name}" not in kept]
    left += [f"process {line}" for line in processes_of(running_lab.dags_of(plan)[0])]
    left += _noted(folders.staging / plan / ".hyperflow", NOTED_BY_FAILED if failed else ())
    if failed:
        left += [f"domain {uuid}" for uuid in _domains_below(folders.images / plan)]
    return left


def processes_of(dag_id: str) -> list[str]:
    """List the processes on the host that belong to a DAG's jobs: pid and command line."""
    mark = f"HYPERFLOW_RUN={dag_id}/".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
        except OSError:
            continue  # it has ended
    return found


def _noted(root: Path, kept: tuple[str, ...]) -> list[str]:
    """List what the ledger has open, which must be no more than what is really there."""
    ledger = Ledger(root)
    books = [ledger.read(run) for run in ledger.runs()]
    noted = [f"noted as {one.kind}: {one.thing}" for book in books for one in book.open if one.kind not in kept]
    return noted + [f"{book.damaged} damaged lines in the ledger of {book.run}" for book in books if book.damaged]


def _domains_below(folder: Path) -> list[str]:
    virsh = ["virsh", "--connect", "qemu:///system"]
    listed = subprocess.run([*virsh, "list", "--all", "--uuid"], capture_output=True, text=True, check=True)
    found = []
    for uuid in listed.stdout.split():
        dumped = subprocess.run([*virsh, "dumpxml", uuid], capture_output=True, text=True, check=True)
        sources = ET.fromstring(dumped.stdout).findall("devices/disk/source")  # noqa: S314 - libvirt's own
        if any(folder.resolve() in Path(source.get("file", "/")).parents for source in sources):
            found.append(uuid)
    return found
