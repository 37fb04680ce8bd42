"""Makes staged disks and their manifest, as the stages find them on a host."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def manifest(folder: Path, *paths: Path, source_format: str = "vmdk", **changes: Any) -> dict[str, str]:
    """Write a manifest of the files; the reference that stages take."""
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
    target.write_text(json.dumps({"manifest_version": "1.0", "disks": disks}))
    return {"path": str(target), "sha256": hashlib.sha256(target.read_bytes()).hexdigest()}
