"""Lays settings over settings: profile < plan < VM < run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge plain data, later layers over earlier ones.

    Objects merge key by key, at every depth. Anything else is replaced as a whole. An absent key changes
    nothing.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            both = isinstance(below, Mapping) and isinstance(value, Mapping)
            merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged
