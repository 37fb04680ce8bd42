"""report: the migration's report beside the images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperflow.kvmhost.images.files import remove_temporaries, sync_directory
from hyperflow.kvmhost.stage import Job, write_atomically


@dataclass(frozen=True)
class Options:
    """What ``report`` is asked to do.

    :param path: where the report goes; an older report of this VM is replaced
    :param report: the document
    """

    path: Path
    report: dict[str, Any]


def run(options: Options, job: Job) -> dict[str, Any]:
    """Write the report atomically; its directory is made where a failed run left none."""
    options.path.parent.mkdir(parents=True, exist_ok=True)
    remove_temporaries(options.path)
    write_atomically(options.path, json.dumps(options.report, indent=2) + "\n")
    sync_directory(options.path.parent)
    content = options.path.read_bytes()
    job.bytes_written = len(content)
    return {"path": str(options.path), "sha256": hashlib.sha256(content).hexdigest()}
