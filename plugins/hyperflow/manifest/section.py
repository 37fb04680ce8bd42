"""What every model of the contract is made of: strict types, keys kept in their order, unknown keys kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    PrivateAttr,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

T = TypeVar("T")


class Section(BaseModel):
    """An object of the manifest.

    Strict: a boolean is no integer, "1" is no number. Unknown keys are kept. :meth:`to_document` gives back
    what was read, in the order it was read in; what was not written is not written back.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    if not TYPE_CHECKING:  # mypy takes it for an argument of __init__
        __pydantic_extra__: dict[str, JsonValue]

    _order: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _remember_order(cls, data: Any, handler: Callable[[Any], Any]) -> Any:
        section = handler(data)
        if isinstance(data, dict):
            section._order = tuple(data)
        return section

    @model_serializer(mode="plain")
    def to_document(self) -> dict[str, Any]:
        """Give the plain data this was read from or made of: JSON types only."""
        written = {
            field.alias or name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if name in self.model_fields_set
        }
        written.update(self.__pydantic_extra__ or {})
        order = [key for key in self._order if key in written]
        return {key: _plain(written[key]) for key in dict.fromkeys([*order, *written])}


class ClosedSection(Section):
    """A section in which an unknown key is a fault."""

    model_config = ConfigDict(extra="forbid")


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.to_document()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


class _NotNull:
    """Makes ``T | None`` mean "may be absent": null in a document is refused, as the contract says."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        (inner,) = [part for part in source.__args__ if part is not type(None)]
        return handler.generate_schema(inner)


Maybe = Annotated[T | None, _NotNull()]


def refuse(allowed: str) -> PydanticCustomError:
    """Make the error that a validator raises; ``allowed`` says what would have been right."""
    return PydanticCustomError("expected", "expected {allowed}", {"allowed": allowed})


def _whole(value: Any) -> Any:
    # To JSON Schema 4.0 is the integer 4; some writers know floating-point numbers only.
    return int(value) if type(value) is float and value.is_integer() else value


WHOLE = BeforeValidator(_whole)


@dataclass(frozen=True)
class Matching:
    """Annotates a string that matches ``pattern`` as a whole; ``allowed`` names it for a person.

    The schema also refuses line ends: ``$`` of many engines matches before a last one.
    """

    pattern: str
    allowed: str
    limit: int | None = None  # characters

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # Go's RE2, which hypersdk's side of the contract has, knows \x00 and not \u0000.
        portable = re.sub(r"\\u00([0-9A-Fa-f]{2})", r"\\x\1", self.pattern)
        written = {**handler(schema), "pattern": f"^(?:{portable})$", "not": {"pattern": "[\\r\\n]"}}
        return written if self.limit is None else {**written, "maxLength": self.limit}

    def _check(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value) or re.search("[\r\n]", value):
            raise refuse(self.allowed)
        if self.limit is not None and len(value) > self.limit:
            raise refuse(f"{self.allowed}, at most {self.limit} characters")
        return value


def _calendar(value: str) -> str:
    try:
        date.fromisoformat(value[:10])
    except ValueError:
        raise refuse("a day of the calendar") from None
    return value


_TIME = (
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)"
    r"(?:\.[0-9]+)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
Timestamp = Annotated[str, Matching(_TIME, "a time as 2026-01-21T20:00:00Z"), AfterValidator(_calendar)]
