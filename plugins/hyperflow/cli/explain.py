"""``./hyperflow explain``: what an error means and what to do, by its code or by its message."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from rich.console import Console

from hyperflow.cli.__main__ import EXIT_FAILED, EXIT_USAGE
from hyperflow.errors.catalogue import FIELD, Entry, areas, entry_of, find

CODE = re.compile(r"\bHF-[A-Z]+-[0-9]{3}\b")
STANDARD_INPUT = "-"


def explain(code: str | None, message: str | None, *, as_json: bool) -> int:
    """Show one entry of the catalogue, or all codes by area.

    :param code: of the entry
    :param message: find the entry that knows it, or that its text names; ``-`` reads standard input
    :return: 0 shown, 1 no entry knows the message, 2 no such code
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if code is None and message is None:
        _list(console, as_json)
        return 0
    if code is not None:
        entry, status, fault = entry_of(code), EXIT_USAGE, f"{code}: no such code; ./hyperflow explain lists all"
    else:
        text = sys.stdin.read() if message == STANDARD_INPUT else str(message)
        named = CODE.search(text)
        entry, status = (entry_of(named[0]) if named else None) or find(text), EXIT_FAILED
        fault = "no entry of the catalogue knows this message; if Hyperflow said it, please report it"
    if entry is None:
        print(fault, file=sys.stderr)
        return status
    if as_json:
        print(json.dumps(_as_json(entry), indent=2, ensure_ascii=False))
    else:
        _show(console, entry)
    return 0


def advice(code: str) -> str:
    """Say in one line what a code means and what to do; the code alone where this version does not know it."""
    entry = entry_of(code)
    return code if entry is None else entry.advice()


def _show(console: Console, entry: Entry) -> None:
    console.print(f"{entry.code}: {entry.meaning}", style="bold", markup=False)
    console.print(f"Likely cause: {entry.cause}", markup=False)
    console.print(f"What to do: {entry.what_to_do}", markup=False)
    if entry.patterns:
        console.print("Messages:")
        for pattern in entry.patterns:
            console.print(f"  {pattern.replace(FIELD, '...')}", markup=False)


def _list(console: Console, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_as_json(entry) for area in areas() for entry in area.entries], indent=2, ensure_ascii=False))
        return
    for area in areas():
        console.print(f"{area.area}: {area.title}", style="bold", markup=False)
        for entry in area.entries:
            console.print(f"  {entry.code}  {entry.meaning}", markup=False)


def _as_json(entry: Entry) -> dict[str, Any]:
    return {**entry.model_dump(mode="json"), "area": entry.code.split("-")[1]}
