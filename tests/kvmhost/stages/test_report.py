"""Writing the report beside the images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hyperflow.kvmhost.stage import Job
from hyperflow.kvmhost.stages import report


def test_the_report_and_its_digest_are_what_lies_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "report.json"

    observed = report.run(report.Options(path, {"artifacts": [], "name": "\u00fc\ud800"}), Job("report"))

    assert json.loads(path.read_text()) == {"artifacts": [], "name": "\u00fc\ud800"}
    assert observed == {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    (tmp_path / ".report.json.5.tmp").write_text("of a killed run")
    for number in range(2):
        report.run(report.Options(path, {"number": number}), Job("report"))

    assert json.loads(path.read_text()) == {"number": 1}
    assert list(tmp_path.iterdir()) == [path]
