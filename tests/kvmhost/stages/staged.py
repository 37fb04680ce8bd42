"""Makes staged disks and their manifest, as the stages find them on a host."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def manifest(
    folder: Path, *paths: Path, source_format: str = "vmdk", vm_id: str | None = None, **changes: Any
) -> dict[str, str]:
    """Write a manifest of the files; the reference that stages take.

    :param vm_id: of the VM at its source
    :param changes: of each disk's entry; None takes a key away
    """
    disks = []
    for number, path in enumerate(paths):
        data = path.read_bytes()
        entry = {
            "id": f"disk-{number}",
            "source_format": source_format,
            "bytes": len(data),
            "local_path": str(path),
            "checksum": f"sha256:{hashlib.sha256(data).hexdigest()}",
            **changes,
        }
        disks.append({key: value for key, value in entry.items() if value is not None})
    target = folder / "artifact-manifest.json"
    source = {} if vm_id is None else {"source": {"vm_id": vm_id}}
    target.write_text(json.dumps({"manifest_version": "1.0", **source, "disks": disks}))
    return {"path": str(target), "sha256": hashlib.sha256(target.read_bytes()).hexdigest()}
