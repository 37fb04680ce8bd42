"""The frame every stage runs in: options in, work, observed result out.

A stage is a module of :mod:`hyperflow.kvmhost.stages` with

* ``Options``: a frozen dataclass, the JSON object the stage takes on standard input;
* ``run(options, job)``: does the work and returns what was observed, as a JSON object.

Exit status: 0 done, 64 bad request (never retried), 75 try again, 1 failed, 143 ended by SIGTERM. ``result.json`` is
written once, atomically, at the end, also when the stage failed, but not when it was ended; standard output is the
person's log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import json
import os
import platform
import re
import signal
import sys
import threading
import time
import traceback
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar, Union

from hyperflow.kvmhost import commands, ledger
from hyperflow.kvmhost.progress import Progress

STAGES = (
    "check",
    "download",
    "manifest",
    "checksum",
    "inspect",
    "fix",
    "convert",
    "validate",
    "boot",
    "define",
    "start",
    "stop",
    "report",
    "cleanup",
    "janitor",
)

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_REQUEST = 64  # EX_USAGE of sysexits.h
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
EXIT_ENDED = 128 + signal.SIGTERM  # as a shell says it of a program that died of it

OPTIONS_LIMIT = 16 * 1024 * 1024  # bytes; a manifest of a thousand disks has some 200 kB

RESERVE = "reserve"  # beside a job's result: disk that is freed when the result does not fit otherwise

OptionsType = TypeVar("OptionsType")


ADVICE = {  # what a fault of the operating system asks a person to do
    errno.ENOSPC: "make room on the host, then clear the task",
    errno.EDQUOT: "raise the quota on the host, then clear the task",
    errno.EROFS: "mount it writable (after a fault of the disk?), or take another directory",
    errno.EACCES: "let the connection's user write there, or take another directory",
    errno.EPERM: "let the connection's user write there, or take another directory",
    errno.EIO: "the host's disk or its network storage fails; see the host's kernel log",
    errno.ENOMEM: "free some memory on the host, or raise the stage's limit",
    errno.ESTALE: "the network storage was taken away; mount it again",
}


class StageError(Exception):
    """The work failed; the message says what was found and what to do."""

    exit_status = EXIT_FAILED
    kind = "failed"


class BadRequest(StageError):
    """What was asked for is wrong, so asking again is useless."""

    exit_status = EXIT_BAD_REQUEST
    kind = "bad-request"


class TryAgain(StageError):
    """Something outside failed that may pass: a connection, a busy lease, an NBD server."""

    exit_status = EXIT_TRY_AGAIN
    kind = "try-again"


class Job:
    """What a stage is given besides its options: the log, progress, warnings and its books.

    :param name: the stage's name
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = datetime.now(timezone.utc)
        self._clock = time.monotonic()
        self.warnings: list[str] = []
        self.tools: dict[str, str] = {}
        self.bytes_read = 0
        self.bytes_written = 0

    def log(self, message: str) -> None:
        """Say something to the person who reads the task log: one line, at once."""
        print(one_line(message), flush=True)

    def warn(self, message: str) -> None:
        """Log a warning and keep it for the report."""
        self.warnings.append(message)
        self.log(f"warning: {message}")

    def creating(self, kind: str, *things: Path | str, **facts: str) -> None:
        """Note in the run's ledger what is about to be created; see :mod:`hyperflow.kvmhost.ledger`.

        :raises TryAgain: when it cannot be noted now; it must not be created then
        :raises StageError: when it cannot be noted
        """
        try:
            ledger.note([ledger.Entry(kind, str(thing), facts) for thing in things])
        except ledger.LedgerBusy as fault:
            raise TryAgain(str(fault)) from fault
        except ledger.LedgerError as fault:
            raise StageError(str(fault)) from fault

    def progress(self, what: str, total: int) -> Progress:
        """Start a progress display of ``total`` bytes; see :class:`Progress`."""
        return Progress(what, total, self.log)

    def seconds(self) -> float:
        """Seconds since the stage started."""
        return round(time.monotonic() - self._clock, 3)

    def result(self, observed: Mapping[str, Any], error: StageError | None) -> dict[str, Any]:
        """Make the stage's result, the shape every ``result.json`` has."""
        result: dict[str, Any] = {
            "stage": self.name,
            "succeeded": error is None,
            "observed": dict(observed),
            "warnings": self.warnings,
            "host": platform.node(),
            "started": self.started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seconds": self.seconds(),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "tools": self.tools,
            "commands": commands.remembered(),
        }
        if error is not None:
            result["error"] = {"kind": error.kind, "message": str(error)}
        carried: dict[str, Any] = _carried(result)
        return carried


def run_stage(name: str, options_text: str, result_path: Path) -> int:
    """Run stage ``name`` and write its result.

    :param name: one of :data:`STAGES`
    :param options_text: the JSON object of options
    :param result_path: where ``result.json`` goes
    :return: the exit status
    :raises SystemExit: when SIGTERM has ended the stage
    """
    job = Job(name)
    observed: Mapping[str, Any] = {}
    error: StageError | None = None
    with ended_in_order():
        try:
            if name not in STAGES:
                raise BadRequest(f"stage: found {name!r}, expected one of {', '.join(STAGES)}")
            module = importlib.import_module(f"hyperflow.kvmhost.stages.{name}")
            observed = module.run(parse_options(module.Options, options_text), job)
        except StageError as fault:
            error = fault
        except MemoryError:
            error = StageError(f"no more memory for this stage; {ADVICE[errno.ENOMEM]}")
        except OSError as fault:
            traceback.print_exc(file=sys.stdout)
            error = StageError(explain(fault))
        except Exception as fault:  # noqa: BLE001 - the last resort: a result is owed whatever happened
            traceback.print_exc(file=sys.stdout)
            error = StageError(f"{type(fault).__name__}: {fault}")
    if error is not None:
        job.log(f"error: {error}")
    _write_result(result_path, json.dumps(job.result(observed, error), indent=2) + "\n")
    return EXIT_DONE if error is None else error.exit_status


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Have SIGTERM leave the block, and every block in it, as an error does: temporary folders and appliances go.

    The process ends by an exit and not by the signal itself, because libraries (libguestfs) put away at their exit what
    is left of theirs. Whoever ends a job sends the signal several times a second: only the first one counts.

    :raises SystemExit: with :data:`EXIT_ENDED`, also when something in the block has swallowed the first one
    """
    if threading.current_thread() is not threading.main_thread():  # no other thread may handle signals
        yield
        return
    came = False

    def end(_number: int, _frame: object) -> None:
        nonlocal came
        if not came:
            came = True
            raise SystemExit(EXIT_ENDED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if came else before)
    if came:
        raise SystemExit(EXIT_ENDED)


def explain(fault: OSError) -> str:
    """Say what a fault of the operating system means here: what it happened to, and what to do."""
    what = f"{os.fsdecode(fault.filename)}: " if isinstance(fault.filename, (str, bytes)) else ""
    said = f"{what}{fault.strerror or fault}"
    if fault.errno == errno.ENOENT and what and "/" not in what:
        return f"{said}: this program is not installed on the host, or was removed; install it"
    advice = ADVICE.get(fault.errno or 0)
    return f"{said}; {advice}" if advice else f"{type(fault).__name__}: {said}"


def _write_result(path: Path, text: str) -> None:
    """Write a result; on a full file system with the disk that the job has put by for it."""
    try:
        write_atomically(path, text)
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        (path.parent / RESERVE).unlink(missing_ok=True)
        write_atomically(path, text)


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that a reader finds the old content, the new, or nothing, and never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def parse_options(options_type: type[OptionsType], text: str) -> OptionsType:
    """Read a stage's options strictly: no unknown key, no missing key, no coerced type.

    :raises BadRequest: with every fault as ``path: found X, expected Y``
    """
    if len(text) > OPTIONS_LIMIT:
        raise BadRequest(f"options: found {len(text)} characters, expected at most {OPTIONS_LIMIT}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise BadRequest(f"options: found no JSON document ({fault}), expected one object") from fault
    return read_as(options_type, document, "options")


def read_as(wanted: type[OptionsType], document: Any, name: str) -> OptionsType:
    """Read a part of a JSON document as strictly.

    :param name: what messages call it
    :raises BadRequest: with every fault as ``path: found X, expected Y``
    """
    faults: list[str] = []
    read = _read(wanted, document, name, faults)
    if faults:
        raise BadRequest("; ".join(faults))
    return typing.cast(OptionsType, read)


def _read(expected: Any, value: Any, path: str, faults: list[str]) -> Any:  # noqa: PLR0911 - one return per kind
    """Read ``value`` as the type ``expected``: a dataclass, list[T], dict[str, T], Optional[T], or a plain type."""
    origin = typing.get_origin(expected)
    if dataclasses.is_dataclass(expected):
        return _read_object(expected, value, path, faults)
    if origin in (Union, getattr(types, "UnionType", Union)):  # Python 3.9 has no UnionType
        if value is None:
            return None
        (inner,) = (arm for arm in typing.get_args(expected) if arm is not type(None))
        return _read(inner, value, path, faults)
    if origin is list and isinstance(value, list):
        (inner,) = typing.get_args(expected)
        return [_read(inner, item, f"{path}[{index}]", faults) for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        inner = typing.get_args(expected)[1]
        return {key: _read(inner, item, f"{path}.{key}", faults) for key, item in value.items()}
    if expected is Any:
        return value
    plain = origin or expected
    if expected is Path:
        if isinstance(value, str) and value.startswith("/") and "\0" not in value:
            return Path(value)
        faults.append(f"{path}: found {value!r}, expected an absolute path")
        return None
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not plain:  # not isinstance: True is no integer here
        faults.append(f"{path}: found {value!r}, expected {getattr(plain, '__name__', plain)}")
    return value


def _read_object(expected: Any, value: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(value, dict):
        faults.append(f"{path}: found {value!r}, expected an object")
        return None
    hints = typing.get_type_hints(expected)
    fields = {field.name: field for field in dataclasses.fields(expected)}
    faults.extend(f"{path}.{key}: unknown key, expected one of {', '.join(fields)}" for key in value.keys() - fields)
    arguments = {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = _read(hints[name], value[name], f"{path}.{name}", faults)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            faults.append(f"{path}.{name}: missing")
    return None if faults else expected(**arguments)


def _carried(value: Any) -> Any:
    """Show bytes of a guest that are no UTF-8 as ``\\xNN``: messages and databases on the way carry Unicode only."""
    if isinstance(value, str):
        shown = re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", value)
        return shown.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_carried(key): _carried(inner) for key, inner in value.items()}
    return [_carried(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def one_line(message: str) -> str:
    """Keep text from outside to one line of the log, its control characters shown and not obeyed."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)
