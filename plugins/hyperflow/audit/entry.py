"""One entry of an audit file, and how it is written and digested."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

Kind = Literal["run", "decision", "vsphere", "host"]
State = Literal["asked", "done", "failed"]

FIRST = "0" * 64  # what the first entry has for the digest of the one before
TEXT_LIMIT = 2000  # characters of one text; vCenter's faults are the longest
LINE_LIMIT = 64 * 1024  # bytes of a line; an entry has some 500
CHAIN_ROOM = 4 * 1024  # bytes of a line that its place in the chain takes


@dataclass(frozen=True)
class Entry:
    """What is told of one act.

    :ivar kind: ``run`` its start and end, ``decision`` of a person, ``vsphere`` a call that changes something,
        ``host`` a command on a KVM host
    :ivar what: the act: a vSphere method, a stage, a program with its first arguments, a question
    :ivar state: ``asked`` before a call is made; a call with no other entry after it was cut off
    :ivar by: the person, as Airflow knows them; None for Hyperflow itself
    :ivar on: what it was done to: ``vcenter01 VirtualMachine:vm-42``, ``kvm01``
    :ivar where: ``{"task", "map_index", "try"}``, as Airflow counts them
    :ivar seconds: how long it took
    :ivar exit: a command's exit status; negative for a signal
    :ivar said: why it failed
    :ivar details: arguments and answers, texts and numbers only; never a secret
    """

    kind: Kind
    what: str
    state: State = "done"
    by: str | None = None
    on: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    exit: int | None = None
    said: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def document(self, now: datetime | None = None) -> dict[str, Any]:
        """The entry as it is written, but for its place in the chain."""
        at = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        told: dict[str, Any] = {
            "at": at,
            "kind": self.kind,
            "what": bounded(self.what),
            "state": self.state,
            "by": bounded(self.by),
            "on": bounded(self.on),
            **self.where,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "exit": self.exit,
            "said": bounded(self.said),
        }
        told = {key: value for key, value in told.items() if value is not None}
        details = _that_fit(self.details, LINE_LIMIT - CHAIN_ROOM - len(written(told)))
        return {**told, "details": details} if details else told

    def sentence(self) -> str:
        """The entry in one line of a log; texts from outside are in it as they are."""
        parts = [self.what, f"on {self.on}" if self.on else "", f"by {self.by}" if self.by else "", self.state]
        parts.append(f"exit {self.exit}" if self.exit is not None else "")
        parts.append(f"{self.seconds:.1f} s" if self.seconds is not None else "")
        parts.append(f"({bounded(self.said)})" if self.said else "")
        return " ".join(part for part in parts if part)


def _that_fit(details: Mapping[str, Any], room: int) -> dict[str, Any]:
    """Details as they are written, as many as so many bytes have room for; ``left_out`` counts the others."""
    fit: dict[str, Any] = {}
    for number, (key, value) in enumerate(details.items()):
        one = {bounded(str(key)): bounded(value)}
        room -= len(written(one))
        if room < 0:
            return {**fit, "left_out": len(details) - number}
        fit |= one
    return fit


def bounded(value: Any) -> Any:
    """Give a text no more than :data:`TEXT_LIMIT` characters; what is neither text nor number as the JSON of it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # half a surrogate pair cannot be written
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}... ({len(text)} characters)"


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of an entry without its own digest: of its JSON with sorted keys and no spaces, in UTF-8."""
    kept = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(
        json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()


def written(document: Mapping[str, Any]) -> bytes:
    """An entry's line as it is in the file, without the line's end; read and written again it is the same."""
    return json.dumps(document, ensure_ascii=False).encode()
