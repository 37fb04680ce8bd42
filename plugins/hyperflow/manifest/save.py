"""Writes manifests and reports: canonical JSON, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hyperflow.manifest.section import Section


def canonical(document: Section | dict[str, Any]) -> str:
    """Write a document as text: keys in their order, two spaces, one line end at the end.

    The text of a document that was read from such text is the same text.
    """
    plain = document.to_document() if isinstance(document, Section) else document
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def save(document: Section | dict[str, Any], path: Path) -> None:
    """Write a document so that a reader finds the old file, the new one, or none, and never a part.

    :raises OSError: the folder is missing or cannot be written
    """
    content = canonical(document).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
