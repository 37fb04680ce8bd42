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
ROUNDS = 3
MAC = "00:50:56:9a:10:01"  # of the guest's NIC, see lab/guest/build.py


def measure_fix(folder: Path, console: Console) -> Result:
    """Fix the guest by both in turns; both work on overlays, start an appliance and rebuild every initramfs."""
    disks = vmdks(ensure_guest(console.print))
    options = fix_options(folder, disks)
    accelerator = acceleration.detect(Job("bench"))
    settings = ["LIBGUESTFS_BACKEND=direct", *([] if accelerator == acceleration.KVM else [TCG])]
    ours, peer = [], []
    for _ in range(ROUNDS):
        ran = stages.run("fix", options, folder)
        ours.append(ran.seconds)
        description = _describe(folder, disks)
        peer.append(stages.timed(["env", *settings, "virt-v2v-in-place", "--quiet", "-i", "libvirtxml", description]))
    notes = {"seconds_of_steps": ran.observed["seconds"], "accelerator": accelerator}
    return of_pair("fix", ours, peer, 0.60, notes)


def fix_options(folder: Path, disks: list[Path]) -> dict[str, Any]:
    """Say what the stage is asked to do."""
    return {
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


def measure_migration(console: Console) -> Result:
    """Migrate the demo's guest by its DAG, on a lab that is started for it and ended afterwards."""
    if lab.folders().state.exists():
        raise stages.BenchError("the lab is up; './hyperflow lab down' first, so that nothing else is measured")
    wall, sums = [], []
    for _ in range(ROUNDS):
        try:
            lab.up(console.print)
            seconds, parts = _migrate(console)
        finally:
            lab.down()
        wall.append(seconds)
        sums.append(sum(parts.values()))
    return of_pair("migration", wall, sums, 1.25, {"seconds_of_stages": parts})


def _migrate(console: Console) -> tuple[float, dict[str, float]]:
    """Run the demo's DAG; its seconds, and those of each of its stages."""
    outcome = demo.run(console)
    api = AirflowApi(lab.folders().state / "airflow.json")
    report = api.xcom(outcome.dag_id, outcome.run_id, "report", "report") or {}
    if outcome.state != "success":
        raise stages.BenchError(f"the migration ended as {outcome.state}: {report}")
    run = f"/api/v2/dags/{outcome.dag_id}/dagRuns/{outcome.run_id}"
    tasks = api.request("GET", f"{run}/taskInstances", params={"limit": 1000})["task_instances"]
    told = json.loads(Path(report["path"]).read_text())["pipeline"]["stages"]
    return _span(tasks), {name: stage["duration"] for name, stage in told.items()}


def peaks(folder: Path, console: Console) -> dict[str, float]:
    """Peak memory, in MiB, of the stages that work on a guest: the lab's, from inspection to its boot."""
    disks = vmdks(ensure_guest(console.print))
    options = fix_options(folder, disks)
    inspect = {"manifest": options["manifest"], "work_directory": options["work_directory"]}
    found = stages.run("inspect", {**inspect, "collect_guest_info": True}, folder, watch=True)
    fixed = stages.run("fix", options, folder, watch=True)
    images = []
    for number in range(len(disks)):
        convert = {
            "manifest": options["manifest"],
            "disk_id": f"disk-{number}",
            "output_directory": str(folder / "output"),
            "filename": f"web01-{number}.qcow2",
            "format": "qcow2",
            "overlay": fixed.observed["overlays"][f"disk-{number}"],
        }
        made = stages.run("convert", convert, folder).observed
        images.append({"path": made["path"], "format": "qcow2", "disk_id": f"disk-{number}"})
    boot = {
        "images": images,
        "work_directory": str(folder / "work"),
        "artifacts_directory": str(folder / "boot"),
        "hardware": {"firmware": "bios", "cpus": 1, "memory_mb": 1024, "nics": [{"mac": MAC}]},
        "expect": {"root": found.observed["root"]},
    }
    booted = stages.run("boot", boot, folder, watch=True)
    ran = {"inspect": found, "fix": fixed, "boot": booted}
    return {name: round(one.peak_kib / 1024, 1) for name, one in ran.items()}


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
