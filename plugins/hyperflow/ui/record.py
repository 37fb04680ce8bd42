"""Finds the files of a run; nothing that a URL says leads out of the records' folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hyperflow.audit.chain import read_entry
from hyperflow.hooks.records import records_folder, safe

LONGEST_SHOWN = 500  # characters of a line that is no entry
LARGEST_PARSED = 32 << 20  # bytes; a report of 1,000 disks has less than 2 MiB


def record_file(dag_id: str, run_id: str, name: str) -> Path | None:
    """Find a file of a run; None when there is none."""
    path = record_path(dag_id, run_id, name)
    if path is None:
        return None
    # A link in the folder would lead elsewhere, such as to another DAG's records.
    return path if path.is_file() and path.resolve() == path else None


def record_path(dag_id: str, run_id: str, name: str) -> Path | None:
    """Where a file of a run would be; None when the DAG can have none.

    A DAG id that is not its own folder's name is nobody's: two DAGs could share a folder, and a user may see one only.
    """
    if safe(dag_id) != dag_id:
        return None
    return records_folder().resolve() / dag_id / safe(run_id) / name


def parsed(path: Path) -> Any:
    """Read a JSON file; None when it is not JSON or too large to be a record."""
    if path.stat().st_size > LARGEST_PARSED:
        return None
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def audit_entries(path: Path) -> list[dict[str, Any]] | None:
    """Read an audit file's lines; one that is no entry as ``{"what": the line}``, None of a file too large."""
    if path.stat().st_size > LARGEST_PARSED:
        return None
    return [_entry(line) for line in path.read_bytes().splitlines()]


def _entry(line: bytes) -> dict[str, Any]:
    entry = read_entry(line)
    return {"what": line.decode(errors="replace")[:LONGEST_SHOWN]} if entry is None else entry
