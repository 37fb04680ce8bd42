"""What is wrong with a document, as data: where, what was found, what is allowed."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from hyperflow.manifest.shown import some

Location = tuple[str | int, ...]
Positions = Mapping[Location, tuple[int, int]]

SECRET = ("password_hash",)  # fields whose wrong value may be a password
SHOWN = 80  # characters of a found value; enough to recognise it, too few to flood a log
NO_KEYS = ("[key]", "[word]", "[rule]")  # in a location: pydantic's for a key itself, ours for a kind of several
FAULTS_SHOWN = 100  # of one document; a person mends some and asks again


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a document.

    :param path: where, as ``disks[0].checksum``
    :param found: what is there
    :param expected: what may be there
    :param line: line in the file, from 1, where that is known
    :param column: column in that line, from 1
    """

    path: str
    found: str
    expected: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        where = f" (line {self.line}, column {self.column})" if self.line is not None else ""
        return f"{self.path}: found {self.found}, expected {self.expected}{where}"


class DocumentError(ValueError):
    """A document was refused.

    :param source: the file's path, or what else the document is called
    :param faults: everything wrong with it, at least one; of more than :data:`FAULTS_SHOWN` the first are kept, and
        how many there were
    :param document: what was read in spite of the faults (documents.Document), so that its content can be checked
        too; None when nothing was
    """

    def __init__(self, source: str, faults: Iterable[Fault], document: Any = None) -> None:
        self.source = source
        self.document = document
        self.faults = list(faults)
        more = len(self.faults) - FAULTS_SHOWN
        if more > 1:  # not 1: that one may be the line which says how many there were
            self.faults[FAULTS_SHOWN:] = [Fault("(document)", f"{more} faults more", "none; mend those above first")]
        super().__init__("\n".join(f"{source}: {fault}" for fault in self.faults))

    def __reduce__(self) -> tuple[Any, ...]:  # Airflow pickles exceptions of a task process
        return (type(self), (self.source, self.faults))


def render(location: Location) -> str:
    """Write a location as ``a.b[0]["a key"]``; the whole document is ``(document)``."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif len(part) <= SHOWN and part.replace("_", "a").replace("-", "a").isalnum():
            text += f".{part}" if text else part
        else:
            text += f"[{show(part)}]"
    return text or "(document)"


def show(value: object) -> str:
    """Write a value for a person: JSON, shortened, control characters escaped."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, str) and len(value) > SHOWN:
        value = value[:SHOWN] + "..."
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):  # ValueError: an integer of more than 4300 digits
        return f"a value of type {type(value).__name__}"
    text = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    return text if len(text) <= 2 * SHOWN else text[: 2 * SHOWN] + "..."


def from_validation(error: ValidationError, model: type[BaseModel]) -> list[tuple[Location, Fault]]:
    """Turn pydantic's errors into faults, each with its location in the document.

    :param error: what pydantic raised
    :param model: the model that was validated; its fields are named when a key is unknown
    """
    faults = []
    for detail in error.errors(include_url=False):
        location = tuple(part for part in detail["loc"] if part not in NO_KEYS)
        found, expected = _words(detail, model, location)
        faults.append((location, Fault(render(location), found, expected)))
    return faults


def place(faults: Iterable[tuple[Location, Fault]], positions: Positions) -> list[Fault]:
    """Give each fault the line and column of its value, or of the nearest thing around it, in file order."""
    placed = []
    for location, fault in faults:
        around = location
        while around and around not in positions:
            around = around[:-1]
        line, column = positions.get(around, (None, None))
        placed.append(replace(fault, line=line, column=column))
    unique = list(dict.fromkeys(placed))
    return sorted(unique, key=lambda fault: (fault.line or 0, fault.column or 0))


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Name what is allowed, the likeliest first when the word looks like a slip; of many not all."""
    names = list(known)
    likely = difflib.get_close_matches(str(word)[:SHOWN], names, n=1)
    others = [name for name in names if name not in likely]
    listed = f"one of {some(others)}" if others else ""
    if not likely:
        return listed or "no key here"
    return f"{likely[0]} (did you mean that?){', or ' if listed else ''}{listed}"


# pydantic's error type -> what was expected; its context fills the braces
_EXPECTED = {
    "missing": "a value, it is required",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "a string",
    "string_unicode": "Unicode text",
    "finite_number": "a finite number",
    "int_type": "an integer",
    "int_parsing_size": "a smaller integer",
    "bool_type": "true or false",
    "float_type": "a number",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "invalid-json-value": "plain JSON data",
    "expected": "{allowed}",  # ours, see section.py
}


def _words(detail: Any, model: type[BaseModel], location: Location) -> tuple[str, str]:
    kind, context = detail["type"], detail.get("ctx", {})
    if location and location[-1] in SECRET and kind != "extra_forbidden":
        detail = detail | {"input": "(not shown)"}
    if kind == "missing":
        return "nothing", _EXPECTED[kind]
    if kind == "extra_forbidden":
        return "an unknown key", did_you_mean(location[-1], _keys_at(model, location[:-1]))
    if kind == "literal_error" and "or" not in context["expected"]:
        return show(detail["input"]), context["expected"]
    if kind == "string_type" and isinstance(detail["input"], int | float):
        return show(detail["input"]), "a string; put it in quotes"
    template = _EXPECTED.get(kind)
    expected = template.format(**context) if template else detail["msg"]
    return show(detail["input"]), expected


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """Names of the keys allowed at a location of a document of ``model``."""
    for part in location:
        if isinstance(part, int):
            continue
        by_key = {field.alias or name: field for name, field in model.model_fields.items()}
        inner = _model_in(by_key[part].annotation) if part in by_key else None
        if inner is not None:
            model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    for argument in typing.get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
