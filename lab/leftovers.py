"""What a run has left, looked for where it would lie: vCenter, the host's disks and processes, its ledger, Airflow."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hyperflow.kvmhost.ledger import Ledger
from hyperflow.operators.claim import PREFIX, is_claim
from hyperflow.plans.load import load_plan
from hyperflow.plans.pools import pools_of

from lab import kvmhost, processes

if TYPE_CHECKING:
    from lab.running import RunningLab

KEPT_BY_FAILED = ("work/fix",)  # below the VM's staging folder: so that a person can clear the failed task
GONE_LIMIT = 30.0  # seconds that a process may take to be gone after it was killed
NOTED_BY_FAILED = ("staged-disk", "fix-overlay")  # kinds of the ledger that stay open for the same reason


def of_run(running_lab: RunningLab, plan: str, vm: str, *, failed: bool, second_host: bool = False) -> list[str]:
    """List what the runs of a VM of a plan have left; empty when all is clean.

    None of the plan's runs works any more: their slots in its pools are looked for too.

    :param vm: ``small01`` and so on; its slug is its name
    :param failed: a failed run may keep the fix's overlays
    :param second_host: it was to come to the second KVM host
    """
    truth = running_lab.vcenter.admin("GET", "/state")
    left = [f"snapshot {one['name']}" for one in truth["snapshots"] if one["vm"] == vm]
    left += [f"lease {one['moref']}" for one in truth["leases"]["live"] if one["vm"] == vm]
    folders = running_lab.folders.second if second_host else running_lab.folders
    (dag_id,) = (each for each in running_lab.dags_of(plan) if each.endswith(f".{vm}"))
    staging, images = folders.staging / plan, folders.images / plan
    left += [f"job {path}" for path in (staging / ".hyperflow" / "jobs").glob(f"{dag_id}/*")]
    for root in (staging / vm, images / vm):
        left += [f"half-written {path}" for path in root.rglob("*.partial")]
    work = staging / vm / "work"
    kept = KEPT_BY_FAILED if failed else ()
    left += [f"work {path}" for path in work.glob("*") if f"work/{path.name}" not in kept]
    left += [f"process {line}" for line in _processes_that_stay(dag_id)]
    left += _noted(staging / ".hyperflow", dag_id, NOTED_BY_FAILED if failed else ())
    left += _in_airflow(running_lab, plan, dag_id)
    if failed:
        left += [f"domain {uuid}" for uuid in kvmhost.domains_below(images / vm)]
    return left


def _processes_that_stay(dag_id: str) -> list[str]:
    limit = time.monotonic() + GONE_LIMIT
    while (found := processes_of(dag_id)) and time.monotonic() < limit:
        time.sleep(0.2)
    return found


def processes_of(dag_id: str) -> list[str]:
    """List the processes on the host that belong to a DAG's jobs: pid and command line."""
    found = []
    for pid in processes.marked(f"HYPERFLOW_RUN={dag_id}/".encode()):
        with contextlib.suppress(OSError):  # it has ended
            found.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
    return found


def _in_airflow(running_lab: RunningLab, plan: str, dag_id: str) -> list[str]:
    """List the claims that a DAG's runs still have, and slots of the plan's pools that somebody has."""
    held = running_lab.api.variables(PREFIX)
    left = [f"claim {key}" for key, holder in held.items() if is_claim(holder) and holder["dag"] == dag_id]
    own = pools_of([load_plan(running_lab.folders.plans / f"{plan}.yaml")])
    pools = running_lab.api.pools() if own else {}
    return left + [f"a slot of {name}" for name in own.keys() & pools.keys() if pools[name]["occupied_slots"]]


def _noted(root: Path, dag_id: str, kept: tuple[str, ...]) -> list[str]:
    """List what the ledger has open of a DAG's runs, which must be no more than what is really there."""
    ledger = Ledger(root)
    books = [ledger.read(run) for run in ledger.runs() if run.startswith(f"{dag_id}/")]
    noted = [f"noted as {one.kind}: {one.thing}" for book in books for one in book.open if one.kind not in kept]
    return noted + [f"{book.damaged} damaged lines in the ledger of {book.run}" for book in books if book.damaged]
