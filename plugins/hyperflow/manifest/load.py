"""Reads a manifest, or says everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hyperflow.manifest import rules
from hyperflow.manifest.documents import Document, parse_json, read_document
from hyperflow.manifest.faults import DocumentError, from_validation, place
from hyperflow.manifest.models import Manifest

SIZE_LIMIT = 8 * 1024 * 1024  # bytes; a manifest of a thousand disks has some 300 kB


class ManifestError(DocumentError):
    """A manifest was refused; ``faults`` holds every reason."""


def load_manifest(path: Path) -> Manifest:
    """Read a manifest from a JSON file (``.json``) or a YAML file (any other name).

    The files that its ``local_path`` name need not be here; see :mod:`hyperflow.manifest.verify` for those.

    :raises ManifestError: with every fault, as ``path: found X, expected Y``
    """
    try:
        document = read_document(path, SIZE_LIMIT)
    except DocumentError as error:
        raise ManifestError(error.source, error.faults) from error
    return _validate(document, str(path))


def parse_manifest(text: str, source: str = "manifest") -> Manifest:
    """Read a manifest from JSON text.

    :raises ManifestError: as :func:`load_manifest`
    """
    try:
        document = parse_json(text, source)
    except DocumentError as error:
        raise ManifestError(error.source, error.faults) from error
    return _validate(document, source)


def manifest_of(document: Any, source: str = "manifest") -> Manifest:
    """Make a manifest of plain data.

    :raises ManifestError: as :func:`load_manifest`
    """
    return _validate(Document(document), source)


def _validate(document: Document, source: str) -> Manifest:
    broken = rules.faults(document.value)
    try:
        manifest = Manifest.model_validate(document.value)
    except ValidationError as error:
        own = [(location, fault) for location, fault in from_validation(error, Manifest) if location]
        if not own and not broken:
            own = from_validation(error, Manifest)  # the document as a whole is wrong
        raise ManifestError(source, place([*own, *broken], document.positions)) from None
    return manifest
