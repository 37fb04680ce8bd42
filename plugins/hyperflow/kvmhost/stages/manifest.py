"""manifest: the Artifact Manifest and the OVF descriptor beside the staged disks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hyperflow.kvmhost import manifest_file
from hyperflow.kvmhost.images.files import MODE, remove_temporaries, sync_directory
from hyperflow.kvmhost.stage import BadRequest, Job, write_atomically


@dataclass(frozen=True)
class Options:
    """What ``manifest`` is asked to do.

    :param path: where the manifest goes
    :param manifest: the document
    :param ovf_path: where the OVF descriptor goes; None for none
    :param ovf: its text
    """

    path: Path
    manifest: dict[str, Any]
    ovf_path: Optional[Path] = None  # noqa: UP045 - read at run time, by Python 3.9 too
    ovf: Optional[str] = None  # noqa: UP045 - as above


def run(options: Options, job: Job) -> dict[str, Any]:
    """Check that the disks are there, then write the OVF descriptor and, last, the manifest; its folder is made.

    :raises BadRequest: when a disk is missing or has another size than the document says
    """
    if (options.ovf is None) != (options.ovf_path is None):
        raise BadRequest("options.ovf: found ovf without ovf_path or the reverse, expected both or neither")
    disks = manifest_file.read_disks(options.manifest, "options.manifest")
    text = json.dumps(options.manifest, indent=2) + "\n"
    options.path.parent.mkdir(parents=True, exist_ok=True)
    if options.ovf_path is not None and options.ovf is not None:
        _write(options.ovf_path, options.ovf)
    _write(options.path, text)
    content = options.path.read_bytes()  # what is there, not what was meant
    sha256 = hashlib.sha256(content).hexdigest()
    manifest_file.load(options.path, sha256)
    job.bytes_written = len(content)
    job.log(f"{options.path}: {len(disks)} disks, SHA-256 {sha256}")
    return {"path": str(options.path), "sha256": sha256, "bytes": len(content), "disks": len(disks)}


def _write(path: Path, text: str) -> None:
    remove_temporaries(path)
    write_atomically(path, text, MODE)  # a manifest may have the hashes of passwords
    sync_directory(path.parent)
