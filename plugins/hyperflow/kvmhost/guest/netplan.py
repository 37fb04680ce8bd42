"""Reads the part of YAML in which netplan files are written; the standard library has no YAML."""

from __future__ import annotations

import re
from typing import Any

_KEY = re.compile(r"(\"[^\"]*\"|'[^']*'|[^\s:#\[\]{},&*!|>%@`\"'][^#]*?)\s*:(?:\s+(.*)|$)")

DEPTH = 40  # levels; netplan's own files have some eight


class NotUnderstood(Exception):
    """The text uses more of YAML than netplan files do."""


def read(text: str) -> Any:
    """Read block mappings and lists, flow lists and mappings, quoted and plain scalars; scalars stay text.

    :raises NotUnderstood: for anchors, block scalars, tabs and the like
    """
    lines = []
    for raw in text.split("\n"):
        line = _without_comment(raw.rstrip("\r"))
        if not line.strip() or line.strip() in ("---", "..."):
            continue
        if "\t" in line[: len(line) - len(line.lstrip())]:
            raise NotUnderstood("a tab in front of a line")
        lines.append((len(line) - len(line.lstrip(" ")), line.strip()))
    if not lines:
        return {}
    value, rest = _block(lines, lines[0][0], 0)
    if rest:
        raise NotUnderstood(f"the line {rest[0][1]!r}")
    return value


def _block(lines: list[tuple[int, str]], indent: int, depth: int) -> tuple[Any, list[tuple[int, str]]]:
    if depth > DEPTH:
        raise NotUnderstood("too many levels")
    if lines[0][1].startswith("- ") or lines[0][1] == "-":
        return _sequence(lines, indent, depth)
    return _mapping(lines, indent, depth)


def _sequence(lines: list[tuple[int, str]], indent: int, depth: int) -> tuple[list[Any], list[tuple[int, str]]]:
    items: list[Any] = []
    while lines and lines[0][0] == indent and (lines[0][1].startswith("- ") or lines[0][1] == "-"):
        rest = lines[0][1][1:].lstrip()
        lines = lines[1:]
        if rest and _KEY.fullmatch(rest):
            inner = indent + 2
            taken = [(inner, rest)]
            while lines and lines[0][0] > indent:
                taken.append(lines[0])
                lines = lines[1:]
            deeper = [level for level, _ in taken[1:]]
            if deeper and min(deeper) != inner:
                taken[0] = (min(deeper), rest)
            value, left = _block(taken, taken[0][0], depth + 1)
            if left:
                raise NotUnderstood(f"the line {left[0][1]!r}")
            items.append(value)
        elif rest:
            items.append(_scalar(rest, depth))
        elif lines and lines[0][0] > indent:
            value, lines = _block(lines, lines[0][0], depth + 1)
            items.append(value)
        else:
            items.append("")
    return items, lines


def _mapping(lines: list[tuple[int, str]], indent: int, depth: int) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    found: dict[str, Any] = {}
    while lines and lines[0][0] == indent:
        match = _KEY.fullmatch(lines[0][1])
        if match is None:
            raise NotUnderstood(f"the line {lines[0][1]!r}")
        key, rest = match[1].strip("\"'"), (match[2] or "").strip()
        lines = lines[1:]
        if rest:
            found[key] = _scalar(rest, depth)
        elif lines and (lines[0][0] > indent or (lines[0][0] == indent and lines[0][1].startswith("-"))):
            found[key], lines = _block(lines, lines[0][0], depth + 1)
        else:
            found[key] = ""
    if lines and lines[0][0] > indent:
        raise NotUnderstood(f"the line {lines[0][1]!r}")
    return found, lines


def _scalar(text: str, depth: int) -> Any:
    if depth > DEPTH:
        raise NotUnderstood("too many levels")
    if text[0] in "&*!|>":
        raise NotUnderstood(f"{text!r}")
    if text[0] == "[":
        if text[-1] != "]":
            raise NotUnderstood("a list over several lines")
        return [_scalar(one.strip(), depth + 1) for one in _split(text[1:-1]) if one.strip()]
    if text[0] == "{":
        if text[-1] != "}":
            raise NotUnderstood("a mapping over several lines")
        pairs = (one.strip() for one in _split(text[1:-1]) if one.strip())
        return {
            key.strip().strip("\"'"): _scalar(value.strip() or '""', depth + 1)
            for key, _, value in (one.partition(":") for one in pairs)
        }
    if text[0] in "\"'":
        if len(text) < 2 or text[-1] != text[0]:
            raise NotUnderstood(f"{text!r}")
        return text[1:-1]
    return text


def _split(text: str) -> list[str]:
    """Split at the commas that are in no quotes and no inner brackets."""
    parts, start, depth, quote = [], 0, 0, ""
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _without_comment(line: str) -> str:
    quote = ""
    for index, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == "#" and (index == 0 or line[index - 1] in " \t"):
            return line[:index]
    return line
