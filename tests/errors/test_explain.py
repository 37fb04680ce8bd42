"""Where a person meets the codes: on the command line, in a task's log, and in the report."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from hyperflow.cli.airflow_api import AirflowApi
from hyperflow.cli.convert import convert
from hyperflow.cli.explain import explain
from hyperflow.cli.migrate import Outcome, what_failed
from hyperflow.errors.catalogue import areas
from hyperflow.manifest.report import StagePart
from hyperflow.manifest.report_builder import stage_of_parts
from hyperflow.operators.base import FAILURE_KEY, HostRunOperator

from tests.manifest.test_report import report

NO_SSH = "connection kvm01: no SSH session with 10.0.0.5:22 (timed out)"


class Kept:
    """A task instance, as far as a failure is kept in it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.values[key] = value


def test_a_code_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("HF-HOST-003", None, as_json=False) == 0
    said = capsys.readouterr().out
    assert "HF-HOST-003: No SSH session with the host could be opened" in said
    assert "What to do: " in said
    assert "Likely cause: " in said


def test_a_message_from_a_log_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(None, f"[05:00] ERROR - {NO_SSH}", as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["code"], told["area"]) == ("HF-HOST-003", "HOST")
    assert told["what_to_do"]


def test_a_log_that_is_piped_in_is_explained_by_the_code_in_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("INFO begin\nERROR HF-FIX-002: The guest has no room\n"))
    assert explain(None, "-", as_json=False) == 0
    assert "HF-FIX-002" in capsys.readouterr().out


def test_all_codes_are_listed_by_area(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(None, None, as_json=False) == 0
    said = capsys.readouterr().out
    for area in areas():
        assert f"{area.area}: {area.title}" in said
        assert all(entry.code in said for entry in area.entries)
    assert explain(None, None, as_json=True) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["code"] for one in listed] == [entry.code for area in areas() for entry in area.entries]


def test_an_unknown_code_is_wrong_usage_and_an_unknown_message_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("HF-NO-1", None, as_json=False) == 2
    assert explain(None, "the moon is full", as_json=False) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "HF-NO-1: no such code" in told.err
    assert "please report it" in told.err


def test_a_task_that_fails_keeps_the_code_and_says_in_its_log_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()
    operator = HostRunOperator(task_id="fix")

    def fail() -> None:
        raise AirflowFailException(f"fix on kvm01: {NO_SSH}")

    with pytest.raises(AirflowFailException):
        operator._reporting_failure({"ti": kept}, fail)
    assert kept.values[FAILURE_KEY] == {"stage": "fix", "message": f"fix on kvm01: {NO_SSH}", "code": "HF-HOST-003"}
    (said,) = [record.getMessage() for record in caplog.records if "HF-" in record.getMessage()]
    assert said.startswith("HF-HOST-003: No SSH session")
    assert "What to do: " in said


def test_a_task_that_fails_for_a_reason_nobody_foresaw_has_the_code_of_its_area() -> None:
    kept = Kept()

    def fail() -> None:
        raise KeyError("disks")

    with pytest.raises(KeyError):
        HostRunOperator(task_id="boot")._reporting_failure({"ti": kept}, fail)
    assert kept.values[FAILURE_KEY]["code"] == "HF-BOOT-000"


def test_the_report_names_the_code_beside_the_error() -> None:
    good = StagePart(success=True, duration=1)
    bad = StagePart(success=False, duration=1, error="cut", code="HF-EXPORT-014")
    told = report({"export": stage_of_parts({"disk-0": good, "disk-1": bad}), "fix": good})
    assert told["errors"] == [{"stage": "export", "message": "disk-1: cut", "code": "HF-EXPORT-014"}]
    assert told["pipeline"]["stages"]["export"]["code"] == "HF-EXPORT-014"
    assert told["pipeline"]["stages"]["export"]["parts"]["disk-1"]["code"] == "HF-EXPORT-014"
    assert "code" not in told["pipeline"]["stages"]["fix"]


def test_convert_says_code_and_what_to_do_of_a_disk_that_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4096))
    manifest = tmp_path / "manifest.json"
    entry = {"id": "disk-0", "source_format": "raw", "bytes": 4096, "local_path": str(disk)}
    entry["checksum"] = f"sha256:{hashlib.sha256(b'another').hexdigest()}"
    manifest.write_text(
        json.dumps(
            {
                "manifest_version": "1.0",
                "disks": [entry],
                "pipeline": {"convert": {"enabled": True}, "fix": {"enabled": False}, "inspect": {"enabled": False}},
            }
        )
    )
    assert convert(manifest, output=tmp_path / "out", profile=None, image_format=None, dry_run=False) == 1
    said = capsys.readouterr().out
    assert "HF-CHECKSUM-001: A staged disk is not what was exported any more" in said
    assert "What to do: " in said
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [one["code"] for one in told["errors"]] == ["HF-CHECKSUM-001"]


class Airflow(BaseHTTPRequestHandler):
    """Answers as Airflow does when it is asked for what a run's last task left."""

    def do_POST(self) -> None:
        self.answer({"access_token": "t"})

    def do_GET(self) -> None:
        failures = [{"stage": "boot", "code": "HF-BOOT-002"}, {"stage": "export", "code": "HF-TOMORROW-001"}]
        self.answer({"value": {"path": "/o/report.json", "failures": failures}})

    def answer(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[AirflowApi]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Airflow)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = tmp_path / "airflow.json"
    url = f"http://127.0.0.1:{server.server_address[1]}"
    endpoint.write_text(json.dumps({"url": url, "user": "u", "password": "p"}))
    yield AirflowApi(endpoint)
    server.shutdown()
    server.server_close()
    thread.join()


def test_migrate_says_what_to_do_of_each_failure_also_of_one_that_only_a_newer_hyperflow_knows(api: AirflowApi) -> None:
    boot, export = what_failed(api, Outcome("migrate.p.web01", "r", "failed", []))
    assert boot.startswith("boot: HF-BOOT-002: The guest's kernel panicked")
    assert "What to do: " in boot
    assert export == "export: HF-TOMORROW-001"
