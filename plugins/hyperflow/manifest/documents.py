"""Reads JSON and YAML of people and other machines: limits, no duplicate keys, no aliases, plain data."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hyperflow.manifest.faults import SHOWN, DocumentError, Fault, Location, place, render, show

DEPTH_LIMIT = 32  # levels; a manifest has 5, a plan 4
VALUES_LIMIT = 50_000  # a manifest of a thousand disks has 15,000, a plan of 2,000 VMs as many; each may be a fault

_WHOLE = Fault("(document)", "", "")


@dataclass(frozen=True)
class Document:
    """Plain data and where each part of it stands.

    :param value: objects, lists, strings, numbers, booleans, null
    :param positions: location -> (line, column), from 1; empty for JSON
    :param json_text: what it was read from, when that was JSON
    """

    value: Any
    positions: dict[Location, tuple[int, int]] = field(default_factory=dict)
    json_text: str | None = None

    def places(self) -> dict[Location, tuple[int, int]]:
        """Find the positions; in JSON, whose parser tells none, by reading the text again as the YAML it also is.

        That takes many times as long, so only a document with a fault is asked.
        """
        if self.json_text is None:
            return self.positions
        try:
            node: Any = yaml.compose(self.json_text, Loader=yaml.CSafeLoader)
        except yaml.YAMLError:  # a tab or an escape that YAML has not
            return {}
        reader = _NodeReader()
        reader.read(node, ())
        return reader.positions


def read_text(path: Path, limit: int) -> str:
    """Read a file of text.

    :param path: a regular file, or a path of an object store with the same methods
    :param limit: bytes it may have
    :raises DocumentError: missing, unreadable, no regular file, too large, not UTF-8
    """
    try:
        content = _read_bytes(path, limit)
    except FileNotFoundError:
        raise _refuse(path, "no file", "an existing file") from None
    except OSError as fault:
        raise _refuse(path, fault.strerror or type(fault).__name__, "a readable file") from fault
    except ValueError as fault:  # a path with a NUL byte
        raise _refuse(path, str(fault), "a readable file") from fault
    if len(content) > limit:
        raise _refuse(path, f"more than {limit} bytes", f"at most {limit} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        found = f"byte 0x{content[fault.start]:02x} at offset {fault.start}"
        raise _refuse(path, found, "text in UTF-8") from fault


def read_document(path: Path, limit: int) -> Document:
    """Read a JSON file (``.json``) or a YAML file (any other name).

    :raises DocumentError: with all faults that can be told apart; its ``document`` is what could be read all the same
    """
    text = read_text(path, limit)
    return parse_json(text, str(path)) if path.suffix == ".json" else parse_yaml(text, str(path))


def parse_json(text: str, source: str) -> Document:
    """Parse JSON strictly: no NaN, no duplicate keys, no lone surrogates, limited depth.

    :raises DocumentError: what is wrong with it
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(items) > VALUES_LIMIT:
            raise _too_many(source)
        mapping = dict(items)
        return mapping if len(mapping) == len(items) else _Repeating(items)

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=_refuse_constant)
    except DocumentError:
        raise
    except json.JSONDecodeError as fault:
        wrong = Fault("(document)", fault.msg, "a JSON document", fault.lineno, fault.colno)
        raise DocumentError(source, [wrong]) from None
    except RecursionError:
        raise _too_deep(source) from None
    except ValueError as fault:
        raise DocumentError(source, [Fault("(document)", str(fault), "a JSON document")]) from None
    if _has_too_many(value):
        raise _too_many(source)
    return _fit(Document(value, json_text=text), source, [])


def parse_yaml(text: str, source: str) -> Document:
    """Parse one YAML document of plain data.

    Booleans, integers and numbers are those of YAML 1.2 (``no``, ``1:30`` and ``010`` are strings), so that
    a VM called ``no`` keeps its name. Anchors, aliases, tags and merge keys are refused.

    :raises DocumentError: syntax with line and column, duplicate keys with theirs
    """
    try:
        _check_size(text, source)
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as fault:
        raise DocumentError(source, [_syntax_fault(fault)]) from None
    except yaml.YAMLError as fault:
        found = str(fault).splitlines()[0]
        raise DocumentError(source, [Fault("(document)", found, "a YAML document")]) from None
    if node is None:
        raise DocumentError(source, [Fault("(document)", "nothing", "a YAML document")])
    reader = _NodeReader()
    return _fit(Document(reader.read(node, ()), reader.positions), source, reader.faults)


def _read_bytes(path: Path, limit: int) -> bytes:
    # A FIFO would wait for ever and a device never end. An object store's path has no mode worth checking.
    if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "no regular file")
    with path.open("rb") as file:
        return file.read(limit + 1)


def _refuse(path: Path, found: str, expected: str) -> DocumentError:
    return DocumentError(str(path), [Fault("(document)", found, expected)])


def _too_deep(source: str) -> DocumentError:
    return DocumentError(source, [Fault("(document)", "deeper nesting", f"at most {DEPTH_LIMIT} levels")])


def _too_many(source: str) -> DocumentError:
    return DocumentError(source, [Fault("(document)", "more values", f"at most {VALUES_LIMIT} values")])


def _has_too_many(document: Any) -> bool:
    """Count the values without making anything of each: some bytes of text are some hundred in memory."""
    count = 0
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict | list):
            count += len(value)
            if count > VALUES_LIMIT:
                return True
            pending.extend(value.values() if isinstance(value, dict) else value)
    return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no JSON number")


class _Repeating(dict[str, Any]):
    """An object with a key more than once; the last value counts where one is asked for."""

    def __init__(self, items: list[tuple[str, Any]]) -> None:
        super().__init__(items)
        seen: set[str] = set()
        self.repeated = {key for key, _ in items if key in seen or seen.add(key)}  # type: ignore[func-returns-value]


def _fit(document: Document, source: str, faults: list[Fault]) -> Document:
    """Give the document back when nothing is wrong with it.

    :param faults: what its parser found
    """
    if _too_deep_in(document.value):
        raise _too_deep(source)
    found = list(_unfit(document.value))
    if faults or found:
        raise DocumentError(source, [*faults, *place(found, document.places())], document)
    return document


def _too_deep_in(document: Any) -> bool:
    """Measure the nesting without recursion: the document may be deep."""
    level = [document]
    for _ in range(DEPTH_LIMIT):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    return any(isinstance(value, dict | list) for value in level)


def _unfit(document: Any) -> Iterator[tuple[Location, Fault]]:
    """Find what neither JSON nor UTF-8 can carry."""
    pending: list[tuple[Location, Any]] = [((), document)]
    while pending:
        location, value = pending.pop()
        if isinstance(value, _Repeating):
            for key in sorted(value.repeated):
                at = (*location, key)
                yield at, Fault(render(at), "the key twice in one object", "each key once")
        if isinstance(value, dict):
            pending.extend(((*location, key), item) for key, item in value.items())
            pending.extend(((*location, key), key) for key in value if not _encodable(key))
        elif isinstance(value, list):
            pending.extend(((*location, index), item) for index, item in enumerate(value))
        elif isinstance(value, str) and not _encodable(value):
            yield location, Fault(render(location), "half a surrogate pair", "Unicode text")
        elif isinstance(value, float) and value - value != 0:  # infinite or not a number
            yield location, Fault(render(location), show(value), "a finite number")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_size(text: str, source: str) -> None:
    """Walk the events, which nest without recursion, before anything that recurses sees the document."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader)):
        if count > 2 * VALUES_LIMIT:  # a value of an object comes with its key
            raise _too_many(source)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_LIMIT:
                raise _too_deep(source)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        # An alias can make a small file a huge document (the "billion laughs").
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            mark = _mark(event.start_mark)
            raise DocumentError(source, [Fault("(document)", f"anchor or alias {anchor[:SHOWN]!r}", "none", *mark)])


def _syntax_fault(fault: yaml.MarkedYAMLError) -> Fault:
    words = " ".join(part for part in (fault.context, fault.problem) if part)
    mark = _mark(fault.problem_mark or fault.context_mark)
    return Fault("(document)", words or "a syntax error", "a YAML document", *mark)


_YAML_WORDS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_YAML_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,4299})")  # so many digits as Python reads, in JSON as well
_YAML_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


# What the composer gives to nodes without a written tag, and to written tags that say the same.
_PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("map", "seq", "str", "bool", "int", "float", "null", "timestamp", "merge", "value")
}


class _NodeReader:
    """Makes plain data of composed nodes and keeps their positions."""

    def __init__(self) -> None:
        self.positions: dict[Location, tuple[int, int]] = {}
        self.faults: list[Fault] = []

    def read(self, node: yaml.Node, location: Location) -> Any:
        self.positions.setdefault(location, _position(node))
        if node.tag not in _PLAIN_TAGS:
            self._fault(node, location, f"tag {node.tag[:SHOWN]!r}", "plain data without a tag")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*location, index)) for index, item in enumerate(node.value)]
        return _scalar(node) if isinstance(node, yaml.ScalarNode) else None

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if isinstance(key, bool | int | float) or (key is None and isinstance(key_node, yaml.ScalarNode)):
                key = key_node.value  # `on: x`, `1: x`: keys are strings in JSON, and here
            if not isinstance(key, str):
                self._fault(key_node, location, "a key that is no string", "strings as keys")
                continue
            here = (*location, key)
            if key in mapping:
                first = self.positions[here][0]
                self._fault(key_node, here, f"the key twice (first in line {first})", "each key once")
                continue
            self.positions[here] = _position(key_node)
            mapping[key] = self.read(value_node, here)
        return mapping

    def _fault(self, node: yaml.Node, location: Location, found: str, expected: str) -> None:
        self.faults.append(Fault(render(location), found, expected, *_position(node)))


def _mark(mark: Any) -> tuple[int, int] | tuple[None, None]:
    """Line and column from 1; the C and the Python parser have mark types of their own."""
    return (mark.line + 1, mark.column + 1) if mark is not None else (None, None)


def _position(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if node.style:  # quoted, or a block
        return text
    if text in _YAML_WORDS:
        return _YAML_WORDS[text]
    if _YAML_INTEGER.fullmatch(text):
        return int(text)
    if _YAML_NUMBER.fullmatch(text) and not re.fullmatch(r"[-+]?0[0-9]+", text):
        return float(text)
    return text
