"""Reads a YAML file of a person into a model; its errors are PlanErrors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from hyperflow.manifest.documents import Document, parse_json, parse_yaml, read_text
from hyperflow.manifest.faults import DocumentError, Fault, Location, from_validation, render
from hyperflow.plans.plan import PlanError

SIZE_LIMIT = 1024 * 1024  # bytes

Model = TypeVar("Model", bound=BaseModel)
PlacedFault = tuple[Location, Fault]


def read(path: Path) -> Document:
    """Read a plan or profile file of at most 1 MiB.

    :raises PlanError: unreadable, too large, not UTF-8, not YAML, keys twice, anchors, tags, too deep
    """
    text = ""
    try:
        text = read_text(path, SIZE_LIMIT)
        return parse_json(text, str(path)) if path.suffix == ".json" else parse_yaml(text, str(path))
    except DocumentError as error:
        faults = error.faults
        if isinstance(error.__cause__, UnicodeDecodeError):
            line, column = _position(error.__cause__)
            faults = [replace(each, line=line, column=column) for each in faults]
        elif path.suffix != ".json":
            lines = text.splitlines()
            faults = [
                replace(each, found="a tab", expected="blanks: indent with them") if _is_tab(each, lines) else each
                for each in faults
            ]
        raise PlanError(error.source, faults) from error


def _position(undecoded: UnicodeDecodeError) -> tuple[int, int]:
    """Find the line and column, from 1, of a byte that is no text."""
    before = undecoded.object[: undecoded.start].decode("utf-8-sig")
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _is_tab(syntax: Fault, lines: Sequence[str]) -> bool:
    """Tell whether it is a tab at which YAML's parser gave up, which its own words do not tell."""
    if syntax.line is None or syntax.column is None or syntax.line > len(lines):
        return False
    return lines[syntax.line - 1][syntax.column - 1 :].startswith("\t")


def validate(model: type[Model], document: Document) -> tuple[Model | None, list[PlacedFault]]:
    """Make a model of a document: the model and no faults, or None and the faults."""
    try:
        return model.model_validate(document.value), []
    except ValidationError as error:
        return None, from_validation(error, model)


def fault(location: Location, found: str, expected: str) -> PlacedFault:
    """Make a fault at a location."""
    return location, Fault(render(location), found, expected)
