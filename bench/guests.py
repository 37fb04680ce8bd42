"""The lab's guest: what fixing it takes, and what a whole migration of it takes beyond its stages' own seconds."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from datetime import datetime
from pathlib import Path
from typing import Any

from hyperflow.cli.airflow_api import AirflowApi
from hyperflow.kvmhost import acceleration
from hyperflow.kvmhost.stage import Job
from rich.console import Console

from bench import stages
from bench.results import Result, of_pair
from lab import demo, lab
from lab.guest import ensure_guest
from lab.guest.proof import vmdks

TCG = "LIBGUESTFS_BACKEND_SETTINGS=force_tcg"  # where /dev/kvm is there and does not work, libguestfs must be told
MAC = "00:50:56:9a:10:01"  # of the guest's NIC, see lab/guest/build.py


def measure_fix(folder: Path, console: Console) -> Result:
    """Fix the guest once by each; both work on overlays, start an appliance and rebuild every initramfs."""
    disks = vmdks(ensure_guest(console.print))
    options: dict[str, Any] = {
        "manifest": stages.manifest(folder, disks),
        "work_directory": str(folder / "work"),
        "backup": True,
        "update_grub": True,
        "regen_initramfs": True,
        "print_fstab": False,
        "remove_vmware_tools": False,
        "fstab_mode": "stabilize-all",
        "nics": [{"mac": MAC}],
    }
    ran = stages.run("fix", options, folder)
    description = _describe(folder, disks)
    accelerator = acceleration.detect(Job("bench"))
    settings = ["LIBGUESTFS_BACKEND=direct", *([] if accelerator == acceleration.KVM else [TCG])]
    peer = stages.timed(["env", *settings, "virt-v2v-in-place", "--quiet", "-i", "libvirtxml", description])
    notes = {"seconds_of_steps": ran.observed["seconds"], "accelerator": accelerator}
    return of_pair("fix", [ran.seconds], [peer], 0.60, notes)


def measure_migration(console: Console) -> Result:
    """Migrate the demo's guest by its DAG, on a lab that is started for it and ended afterwards."""
    if lab.folders().state.exists():
        raise stages.BenchError("the lab is up; './hyperflow lab down' first, so that nothing else is measured")
    try:
        lab.up(console.print)
        outcome = demo.run(console)
        api = AirflowApi(lab.folders().state / "airflow.json")
        report = api.xcom(outcome.dag_id, outcome.run_id, "report", "report") or {}
        if outcome.state != "success":
            raise stages.BenchError(f"the migration ended as {outcome.state}: {report}")
        run = f"/api/v2/dags/{outcome.dag_id}/dagRuns/{outcome.run_id}"
        tasks = api.request("GET", f"{run}/taskInstances", params={"limit": 1000})["task_instances"]
        told = json.loads(Path(report["path"]).read_text())["pipeline"]["stages"]
    finally:
        lab.down()
    parts = {name: stage["duration"] for name, stage in told.items()}
    return of_pair("migration", [_span(tasks)], [sum(parts.values())], 1.25, {"seconds_of_stages": parts})


def _span(tasks: list[dict[str, Any]]) -> float:
    """Seconds from the first task queued to the last one done."""
    queued = [datetime.fromisoformat(task["queued_when"]) for task in tasks if task["queued_when"]]
    ended = [datetime.fromisoformat(task["end_date"]) for task in tasks if task["end_date"]]
    return (max(ended) - min(queued)).total_seconds()


def _describe(folder: Path, disks: list[Path]) -> Path:
    """Make overlays of the disks, and the libvirt domain that virt-v2v-in-place is told of."""
    domain = ET.Element("domain", type="kvm")
    ET.SubElement(domain, "name").text = "web01"
    ET.SubElement(domain, "memory", unit="MiB").text = "1024"
    ET.SubElement(domain, "vcpu").text = "1"
    ET.SubElement(ET.SubElement(domain, "os"), "type", arch="x86_64").text = "hvm"
    devices = ET.SubElement(domain, "devices")
    for number, disk in enumerate(disks):
        overlay = folder / f"v2v-{number}.qcow2"
        stages.timed(["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "vmdk", overlay])
        element = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(element, "driver", name="qemu", type="qcow2")
        ET.SubElement(element, "source", file=str(overlay))
        ET.SubElement(element, "target", dev=f"sd{chr(ord('a') + number)}", bus="scsi")
    target = folder / "web01.xml"
    ET.ElementTree(domain).write(target)
    return target
