"""report: the migration's report beside the images."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperflow.kvmhost.images.files import remove_temporaries, sync_directory
from hyperflow.kvmhost.stage import Job, StageError, write_atomically

SIZE_LIMIT = 64 * 1024 * 1024  # bytes; far more than a report has


@dataclass(frozen=True)
class Options:
    """What ``report`` is asked to do.

    :param path: where the report goes; an older report of this VM is replaced
    :param report: the document
    """

    path: Path
    report: dict[str, Any]


def run(options: Options, job: Job) -> dict[str, Any]:
    """Write the report atomically; its directory is made where a failed run left none.

    :raises StageError: something that is no report has its name
    """
    require_report_or_nothing(options.path)
    options.path.parent.mkdir(parents=True, exist_ok=True)
    remove_temporaries(options.path)
    write_atomically(options.path, json.dumps(options.report, indent=2) + "\n")
    sync_directory(options.path.parent)
    content = options.path.read_bytes()
    job.bytes_written = len(content)
    return {"path": str(options.path), "sha256": hashlib.sha256(content).hexdigest()}


def require_report_or_nothing(path: Path) -> None:
    """Refuse to replace what is not an earlier report: the name may come from a manifest of another machine.

    :raises StageError: there is something else
    """
    if not os.path.lexists(path):
        return
    if path.is_file() and not path.is_symlink() and path.stat().st_size <= SIZE_LIMIT:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            document = None
        pipeline = document.get("pipeline") if isinstance(document, dict) else None
        if isinstance(pipeline, dict) and isinstance(pipeline.get("success"), bool):
            return
    raise StageError(
        f"{path}: found something that is no report of a migration, and it is not replaced: move it away, or name the "
        "report otherwise"
    )
