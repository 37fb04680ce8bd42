"""Writing the report beside the images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hyperflow.kvmhost.stage import Job, StageError
from hyperflow.kvmhost.stages import report


def test_the_report_and_its_digest_are_what_lies_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "report.json"

    observed = report.run(report.Options(path, {"artifacts": [], "name": "\u00fc\ud800"}), Job("report"))

    assert json.loads(path.read_text()) == {"artifacts": [], "name": "\u00fc\ud800"}
    assert observed == {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    (tmp_path / ".report.json.5.tmp").write_text("of a killed run")
    for success in (False, True):
        report.run(report.Options(path, {"pipeline": {"success": success}}), Job("report"))

    assert json.loads(path.read_text()) == {"pipeline": {"success": True}}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "{}", "[" * 100_000, '{"version": "1.0", "pipeline": {"fix": {}}}', "\udcff"])
def test_what_is_no_report_is_never_replaced(content: str, tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text(content, errors="surrogateescape")
    before = path.read_bytes()
    with pytest.raises(StageError, match=r"daemon.json: found something that is no report of a migration"):
        report.run(report.Options(path, {"pipeline": {"success": True}}), Job("report"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_to_a_report_is_not_followed_and_not_replaced(tmp_path: Path) -> None:
    target, path = tmp_path / "other.json", tmp_path / "report.json"
    target.write_text('{"pipeline": {"success": true}}')
    path.symlink_to(target)
    with pytest.raises(StageError, match="no report"):
        report.run(report.Options(path, {"pipeline": {"success": False}}), Job("report"))
    assert path.is_symlink()
    assert json.loads(target.read_text())["pipeline"]["success"] is True
