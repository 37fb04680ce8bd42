"""Finds what is known of a failure by the text of its message.

Errors are raised where they always were, as plain sentences. This catalogue, a YAML file an area, knows them by
patterns, gives each kind a code that stays the same, and says what it means, what it most likely comes from and what
to do. A test holds that every error the package can make has exactly one entry.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

FOLDER = Path(__file__).parent
FIELD = "{}"  # in a pattern: whatever was filled in
ANY_AREA = "RUN"  # whose -000 stands for an unknown failure of a task that no area names
MESSAGE_LIMIT = 64 * 1024  # characters of a message that are looked at; a person may paste a whole log

Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Entry(BaseModel):
    """What is known of one kind of failure.

    :ivar code: ``HF-AREA-NNN``; -000 stands for failures that the catalogue does not know
    :ivar patterns: parts of messages by which it is known; ``{}`` stands for what is filled in
    :ivar meaning: what happened, in one sentence
    :ivar cause: where it most likely comes from
    :ivar what_to_do: the next step
    :ivar general: its messages have the reason in them, so any entry that knows the reason comes first
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: Annotated[str, StringConstraints(pattern=r"^HF-[A-Z]+-[0-9]{3}$")]
    patterns: tuple[Words, ...]
    meaning: Words
    cause: Words
    what_to_do: Words
    general: bool = False

    def advice(self) -> str:
        """Say in one line what it means and what to do."""
        return f"{self.code}: {self.meaning} What to do: {self.what_to_do}"


class Area(BaseModel):
    """One file of the catalogue.

    :ivar area: its name, the second part of its codes
    :ivar title: what it is about
    :ivar tasks: ids of the tasks whose unknown failures belong to it
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    area: Annotated[str, StringConstraints(pattern=r"^[A-Z]+$")]
    title: Words
    tasks: tuple[str, ...] = ()
    entries: Annotated[tuple[Entry, ...], Field(min_length=1)]

    def unknown(self) -> Entry:
        """Make the entry of a failure that this area has none for."""
        return Entry(
            code=f"HF-{self.area}-000",
            patterns=(),
            meaning="This error is not in the catalogue, so nobody has foreseen it.",
            cause="A defect of Hyperflow, or a fault of a program it uses that it does not know yet.",
            what_to_do=(
                "Look for the reason in the message and in the task's log. When it is nothing of yours, please report "
                "the message, the log and the versions in report.json; clearing the task may help meanwhile."
            ),
        )


@cache
def areas() -> tuple[Area, ...]:
    """Read the catalogue, once.

    :raises pydantic.ValidationError: a file of it is wrong, which a test rules out
    """
    files = sorted(FOLDER.glob("*.yaml"))
    return tuple(Area.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files)


def entry_of(code: str) -> Entry | None:
    """Find an entry by its code, however it is written (``hf-export-012``); the -000 of an area too."""
    wanted = code.strip().upper()
    for area in areas():
        for entry in (*area.entries, area.unknown()):
            if entry.code == wanted:
                return entry
    return None


def find(message: str) -> Entry | None:
    """Find the entry that knows most of a message; one that is general only where no other knows any of it.

    :param message: as it was raised, or a piece of a log with it
    """
    text = _plain(message[:MESSAGE_LIMIT])
    best: Entry | None = None
    best_rank = (False, 0)
    for general, letters, parts, entry in _patterns():
        rank = (not general, letters)
        if rank > best_rank and _has(text, parts):
            best, best_rank = entry, rank
    return best


def explain(message: str, task_id: str) -> Entry:
    """Give the entry of a task's failure; where the catalogue has none, the -000 of the task's area."""
    found = find(message)
    if found is not None:
        return found
    by_task = {task: area for area in areas() for task in area.tasks}
    by_name = {area.area: area for area in areas()}
    return by_task.get(task_id, by_name[ANY_AREA]).unknown()


@cache
def _patterns() -> tuple[tuple[bool, int, tuple[str, ...], Entry], ...]:
    """Every pattern: whether it is general, its letters, the texts between its fields, and its entry."""
    return tuple(
        (entry.general, letters_of(pattern), tuple(_plain(part) for part in pattern.split(FIELD)), entry)
        for area in areas()
        for entry in area.entries
        for pattern in entry.patterns
    )


def letters_of(pattern: str) -> int:
    """Count the characters by which a pattern knows a message."""
    return sum(not char.isspace() for char in pattern.replace(FIELD, ""))


def _plain(text: str) -> str:
    """Take line breaks and indentation, which logs add, as blanks."""
    start, end = " " * text[:1].isspace(), " " * text[-1:].isspace()
    return f"{start}{' '.join(text.split())}{end}" if text.strip() else text[:1]


def _has(text: str, parts: tuple[str, ...]) -> bool:
    """Whether the parts stand in the text in their order. No regular expression: messages hold what guests wrote."""
    at = 0
    for part in parts:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True
