"""States of tasks and VMs as a terminal shows them: coloured, counted, the most urgent first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

Thing = TypeVar("Thing")

STATE_STYLES = {"success": "green", "failed": "red", "upstream_failed": "red", "running": "cyan", "deferred": "cyan"}
KINDS = ("failed", "at work", "wait", "skipped", "done")  # of states, as a person counts them; the most urgent first
KIND_OF = {
    "failed": "failed",
    "upstream_failed": "failed",
    "running": "at work",
    "deferred": "at work",
    "skipped": "skipped",
    "success": "done",
}  # of any other state, and of none yet: wait


def urgent_first(things: Iterable[Thing], state_of: Callable[[Thing], str | None]) -> list[Thing]:
    """Put what failed and what works before the rest: a drawing that works is cut to the terminal's height."""
    return sorted(things, key=lambda each: KINDS.index(_kind(state_of(each))))


def count_line(states: Iterable[str | None]) -> str:
    """Count states, those that people wait for last: ``1 failed, 80 done, 20 at work, 49 wait``."""
    counts = Counter(_kind(state) for state in states)
    return ", ".join(
        f"{counts[kind]} {kind}" for kind in ("failed", "skipped", "done", "at work", "wait") if counts[kind]
    )


def _kind(state: str | None) -> str:
    return KIND_OF.get(state or "", "wait")
