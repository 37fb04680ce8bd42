"""What a host says it has done is held to what it was asked, before anything goes on with it."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from hyperflow.operators import base
from hyperflow.operators.results import require_as_asked, require_every_disk, require_sound

DIGEST = "ab" * 32
SOUND: dict[str, Any] = {
    "stage": "checksum",
    "succeeded": True,
    "observed": {},
    "warnings": [],
    "host": "kvm01",
    "started": "2026-01-21T20:00:00Z",
    "seconds": 1.5,
    "bytes_read": 1,
    "bytes_written": 0,
    "tools": {},
}
ASKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "download": (
        {
            "target": "/s/web01/web01-disk1.vmdk",
            "disk_id": "disk-0",
            "capacity_bytes": 512,
            "source": "a of snapshot-12",
        },
        {
            "path": "/s/web01/web01-disk1.vmdk",
            "disk_id": "disk-0",
            "virtual_bytes": 512,
            "sha256": DIGEST,
            "source": "a of snapshot-12",
        },
    ),
    "fix": (
        {"work_directory": "/s/web01/work", "manifest": {"path": "/s/web01/artifact-manifest.json", "sha256": DIGEST}},
        {
            "manifest_sha256": DIGEST,
            "overlays": {"disk-0": "/s/web01/work/fix/disk-0.qcow2", "disk-1": "/s/web01/work/fix/disk-1.qcow2"},
        },
    ),
    "convert": (
        {"output_directory": "/i/web01", "filename": "disk-0.qcow2", "disk_id": "disk-0", "format": "qcow2"},
        {"path": "/i/web01/disk-0.qcow2", "disk_id": "disk-0", "format": "qcow2"},
    ),
    "checksum": ({"disk_id": "disk-0"}, {"disk_id": "disk-0"}),
    "boot": (
        {"artifacts_directory": "/i/web01/boot"},
        {"console_log": "/i/web01/boot/console.log", "screenshot": "/i/web01/boot/screenshot.png"},
    ),
    "define": ({"name": "web01", "uuid": "4210A000-0000"}, {"name": "web01", "uuid": "4210a000-0000"}),
    "manifest": ({"path": "/s/web01/m.json"}, {"path": "/s/web01/m.json", "sha256": DIGEST}),
    "report": ({"path": "/i/web01/report.json"}, {"path": "/i/web01/report.json"}),
}


@pytest.mark.parametrize("stage", ASKED)
def test_a_result_of_what_was_asked_for_is_taken(stage: str) -> None:
    require_as_asked(stage, *ASKED[stage])


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("download", "path", "/etc/shadow"),
        ("download", "path", "/s/web01/../web02/web02-disk1.vmdk"),
        ("download", "path", None),
        ("download", "disk_id", "disk-1"),
        ("download", "virtual_bytes", 1024),
        ("download", "source", "a of snapshot-11"),
        ("download", "sha256", "ab"),
        ("download", "sha256", DIGEST + "\n"),
        ("fix", "overlays", {"disk-0": "/etc/shadow"}),
        ("fix", "overlays", {"disk-0": "/s/web01/work/fix/../../disk-0.qcow2"}),
        ("fix", "overlays", {"../../x": "/s/web01/work/fix/../../x.qcow2"}),
        ("fix", "overlays", ["/etc/shadow"]),
        ("fix", "overlays", None),
        ("fix", "manifest_sha256", "a" * 64),
        ("convert", "path", "/i/web02/disk-0.qcow2"),
        ("convert", "disk_id", "disk-1"),
        ("convert", "format", "raw"),
        ("checksum", "disk_id", "disk-1"),
        ("boot", "console_log", "/etc/passwd"),
        ("boot", "screenshot", "/i/web01/boot/../../../etc/shadow"),
        ("boot", "screenshot", 5),
        ("define", "name", "web02"),
        ("define", "uuid", "another"),
        ("manifest", "path", "/s/web02/m.json"),
        ("manifest", "sha256", None),
        ("report", "path", "/etc/motd"),
    ],
)
def test_a_result_that_claims_something_else_is_refused_for_good(stage: str, field: str, value: Any) -> None:
    options, observed = ASKED[stage]
    with pytest.raises(AirflowFailException, match=f"result of {stage}: .*{field}") as refused:
        require_as_asked(stage, options, {**observed, field: value})
    assert "expected" in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("observed", "/etc"),
        ("observed", None),
        ("error", ["x"]),
        ("seconds", "long"),
        ("started", "yesterday"),
        ("tools", ["qemu"]),
        ("warnings", "one"),
        ("bytes_read", -1),
    ],
)
def test_a_result_of_another_shape_is_refused_before_the_report_would_fail_over_it(field: str, value: Any) -> None:
    require_sound(SOUND)
    with pytest.raises(AirflowFailException, match="result of the host"):
        require_sound({**SOUND, field: value})


def test_a_job_that_left_no_result_says_what_is_there_instead() -> None:
    event = {
        "state": "DONE",
        "exit_status": 0,
        "job": "/s/1",
        "result": None,
        "result_fault": "/s/1/result.json: a FIFO",
    }
    with pytest.raises(Exception, match="left no result that can be read: /s/1/result"):
        base.take_result({}, event)  # type: ignore[typeddict-item]


@pytest.mark.parametrize("found", [[], ["disk-0"], ["disk-0", "disk-0"], ["disk-0", "disk-1", "disk-2"]])
def test_a_vm_is_not_booted_or_defined_with_other_disks_than_it_has(found: list[str]) -> None:
    require_every_disk([{"disk_id": one} for one in ("disk-1", "disk-0")], ["disk-0", "disk-1"])
    with pytest.raises(AirflowFailException, match=r"expected one of each disk, disk-0, disk-1\. Was a task convert"):
        require_every_disk([{"disk_id": one} for one in found], ["disk-0", "disk-1"])
