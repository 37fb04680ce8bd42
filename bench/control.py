"""The control plane: what Airflow waits for when it reads plans, and the manifest of a VM with many disks."""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from hyperflow.manifest.builder import build_manifest
from hyperflow.manifest.facts import DiskFacts, NicFacts, StagedDisk, VmFacts
from hyperflow.manifest.save import save

from bench import stages
from bench.results import Result, of_values

VMS = 1000
PLANS = 10  # files that the VMs are spread over: a wave each
DISKS = 64
ROUNDS = 5
MANIFEST_ROUNDS = 50

# Airflow's own start is over when a plan is read: its processor and its task runner are forked with it loaded.
_PARSE = """
import time
from airflow.dag_processing.dagbag import DagBag
import sys
begun = time.monotonic()
bag = DagBag(sys.argv[1], bundle_name="bench")
seconds = time.monotonic() - begun
assert not bag.import_errors, bag.import_errors
found = [name for name in bag.dags if name.startswith("migrate.")]
assert len(found) == int(sys.argv[2]), len(found)
print(seconds)
"""


def measure_parse() -> Result:
    """Read the plans of 1,000 VMs, as the DAG processor does."""
    return of_values("dag_parse_1000_s", [_parse(None, VMS) for _ in range(ROUNDS)], 5, "s", {"plans": PLANS})


def measure_start() -> Result:
    """Read what one task of one of these VMs needs when it starts."""
    values = [_parse("migrate.wave-5.vm-0542", 1) for _ in range(ROUNDS)]
    return of_values("dag_start_s", values, 0.3, "s", {"plans": PLANS, "vms": VMS})


def _parse(wanted: str | None, expected: int) -> float:
    with tempfile.TemporaryDirectory(prefix="hyperflow-bench-") as name:
        folder = Path(name)
        (folder / "plans").mkdir()
        for plan in range(PLANS):
            _write_plan(folder / "plans" / f"wave-{plan}.yaml", plan)
        environment = {
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "600",  # the time is to be measured, not cut off
            "AIRFLOW__HYPERFLOW__PLANS_FOLDER": str(folder / "plans"),
        }
        if wanted is not None:
            environment |= {"_AIRFLOW_PARSING_CONTEXT_DAG_ID": wanted, "_AIRFLOW_PARSING_CONTEXT_TASK_ID": "export"}
        file = stages.ROOT / "dags" / "vm_migrations.py"
        return stages.python_seconds(_PARSE, environment, str(file), str(expected))


def _write_plan(path: Path, plan: int) -> None:
    count = VMS // PLANS
    vms = "".join(f"  - name: vm-{number:04}\n" for number in range(plan * count, (plan + 1) * count))
    path.write_text(
        f"plan: wave-{plan}\nvcenter: {{connection: vc}}\nprofile: kvm-migration\n"
        "host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}\n"
        f'networks: {{"*": default}}\nvms:\n{vms}'
    )


def measure_manifest() -> Result:
    """Build the manifest of a VM with 64 disks and write it to a file."""
    disks = tuple(DiskFacts(f"disk-{n}", f"Hard disk {n + 1}", (n + 1) << 30, n) for n in range(DISKS))
    vm = VmFacts(
        provider="vsphere",
        vm_id="vm-59",
        vm_name="web01",
        datacenter="DC0",
        cpu=2,
        memory_mb=4096,
        firmware="bios",
        secureboot=False,
        guest_id="debian12_64Guest",
        guest_full_name="Debian GNU/Linux 12 (64-bit)",
        nics=(NicFacts("nic-0", "00:50:56:9a:10:01", "VM Network"),),
        disks=disks,
    )
    staged = [
        StagedDisk(disk.id, f"/s/web01-{disk.id}.vmdk", 1 << 29, f"{n:064x}", disk.capacity_bytes)
        for n, disk in enumerate(disks)
    ]
    values = []
    with tempfile.TemporaryDirectory(prefix="hyperflow-bench-") as folder:
        for _ in range(MANIFEST_ROUNDS):
            begun = time.monotonic()
            manifest = build_manifest(vm, staged, exported=datetime.now(UTC), job_id="bench")
            save(manifest, Path(folder) / "artifact-manifest.json")
            values.append((time.monotonic() - begun) * 1000)
    return of_values("manifest_ms", values, 10, "ms")
