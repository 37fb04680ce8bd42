"""Reads a manifest, or says everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hyperflow.manifest import rules
from hyperflow.manifest.documents import Document, parse_json, read_document
from hyperflow.manifest.faults import DocumentError, Fault, Location, from_validation, place
from hyperflow.manifest.models import Manifest

SIZE_LIMIT = 8 * 1024 * 1024  # bytes; a manifest of a thousand disks has some 300 kB


class ManifestError(DocumentError):
    """A manifest was refused; ``faults`` holds every reason."""


def load_manifest(path: Path) -> Manifest:
    """Read a manifest from a JSON file (``.json``) or a YAML file (any other name).

    The files that its ``local_path`` name need not be here; see :mod:`hyperflow.manifest.verify` for those.

    :raises ManifestError: with every fault, as ``path: found X, expected Y``
    """
    return _validated(lambda: read_document(path, SIZE_LIMIT), str(path))


def parse_manifest(text: str, source: str = "manifest") -> Manifest:
    """Read a manifest from JSON text.

    :raises ManifestError: as :func:`load_manifest`
    """
    return _validated(lambda: parse_json(text, source), source)


def manifest_of(document: Any, source: str = "manifest") -> Manifest:
    """Make a manifest of plain data.

    :raises ManifestError: as :func:`load_manifest`
    """
    return _validated(lambda: Document(document), source)


def _validated(read: Callable[[], Document], source: str) -> Manifest:
    """Make a manifest of what is read; whatever is wrong with text, types and rules is told at once."""
    try:
        document, faults = read(), []
    except DocumentError as error:
        if error.document is None:
            raise ManifestError(error.source, error.faults) from error
        document, faults = error.document, error.faults
    manifest, broken = _validate(document.value)
    if manifest is not None and not faults:
        return manifest
    said = {(fault.path, fault.expected) for fault in faults}
    faults += [fault for fault in place(broken, document.places()) if (fault.path, fault.expected) not in said]
    raise ManifestError(source, faults)


def _validate(value: Any) -> tuple[Manifest | None, list[tuple[Location, Fault]]]:
    broken = rules.faults(value)
    try:
        return Manifest.model_validate(value), broken
    except ValidationError as error:
        own = [(location, fault) for location, fault in from_validation(error, Manifest) if location]
        if not own and not broken:
            own = from_validation(error, Manifest)  # the document as a whole is wrong
        return None, [*own, *broken]
