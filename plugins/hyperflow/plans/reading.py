"""Reads a YAML file of a person into a model; its errors are PlanErrors."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from hyperflow.manifest.documents import Document, read_document
from hyperflow.manifest.faults import DocumentError, Fault, Location, from_validation, render
from hyperflow.plans.plan import PlanError

SIZE_LIMIT = 1024 * 1024  # bytes

Model = TypeVar("Model", bound=BaseModel)
PlacedFault = tuple[Location, Fault]


def read(path: Path) -> Document:
    """Read a plan or profile file of at most 1 MiB.

    :raises PlanError: unreadable, too large, not UTF-8, not YAML, keys twice, anchors, tags, too deep
    """
    try:
        return read_document(path, SIZE_LIMIT)
    except DocumentError as error:
        raise PlanError(error.source, error.faults) from error


def validate(model: type[Model], document: Document) -> tuple[Model | None, list[PlacedFault]]:
    """Make a model of a document: the model and no faults, or None and the faults."""
    try:
        return model.model_validate(document.value), []
    except ValidationError as error:
        return None, from_validation(error, model)


def fault(location: Location, found: str, expected: str) -> PlacedFault:
    """Make a fault at a location."""
    return location, Fault(render(location), found, expected)
