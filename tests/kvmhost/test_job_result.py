"""A result.json is taken when it is a stage's, and refused with the reason when it is anything else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost.job_result import RESULT_LIMIT, read_result
from hyperflow.kvmhost.stage import Job, StageError
from hypothesis import given
from hypothesis import strategies as st

GOOD: dict[str, Any] = Job("checksum").result({"path": "/s/d.vmdk"}, None)
FAILED: dict[str, Any] = Job("checksum").result({}, StageError("the disk was changed"))


def read(folder: Path, content: bytes | str) -> tuple[dict[str, Any] | None, str | None]:
    path = folder / "result.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_result(path)


def test_the_results_that_stages_write_are_taken(tmp_path: Path) -> None:
    assert read(tmp_path, json.dumps(GOOD)) == (GOOD, None)
    assert read(tmp_path, json.dumps(FAILED)) == (FAILED, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON document"),
        (b"{", "no JSON document"),
        (b"\xff\xfe", "no JSON document"),
        (b"<html>", "no JSON document"),
        (b"[" * 100_000, "no JSON document"),
        (b"[1, 2]", "found list, expected an object"),
        (b"null", "found NoneType, expected an object"),
        (b'"' + b"x" * RESULT_LIMIT + b'"', "more than 1048576 bytes"),
        (json.dumps(GOOD | {"observed": "/etc"}), "observed: found str, expected dict"),
        (json.dumps(GOOD | {"succeeded": 1}), "succeeded: found int, expected bool"),
        (json.dumps(GOOD | {"warnings": [{}]}), "warnings: found something else than text"),
        (json.dumps(GOOD | {"warnings": "none"}), "warnings: found str, expected list"),
        (json.dumps({key: GOOD[key] for key in GOOD if key != "stage"}), "stage: found NoneType, expected str"),
        (json.dumps(GOOD | {"error": {"kind": "failed", "message": "x"}}), "error: expected kind and message where"),
        (json.dumps(GOOD | {"succeeded": False}), "error: expected kind and message where"),
        (json.dumps(FAILED | {"error": ["x"]}), "error: expected kind and message where"),
        (json.dumps(GOOD | {"seconds": float("nan")}), "no JSON document"),
        (json.dumps(GOOD | {"seconds": float("inf")}), "no JSON document"),
        (json.dumps(GOOD).replace('"seconds": ', '"seconds": 1e999, "was": '), "no JSON document"),
        (json.dumps(GOOD | {"host": "\ud800"}), "no JSON document"),
        (json.dumps(GOOD | {"bytes_read": 1 << 63}), "an integer of 19 digits"),
        (json.dumps(GOOD).replace('"bytes_read": 0', '"bytes_read": 1' + "0" * 5000), "an integer of 5001 digits"),
        (json.dumps(GOOD | {"observed": {"a": json.loads("[" * 40 + "]" * 40)}}), "more than 32 levels"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_what_is_no_result_is_refused_with_the_reason(tmp_path: Path, content: bytes | str, said: str) -> None:
    result, fault = read(tmp_path, content)
    assert result is None
    assert fault is not None
    assert said in fault
    assert str(tmp_path / "result.json") in fault


@pytest.mark.parametrize("kind", ["link", "fifo", "device", "endless", "folder", "missing", "socket"])
def test_only_a_regular_file_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "result.json"
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(json.dumps(GOOD))
    {
        "link": lambda: path.symlink_to(elsewhere),
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "endless": lambda: os.mknod(path, 0o20600, os.makedev(1, 5)),
        "folder": path.mkdir,
        "missing": lambda: None,
        "socket": lambda: os.mknod(path, 0o140600),
    }[kind]()
    result, fault = read_result(path)
    assert result is None
    assert "expected the stage's result" in str(fault)


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_nothing_is_taken_for_a_result_by_accident(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    result, fault = read(tmp_path_factory.mktemp("result"), content)
    assert result is None
    assert fault
