"""The main job: a guest that does not boot on virtio leaves vCenter and proves itself booted on KVM."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hyperflow.hooks.kvmhost_program import pack
from hyperflow.hooks.records import safe
from jsonschema import Draft7Validator

from lab import lab
from lab.guest import ensure_guest
from lab.running import RunningLab

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
DAG_ID = f"migrate.{lab.PLAN}.{lab.VM}"


@dataclass(frozen=True)
class Migrated:
    """A run of the real migration and what it left."""

    run_id: str
    state: str
    report: dict[str, Any]
    lab: RunningLab

    @property
    def staging(self) -> Path:
        return self.lab.folders.staging / "web01"

    @property
    def records(self) -> Path:
        """What Airflow's side keeps of the run."""
        return self.lab.folders.state / "airflow" / "hyperflow" / DAG_ID / safe(self.run_id)

    @property
    def images(self) -> Path:
        return self.lab.folders.images / "web01"


@pytest.fixture(scope="module")
def migrated(running_lab: RunningLab) -> Migrated:
    """One real migration for the tests of this module."""
    run_id = running_lab.start(DAG_ID)
    state = running_lab.wait(DAG_ID, run_id)
    return Migrated(run_id, state, running_lab.report(DAG_ID, run_id), running_lab)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_the_run_succeeds_with_the_guests_own_word_for_it(migrated: Migrated) -> None:
    assert migrated.report["errors"] == []
    assert (migrated.state, migrated.report["summary"]["outcome"]) == ("success", "proven")
    proof = migrated.report["boot_proof"]
    assert proof["proven"] is True
    evidence = json.dumps(proof["evidence"])
    for fact in ("ens192", "192.0.2.10/24", "/srv/data", "web01"):
        assert fact in evidence


def test_the_console_log_and_a_screenshot_of_the_booted_guest_are_kept(migrated: Migrated) -> None:
    proof = migrated.report["boot_proof"]
    assert "web01 login:" in Path(proof["console_log"]).read_text(errors="replace")
    assert Path(proof["screenshot"]).read_bytes().startswith(b"\x89PNG\r\n")


def test_airflow_shows_the_report_the_console_and_the_screenshot_as_they_are_on_the_host(migrated: Migrated) -> None:
    page = f"/hyperflow/runs/{DAG_ID}/{quote(migrated.run_id, safe='')}/"
    proof = migrated.report["boot_proof"]
    assert migrated.lab.api.request("GET", f"{page}report.json") == migrated.report
    for name, path in (("console.log", proof["console_log"]), ("screenshot.png", proof["screenshot"])):
        assert (migrated.records / name).read_bytes() == Path(path).read_bytes()


def test_the_audit_file_tells_who_started_it_each_change_at_the_vcenter_and_each_command(migrated: Migrated) -> None:
    file = migrated.records / "audit.jsonl"
    on_the_host = migrated.images / "report.json"
    done = subprocess.run(
        [ROOT / "hyperflow", "audit", "verify", str(file), "--report", str(on_the_host)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert (entries[0]["what"], entries[0]["by"]) == ("migration started", "admin")
    assert migrated.report["run"]["requested_by"] == "admin"
    calls = [(entry["what"], entry["state"]) for entry in entries if entry["kind"] == "vsphere"]
    for method, count in (
        ("CreateSnapshot_Task", 1),
        ("ExportSnapshot", 2),
        ("HttpNfcLeaseComplete", 2),
        ("RemoveSnapshot_Task", 1),
    ):
        assert [calls.count((method, state)) for state in ("asked", "done")] == [count, count]
    commands = [entry for entry in entries if entry["kind"] == "host" and "exit" in entry]
    assert {"qemu-img", "virt-install", "virsh", "hyperflow-kvmhost"} <= {one["what"].split()[0] for one in commands}
    assert all("seconds" in one for one in commands)
    assert [entry["what"] for entry in entries if entry["kind"] == "run"] == ["migration started", "ended"]


def test_the_staged_disks_are_what_the_vcenter_served_and_no_stage_changed_them(migrated: Migrated) -> None:
    served = {disk["sha256"] for disk in json.loads((ensure_guest() / "guest.json").read_text())["disks"]}
    staged = {sha256(path) for path in migrated.staging.glob("web01-disk*.vmdk")}
    assert staged == served


def test_the_manifest_is_valid_and_names_the_staged_disks(migrated: Migrated) -> None:
    manifest = migrated.staging / "artifact-manifest.json"
    schema = json.loads((ROOT / "include/schemas/artifact-manifest-v1.0.schema.json").read_text())
    document = json.loads(manifest.read_text())
    Draft7Validator(schema).validate(document)
    assert [disk["disk_type"] for disk in document["disks"]] == ["boot", "data"]
    done = subprocess.run([ROOT / "hyperflow", "manifest", "verify", str(manifest)], check=False)
    assert done.returncode == 0


def test_xcom_carries_the_manifests_host_path_and_digest(migrated: Migrated) -> None:
    value = migrated.lab.api.xcom(DAG_ID, migrated.run_id, "manifest")
    assert value == {
        "host": lab.HOST_CONNECTION,
        "path": str(migrated.staging / "artifact-manifest.json"),
        "sha256": sha256(migrated.staging / "artifact-manifest.json"),
    }


def test_the_images_are_sound_and_have_the_digests_of_the_report(migrated: Migrated) -> None:
    artifacts = migrated.report["artifacts"]
    assert [artifact["disk_id"] for artifact in artifacts] == ["disk-0", "disk-1"]
    for artifact in artifacts:
        assert sha256(Path(artifact["path"])) == artifact["sha256"]
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", artifact["path"]], check=True)


def test_the_report_fits_its_schema(migrated: Migrated) -> None:
    schema = json.loads((ROOT / "include/schemas/report.schema.json").read_text())
    Draft7Validator(schema).validate(migrated.report)


def test_the_domain_is_defined_with_the_sources_hardware_and_not_started(migrated: Migrated) -> None:
    command = ["virsh", "--connect", migrated.lab.host.libvirt_uri, "dumpxml", "web01"]
    xml = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for part in ("00:50:56:9a:10:01", "disk-0.qcow2", "disk-1.qcow2", migrated.lab.host.network):
        assert part in xml
    command = ["virsh", "--connect", migrated.lab.host.libvirt_uri, "domstate", "web01"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "shut off"


def test_nothing_is_left_at_the_source_and_on_the_host(migrated: Migrated) -> None:
    truth = migrated.lab.vcenter.admin("GET", "/state")
    assert truth["leases"]["live"] == []
    assert truth["sessions"] == []
    assert migrated.lab.snapshots() == ["snap01"]
    assert not (migrated.staging / "work").exists()
    assert list(migrated.staging.rglob("*.partial")) == []
    assert list((migrated.lab.folders.staging / ".hyperflow").glob("jobs/*/*")) == []
    assert processes_of_runs() == []


def test_the_log_of_a_task_tells_what_the_stage_said_once(migrated: Migrated) -> None:
    for task in migrated.lab.api.task_instances(DAG_ID, migrated.run_id):
        if task.task_id in ("export", "convert", "fix", "boot"):
            lines = migrated.lab.api.log_lines(DAG_ID, migrated.run_id, task)
            said = [line for line in lines if line.startswith("progress: ")]
            assert len(said) == len(set(said)), task
            if task.task_id == "export":
                assert said, task
            if task.task_id == "convert":
                assert sum("decoded while it was downloaded" in line for line in lines) == 1, task


def test_no_log_xcom_or_report_carries_a_secret(migrated: Migrated) -> None:
    secrets = [(migrated.lab.folders.vcenter / "password").read_text(), "session[", "/nfc/"]
    logs = list((migrated.lab.folders.state / "airflow" / "logs").rglob("*.log"))
    assert logs
    for path in [*logs, migrated.images / "report.json", migrated.staging / "artifact-manifest.json"]:
        text = path.read_text(errors="replace")
        assert [secret for secret in secrets if secret in text] == [], path
    database = (migrated.lab.folders.state / "airflow" / "airflow.db").read_bytes()
    assert secrets[0].encode() not in database


def test_the_program_on_the_host_is_the_one_of_this_checkout(migrated: Migrated) -> None:
    program = migrated.lab.folders.staging / ".hyperflow" / "bin" / pack().name
    assert sha256(program) == pack().sha256


def test_a_host_is_checked_from_the_command_line(migrated: Migrated) -> None:
    folders = migrated.lab.folders
    command = [ROOT / "hyperflow", "host", "check", lab.HOST_CONNECTION, "--airflow", folders.state / "airflow.json"]
    where = ["--staging", folders.staging, "--output", folders.images]
    done = subprocess.run([*command, *where], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for word in ("qemu-img", "acceleration", "GiB free"):
        assert word in done.stdout
    missing = subprocess.run([*command, "--staging", "/proc/no"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "/proc/no" in missing.stdout


def test_a_domain_that_is_there_keeps_a_second_run_from_replacing_its_images(migrated: Migrated) -> None:
    run_id = migrated.lab.start(DAG_ID)
    assert migrated.lab.wait(DAG_ID, run_id) == "failed"
    message = migrated.lab.failure(DAG_ID, run_id, "preflight")
    assert "is a disk of the domain web01" in message
    assert sha256(migrated.images / "disk-0.qcow2") == migrated.report["artifacts"][0]["sha256"]


def test_bytes_that_change_after_the_export_are_found_before_anything_is_converted(migrated: Migrated) -> None:
    """Last of this module: it spoils the staged disk and runs checksum and what follows again."""
    disk = migrated.staging / "web01-disk2.vmdk"
    with disk.open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)
        file.seek(1_000_000)
        file.write(bytes([byte[0] ^ 1]))
    migrated.lab.clear(DAG_ID, migrated.run_id, "checksum")
    assert migrated.lab.wait(DAG_ID, migrated.run_id) == "failed"
    report = migrated.lab.report(DAG_ID, migrated.run_id)
    (error,) = report["errors"]
    assert error["stage"] == "checksum"
    assert "was changed after its download" in error["message"]
    assert report["pipeline"]["stages"]["convert"]["skipped"]
    domains = subprocess.run(
        ["virsh", "--quiet", "list", "--all", "--name"], capture_output=True, text=True, check=True
    )
    assert "web01" in domains.stdout.split(), "the run had proved it before it was cleared: somebody may use it"


def processes_of_runs() -> list[str]:
    """Processes that carry the mark of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"HYPERFLOW_RUN={DAG_ID}/".encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
