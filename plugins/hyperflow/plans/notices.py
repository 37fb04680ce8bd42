"""Who is told of what: notifiers of Airflow, as a plan names them. Nothing here imports one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from hyperflow.manifest.faults import Location, show
from hyperflow.manifest.section import ClosedSection, Matching

Event = Literal["proven", "unproven", "failed", "approval", "wave_done"]
OF_A_VM: tuple[Event, ...] = ("proven", "unproven", "failed", "approval")
OF_A_WAVE: tuple[Event, ...] = ("approval", "wave_done")
ALLOWED = "airflow.providers."  # what [hyperflow] notifiers in Airflow's configuration is when it is not set

_NAME = "[A-Za-z_][A-Za-z0-9_]*"
ClassPath = Annotated[
    str, Matching(rf"{_NAME}(?:\.{_NAME})+", "the path of a notifier's class, as package.module.Class", 300)
]
ArgumentName = Annotated[str, Matching(_NAME, "the name of an argument", 100)]
# As far as a name tells. What Airflow's own notifiers need of this kind lies in the connection they are given.
_SECRET = re.compile(r"passw|passphrase|secret|token|credential|authorization|(?:api|access|private|integration)_?key")

Wrong = tuple[Location, str, str]  # place, found, expected
Judge = Callable[[Sequence[tuple[str, Mapping[str, Any]]]], Sequence[Sequence[Wrong]]]
"""Tells what is wrong with notifiers, each a class path and its arguments: a list for each, placed in its notice."""


class Notice(ClosedSection):
    """Somebody is told when something happens, by a notifier of Airflow."""

    on: Annotated[list[Event], Field(min_length=1, max_length=10)] = Field(
        description="proven, unproven, failed: how a VM's run ended; approval: somebody is asked; wave_done"
    )
    notifier: ClassPath = Field(description="Class, as airflow.providers.smtp.notifications.smtp.SmtpNotifier")
    arguments: Annotated[dict[ArgumentName, JsonValue], Field(max_length=50)] = Field(
        default_factory=dict, description="Its keyword arguments; Airflow renders them. Ids of connections, no secrets"
    )


def is_allowed(path: str, allowed: Sequence[str]) -> bool:
    """Tell whether a class may be imported: the list names it, or a package around it with a dot at its end."""
    return any(path == one or (one.endswith(".") and path.startswith(one)) for one in allowed)


def by_list(allowed: Sequence[str]) -> Judge:
    """Make the judge that looks at the list of what is allowed, and imports nothing."""

    def judge(named: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[Wrong]]:
        return [[] if is_allowed(path, allowed) else [not_allowed(path, allowed)] for path, _ in named]

    return judge


def not_allowed(path: str, allowed: Sequence[str]) -> Wrong:
    """Say that a class may not be imported."""
    listed = ", ".join(allowed) or "nothing"
    expected = f"a class that [hyperflow] notifiers in Airflow's configuration allows, which is {listed}"
    return ("notifier",), show(path), expected


def broken_rules(plan: Mapping[str, Any], judge: Judge | None) -> list[Wrong]:
    """Find what is wrong with the notices of a plan file's plain data, beyond what the models refuse.

    :param judge: who knows the classes; None when nobody is asked
    """
    found: list[Wrong] = []
    known: list[tuple[Location, str, Mapping[str, Any]]] = []
    for at, notice, events, where in _notices(plan):
        on, path, arguments = notice.get("on"), notice.get("notifier"), notice.get("arguments", {})
        for index, event in enumerate(on if isinstance(on, list) else []):
            if event in (*OF_A_VM, *OF_A_WAVE) and event not in events:
                found.append(((*at, "on", index), f"{event}, which {where} has not", f"one of {', '.join(events)}"))
        if not isinstance(arguments, dict):
            continue
        for name in arguments:
            if isinstance(name, str) and _SECRET.search(name.lower()) and not name.endswith("_conn_id"):
                expected = "no secret in a plan; put it into a connection, and name that"
                found.append(((*at, "arguments", name), "an argument that looks like a secret", expected))
        if isinstance(path, str) and re.fullmatch(rf"{_NAME}(?:\.{_NAME})+", path):
            known.append((at, path, arguments))
    if judge is not None and known:
        verdicts = judge([(path, arguments) for _, path, arguments in known])
        for (at, _, _), wrong in zip(known, verdicts, strict=True):
            found += [((*at, *inner), seen, expected) for inner, seen, expected in wrong]
    return found


def _notices(plan: Mapping[str, Any]) -> Iterator[tuple[Location, dict[str, Any], tuple[Event, ...], str]]:
    """Every notice of a plan, with its place, the events there may be there, and what that place is called."""
    everything = tuple(dict.fromkeys((*OF_A_VM, *OF_A_WAVE)))
    for index, notice in _objects(plan.get("notify")):
        yield ("notify", index), notice, everything, "a plan"
    for key, events, where in (("vms", OF_A_VM, "a VM"), ("waves", OF_A_WAVE, "a wave")):
        for outer, entry in _objects(plan.get(key)):
            for index, notice in _objects(entry.get("notify")):
                yield (key, outer, "notify", index), notice, events, where


def _objects(value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, item in enumerate(value if isinstance(value, list) else []):
        if isinstance(item, dict):
            yield index, item
