"""Reads the part of YAML in which netplan files are written; the standard library has no YAML."""

from __future__ import annotations

from typing import Any

DEPTH = 40  # levels; netplan's own files have some eight
FLOW = 8  # levels of brackets in one line; each is gone through once more for the one around it
SHOWN = 80  # characters of a line in a message
_NO_KEY = frozenset(":#[]{},&*!|>%@`\"'")  # no key without quotes begins so

Lines = list[tuple[int, str]]  # indent in blanks, and the text behind it


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
    value, at = _block(lines, 0, 0)
    if at < len(lines):
        raise _line_fault(lines[at][1])
    return value


def _line_fault(line: str) -> NotUnderstood:
    return NotUnderstood(f"the line {line[:SHOWN]!r}")


def _block(lines: Lines, at: int, depth: int) -> tuple[Any, int]:
    """Read the block that begins with a line.

    :return: what it says, and the first line behind it
    """
    if depth > DEPTH:
        raise NotUnderstood("too many levels")
    return (_sequence if _is_item(lines[at][1]) else _mapping)(lines, at, depth)


def _is_item(line: str) -> bool:
    return line.startswith("- ") or line == "-"


def _sequence(lines: Lines, at: int, depth: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    indent = lines[at][0]
    while at < len(lines) and lines[at][0] == indent and _is_item(lines[at][1]):
        rest = lines[at][1][1:].lstrip()
        at += 1
        if rest and _key(rest) is not None:
            end = next((number for number in range(at, len(lines)) if lines[number][0] <= indent), len(lines))
            inner = min((level for level, _ in lines[at:end]), default=indent + 2)
            taken = [(inner, rest), *lines[at:end]]
            value, used = _block(taken, 0, depth + 1)
            if used < len(taken):
                raise _line_fault(taken[used][1])
            items.append(value)
            at = end
        elif rest:
            items.append(_scalar(rest))
        elif at < len(lines) and lines[at][0] > indent:
            value, at = _block(lines, at, depth + 1)
            items.append(value)
        else:
            items.append("")
    return items, at


def _mapping(lines: Lines, at: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    indent = lines[at][0]
    while at < len(lines) and lines[at][0] == indent:
        pair = _key(lines[at][1])
        if pair is None:
            raise _line_fault(lines[at][1])
        key, rest = pair
        at += 1
        if rest:
            found[key] = _scalar(rest)
        elif at < len(lines) and (lines[at][0] > indent or (lines[at][0] == indent and lines[at][1].startswith("-"))):
            found[key], at = _block(lines, at, depth + 1)
        else:
            found[key] = ""
    if at < len(lines) and lines[at][0] > indent:
        raise _line_fault(lines[at][1])
    return found, at


def _key(line: str) -> tuple[str, str] | None:
    """Split a line at the colon behind its key; None for a line without a key.

    The colon is the first one with a blank or the end behind it; one that a quoted key has inside does not count.
    """
    quote = line[0] if line[0] in "\"'" else ""
    if not quote and (line[0] in _NO_KEY or line[0].isspace()):
        return None
    at = line.find(quote, 1) + 1 if quote else 1
    if quote and (not at or not line[at:].lstrip().startswith(":")):
        return None
    at = line.find(":", at)
    while at >= 0 and line[at + 1 : at + 2].strip():
        at = -1 if quote else line.find(":", at + 1)
    if at < 0 or (not quote and "#" in line[:at]):
        return None
    return line[:at].rstrip().strip("\"'"), line[at + 1 :].strip()


def _scalar(text: str, levels: int = FLOW) -> Any:
    if levels < 0:
        raise NotUnderstood("too many levels")
    if text[0] in "&*!|>":
        raise _text_fault(text)
    if text[0] == "[":
        if text[-1] != "]":
            raise NotUnderstood("a list over several lines")
        return [_scalar(one.strip(), levels - 1) for one in _split(text[1:-1]) if one.strip()]
    if text[0] == "{":
        if text[-1] != "}":
            raise NotUnderstood("a mapping over several lines")
        pairs = (one.strip() for one in _split(text[1:-1]) if one.strip())
        return {
            key.strip().strip("\"'"): _scalar(value.strip() or '""', levels - 1)
            for key, _, value in (one.partition(":") for one in pairs)
        }
    if text[0] in "\"'":
        if len(text) < 2 or text[-1] != text[0]:
            raise _text_fault(text)
        return text[1:-1]
    return text


def _text_fault(text: str) -> NotUnderstood:
    return NotUnderstood(f"{text[:SHOWN]!r}")


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
    if "#" not in line:
        return line
    quote = ""
    for index, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == "#" and (index == 0 or line[index - 1] in " \t"):
            return line[:index]
    return line
