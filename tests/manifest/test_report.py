"""report.json is made of what was observed."""

from datetime import UTC, datetime, timedelta

import jsonschema
import pytest
from hyperflow.manifest.load import manifest_of
from hyperflow.manifest.report import BootProof, Hosts, Message, ReportedVm, Run, SourceCleanup, StagePart
from hyperflow.manifest.report_builder import ReportError, build_report, host_part, stage_of_parts
from hyperflow.manifest.schema import report_schema

START = datetime(2026, 11, 23, 21, 0, tzinfo=UTC)
IMAGE = {
    "disk_id": "disk-0",
    "path": "/images/web01/disk-0.qcow2",
    "format": "qcow2",
    "bytes": 500,
    "virtual_bytes": 4096,
    "sha256": "a" * 64,
    "content_sha256": "b" * 64,
    "clusters": 3,
}
MANIFEST = manifest_of(
    {
        "manifest_version": "1.0",
        "source": {"provider": "vsphere", "vm_id": "vm-59", "vm_name": "web01"},
        "disks": [
            {
                "id": "disk-0",
                "source_format": "vmdk",
                "bytes": 1,
                "local_path": "/s/d.vmdk",
                "boot_order_hint": 0,
            }
        ],
    }
)


def result(**changes):
    base = {
        "stage": "convert",
        "succeeded": True,
        "observed": IMAGE,
        "warnings": ["no compression"],
        "host": "kvm01",
        "started": "2026-11-23T21:00:00Z",
        "seconds": 2.5,
        "bytes_read": 1000,
        "bytes_written": 500,
        "tools": {"qemu-img": "7.2.22"},
    }
    return base | changes


def report(stages, **more):
    made = build_report(
        run=Run(dag_id="migrate.p.web01", run_id="manual__1", plan="p"),
        vm=ReportedVm(name="web01", slug="web01", selector="name 'web01'"),
        hosts=Hosts(vcenter="vcenter", kvm="kvm01"),
        stages=stages,
        started=START,
        ended=START + timedelta(minutes=2),
        **more,
    ).to_document()
    jsonschema.Draft7Validator(report_schema()).validate(made)
    return made


def converted():
    return {"convert": stage_of_parts({"disk-0": host_part(result())})}


def test_a_proven_migration_is_a_success_with_its_artifacts_tools_and_warnings():
    made = report(
        converted(),
        manifest=MANIFEST,
        manifest_path="/s/artifact-manifest.json",
        manifest_sha256="c" * 64,
        boot_proof=BootProof(proven=True, accelerator="tcg", seconds_to_up=61.5, evidence={"kernel": "6.1"}),
        source_cleanup=SourceCleanup(clean=True, snapshots_left=[], leases_left=[]),
    )
    assert made["pipeline"]["success"] is True
    assert made["pipeline"]["duration_seconds"] == 120
    assert made["artifacts"] == [
        {"type": "converted_disk"} | {k: v for k, v in IMAGE.items() if k != "clusters"} | {"boot_order_hint": 0}
    ]
    assert made["warnings"] == [{"stage": "convert", "message": "disk-0: no compression"}]
    assert made["tools"] == {"qemu-img": "7.2.22"}
    assert made["input_manifest"] == {
        "path": "/s/artifact-manifest.json",
        "manifest_version": "1.0",
        "checksum": "sha256:" + "c" * 64,
        "source_provider": "vsphere",
        "source_vm_id": "vm-59",
        "source_vm_name": "web01",
    }
    assert made["summary"]["outcome"] == "proven"
    convert = made["pipeline"]["stages"]["convert"]
    assert convert["parts"]["disk-0"]["result"] == IMAGE
    assert convert["bytes_per_second"] == 400


def test_the_hash_that_convert_left_to_validate_is_taken_from_there():
    left = host_part(result(observed=IMAGE | {"sha256": None}))
    read = host_part(result(stage="validate", observed={"images": [{"disk_id": "disk-0", "sha256": "d" * 64}]}))

    assert "sha256" not in report({"convert": stage_of_parts({"disk-0": left})})["artifacts"][0]
    made = report({"convert": stage_of_parts({"disk-0": left}), "validate": read})
    assert made["artifacts"][0]["sha256"] == "d" * 64


def test_no_proof_no_success():
    assert report(converted())["summary"]["outcome"] == "unproven"
    made = report(converted(), boot_proof=BootProof(proven=False))
    assert (made["summary"]["outcome"], made["pipeline"]["success"]) == ("failed", False)


def test_a_run_that_failed_early_has_a_report_that_says_why():
    failed = StagePart(success=False, duration=0.5, error="vm: found none called web01")
    made = report({"preflight": failed})
    assert made["pipeline"]["success"] is False
    assert made["errors"] == [{"stage": "preflight", "message": "vm: found none called web01"}]
    assert (made["input_manifest"], made["boot_proof"], made["source_cleanup"]) == (None, None, None)


def test_a_run_in_which_no_stage_did_anything_is_no_success():
    skipped = StagePart(success=True, duration=0, skipped="dry run")
    proof = BootProof(proven=True)
    assert report({}, boot_proof=proof)["pipeline"]["success"] is False
    made = report({"convert": skipped}, boot_proof=proof)
    assert made["pipeline"]["success"] is False
    assert made["summary"]["skipped_stages"] == 1


def test_an_error_outside_the_stages_is_no_success_either():
    left = Message(stage="cleanup", message="snapshot snapshot-7 is left")
    made = report(converted(), boot_proof=BootProof(proven=True), errors=[left])
    assert made["pipeline"]["success"] is False


def test_a_stage_with_one_failed_disk_failed_and_says_which():
    broken = host_part(
        result(
            succeeded=False,
            observed={},
            error={"kind": "failed", "message": "grain 7: bad data"},
            seconds=1.0,
        )
    )
    stage = stage_of_parts({"disk-0": host_part(result()), "disk-1": broken})
    assert not stage.success
    assert stage.error == "disk-1: grain 7: bad data"
    made = report({"convert": stage})
    assert [artifact["disk_id"] for artifact in made["artifacts"]] == ["disk-0"]


def test_a_stage_of_which_every_disk_was_skipped_was_skipped_and_did_not_fail():
    skipped = StagePart(success=False, duration=0, skipped="dry run")
    stage = stage_of_parts({"disk-0": skipped, "disk-1": skipped})
    assert (stage.skipped, stage.error) == ("dry run", None)
    assert report({"preflight": StagePart(success=True, duration=1), "convert": stage})["summary"] == {
        "outcome": "unproven",
        "total_stages": 2,
        "successful_stages": 1,
        "failed_stages": 0,
        "skipped_stages": 1,
        "total_warnings": 0,
        "total_errors": 0,
        "total_artifacts": 0,
        "input_disks": 0,
        "output_disks": 0,
    }


def test_disks_that_ran_side_by_side_took_the_time_from_first_start_to_last_end():
    later = host_part(result(started="2026-11-23T21:00:02Z", seconds=3.0))
    assert stage_of_parts({"disk-0": host_part(result()), "disk-1": later}).duration == 5.0


def test_what_is_no_result_of_a_stage_is_refused_with_its_faults():
    with pytest.raises(ReportError) as refused:
        host_part({"succeeded": "yes", "seconds": -1})
    assert [fault.path for fault in refused.value.faults] == ["success", "duration"]
