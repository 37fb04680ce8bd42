"""What is known of an audit file outside of it: in the run's report, and in the run's head, which each append replaces.

The head lies below the records' folder, but not in the run's own, so that it tells of a folder that is gone:
``RECORDS/.audit/DAG/RUN/audit.head``. Whoever can write the records can write it too. It finds what was done to the
audit file alone, and waves, rollbacks and the janitor, which leave no ``report.json``, have it as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HEADS = ".audit"  # folder below the records; no DAG's folder begins with a dot
HEAD = "audit.head"
REPORT = "report.json"
HEAD_LIMIT = 4096  # bytes; a head has some 100
REPORT_LIMIT = 32 << 20  # bytes; a report of 1,000 disks has less than 2 MiB


@dataclass(frozen=True)
class Anchor:
    """What is known of an audit file elsewhere: its entry of number ``entries`` had the digest ``sha256``."""

    entries: int
    sha256: str


class AnchorFault(ValueError):
    """A head or a report is there, and is none."""


def head_file(path: Path) -> Path:
    """Where the head of an audit file is; the file is ``RECORDS/DAG/RUN/audit.jsonl``."""
    run = _absolute(path).parent
    records = [run, *run.parents][:3][-1]
    return records / HEADS / run.relative_to(records) / HEAD


def read_head(path: Path) -> Anchor | None:
    """What the head of an audit file knows; None where there is no head.

    :raises AnchorFault: it is damaged, or cannot be read
    """
    head = head_file(path)
    try:
        descriptor = os.open(head, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            content = os.read(descriptor, HEAD_LIMIT)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise AnchorFault(f"{head}: {fault.strerror}") from fault
    return _anchor(head, _object(head, content))


def write_head(path: Path, anchor: Anchor) -> None:
    """Replace the head of an audit file: a reader finds the old one or the new; the writer has the file's lock.

    :raises OSError: it cannot be written; it is as it was
    """
    head = head_file(path)
    head.parent.mkdir(parents=True, exist_ok=True)
    partial = head.with_name(f".{HEAD}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(partial, flags, 0o640), "wb") as file:
            file.write(json.dumps(asdict(anchor)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())  # else a loss of power could leave an empty one in its place
        partial.replace(head)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def read_report(report: Path) -> Anchor | None:
    """What a report says of its run's audit file; None where it says nothing, as before there were audit files.

    :raises AnchorFault: it is no report
    :raises OSError: it cannot be read
    """
    if report.stat().st_size > REPORT_LIMIT:
        raise AnchorFault(f"{report}: found more than {REPORT_LIMIT >> 20} MiB, expected a run's {REPORT}")
    told = _object(report, report.read_bytes()).get("audit")
    return None if told is None else _anchor(report, told)


def _object(path: Path, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as fault:
        raise AnchorFault(f"{path}: found no JSON ({fault}), expected a run's {path.name}") from fault
    if not isinstance(found, dict):
        raise AnchorFault(f"{path}: found no JSON object, expected a run's {path.name}")
    return found


def _anchor(path: Path, told: Any) -> Anchor:
    """Read ``{"entries": 57, "sha256": "..."}``."""
    entries, sha256 = (told.get("entries"), told.get("sha256")) if isinstance(told, dict) else (None, None)
    if type(entries) is not int or entries < 1:
        raise AnchorFault(f"{path}: found no number of entries of an audit file, expected one from 1")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise AnchorFault(f"{path}: found no digest of an entry, expected 64 hexadecimal digits")
    return Anchor(entries, sha256)


def _absolute(path: Path) -> Path:
    """Make it absolute, and follow no link: the file's folders are those that its path names."""
    return Path(os.path.abspath(path))  # noqa: PTH100  Path.absolute() leaves "..", Path.resolve() follows links
