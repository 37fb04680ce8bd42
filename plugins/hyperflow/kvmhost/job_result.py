"""Reads a job's ``result.json`` as something that anybody may have written: bounded, strict, and of one shape."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Optional

RESULT_LIMIT = 1024 * 1024  # bytes; a result is kilobytes, more is a fault of the stage
DEPTH_LIMIT = 32  # levels; a result has eight
INTEGER_LIMIT = 1 << 63  # what databases and messages on the way carry

Reading = tuple[Optional[dict[str, Any]], Optional[str]]


class _Unfit(Exception):
    """The file is no result; the message says what was found."""


def read_result(path: Path) -> Reading:
    """Read a result.

    :return: the result and None, or None and why it is none
    """
    try:
        result = _parse(_content(path))
        _check_shape(result)
    except _Unfit as fault:
        return None, f"{path}: {fault}"
    except OSError as fault:
        return None, f"{path}: {fault.strerror}, expected the stage's result"
    return result, None


def _content(path: Path) -> bytes:
    """Read a small regular file: no link, no FIFO that never ends, no device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _Unfit("found no regular file, expected the stage's result")
        content = file.read(RESULT_LIMIT + 1)
    if len(content) > RESULT_LIMIT:
        raise _Unfit(f"found more than {RESULT_LIMIT} bytes, expected at most that")
    return content


def _parse(content: bytes) -> Any:
    try:
        document = json.loads(content.decode("utf-8"), parse_int=_integer)
        # as XCom and database will write it: neither NaN nor half a surrogate pair
        json.dumps(document, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as fault:
        raise _Unfit(f"found no JSON document ({fault}), expected the stage's result") from fault
    level = [document]
    for _ in range(DEPTH_LIMIT):
        level = [inner for value in level for inner in _inside(value)]
    if level:
        raise _Unfit(f"found more than {DEPTH_LIMIT} levels, expected the stage's result")
    return document


def _integer(text: str) -> int:
    if len(text) > 20 or not -INTEGER_LIMIT <= int(text) < INTEGER_LIMIT:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _check_shape(result: Any) -> None:
    """Hold a result to what :meth:`hyperflow.kvmhost.stage.Job.result` makes."""
    if not isinstance(result, dict):
        raise _Unfit(f"found {type(result).__name__}, expected an object")
    kinds = {"stage": str, "succeeded": bool, "observed": dict, "warnings": list}
    for key, kind in kinds.items():
        if type(result.get(key)) is not kind:
            raise _Unfit(f"{key}: found {type(result.get(key)).__name__}, expected {kind.__name__}")
    if any(not isinstance(warning, str) for warning in result["warnings"]):
        raise _Unfit("warnings: found something else than text in it")
    error = result.get("error")
    if result["succeeded"] and error is None:
        return
    told = isinstance(error, dict) and all(isinstance(error.get(key), str) for key in ("kind", "message"))
    if result["succeeded"] or not told:
        raise _Unfit("error: expected kind and message where it did not succeed, and none where it did")
