"""qemu-img, called so that it never guesses: every image's format is named, every answer is read as JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hyperflow.kvmhost import commands
from hyperflow.kvmhost.stage import ADVICE, Job, StageError

DRIVERS = {"vhd": "vpc"}  # where QEMU's name of a format is another one
_PERCENT = re.compile(rb"\((\d+)\.\d+/100%\)")
SECONDS = 600.0  # a question about an image is answered from its tables
# And for each GiB of the disk, where all tables are gone through: measured, 0.01 s from memory; they may lie all over a
# slow disk, in some forty reads for a GiB. The largest disk of vSphere, 62 TB, was over the limit above.
SECONDS_A_GIB = 2.0
ERRORS_LIMIT = 1 << 20  # bytes of what it complains about that are looked at


def driver(image_format: str) -> str:
    """Name QEMU's driver of a format as manifests name it."""
    return DRIVERS.get(image_format, image_format)


def note_version(job: Job) -> None:
    """Record qemu-img's version among the stage's tools.

    :raises StageError: when there is no qemu-img
    """
    if "qemu-img" in job.tools:
        return
    if shutil.which("qemu-img") is None:
        raise StageError("qemu-img is not installed on this host (package qemu-utils or qemu-img)")
    text = run(["qemu-img", "--version"])
    match = re.search(r"version ([\w.]+)", text)
    job.tools["qemu-img"] = match[1] if match else "unknown"


def run(arguments: list[str], limit: float = SECONDS) -> str:
    """Run a short qemu-img command.

    :param limit: seconds after which it is ended
    :return: its standard output
    :raises StageError: with what it said on standard error
    """
    done = _call(arguments, limit)
    if done.returncode != 0:
        raise StageError(f"{' '.join(arguments[:2])}: {_said(done.stderr)}")
    return done.stdout.decode("utf-8", "replace")


def info(path: Path, image_format: str) -> dict[str, Any]:
    """Describe one image, without its backing files.

    :param image_format: as manifests name it
    """
    answer: dict[str, Any] = json.loads(
        run(["qemu-img", "info", "--output=json", "-f", driver(image_format), str(path)])
    )
    return answer


def check(path: Path, image_format: str, virtual_bytes: int) -> dict[str, Any]:
    """Check an image's tables.

    :param virtual_bytes: of the disk
    :return: qemu-img's answer, with ``exit_status``: 0 sound, 2 damaged, 3 leaks
    :raises StageError: when the check itself was not possible
    """
    arguments = ["qemu-img", "check", "--output=json", "-f", driver(image_format), str(path)]
    done = _call(arguments, limit_for(virtual_bytes))
    if done.returncode not in (0, 2, 3):
        raise StageError(f"{path}: qemu-img check could not be done: {_said(done.stderr)}")
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as fault:
        raise StageError(f"{path}: qemu-img check gave no answer: {_said(done.stderr)}") from fault
    return {**answer, "exit_status": done.returncode}


def measure(image: dict[str, Any], target_format: str, virtual_bytes: int) -> int:
    """Tell how many bytes an image of another format needs for the same content.

    :param image: QEMU's description of it
    :param target_format: raw or qcow2
    :param virtual_bytes: of the disk
    """
    arguments = ["qemu-img", "measure", "--output=json", "-O", target_format, "json:" + json.dumps(image)]
    return int(json.loads(run(arguments, limit_for(virtual_bytes)))["required"])


def limit_for(virtual_bytes: int) -> float:
    """Seconds after which a command that goes through all tables of a disk is taken to hang; it tells no progress."""
    return SECONDS + SECONDS_A_GIB * virtual_bytes / 2**30


def convert(
    source: tuple[Path, str], target: tuple[Path, str], options: list[str], advance: Callable[[int], None]
) -> None:
    """Copy an image into another format.

    :param source: path and format as manifests name it
    :param target: likewise; the file is made anew
    :param options: further arguments
    :param advance: told the percent done since it was last told
    """
    arguments = ["qemu-img", "convert", "-p", "-W", "-f", driver(source[1]), "-O", driver(target[1]), *options]
    with tempfile.TemporaryFile() as errors:  # no pipe: nobody reads it meanwhile, and a full one is waited for
        process = commands.Started(
            [*arguments, str(source[0]), str(target[0])],
            stdin=commands.DEVNULL,
            stdout=commands.PIPE,
            stderr=errors,
        )
        try:
            for percent in _percents(process):
                advance(percent)
            process.communicate()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode != 0:
            errors.seek(0)
            said = errors.read(ERRORS_LIMIT)
            raise StageError(f"{source[0]} to {target[0]}: qemu-img convert: {_said(said)}")


def commit(overlay: Path, base: Path, base_format: str) -> None:
    """Write what an overlay holds into another base than the one it names.

    The base is given in the description of the overlay, so the overlay itself stays byte for byte what it was, and
    ``-d`` keeps its content: a commit that was killed is done again on a new base.

    :raises StageError: when it fails; the base is then worthless
    """
    description = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(overlay)},
        "backing": {"driver": driver(base_format), "file": {"driver": "file", "filename": str(base)}},
    }
    run_long(["qemu-img", "commit", "-q", "-d", "json:" + json.dumps(description)], base)


def run_long(arguments: list[str], target: Path) -> None:
    """Run a command that may take hours; it ends with the stage.

    :param target: the file that it writes to, for errors
    :raises StageError: with what it said on standard error
    """
    process = commands.Started(arguments, stdin=commands.DEVNULL, stdout=commands.DEVNULL, stderr=commands.PIPE)
    try:
        _, errors = process.communicate()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode != 0:
        raise StageError(f"{target}: {' '.join(arguments[:2])}: {_said(errors)}")


def _percents(process: commands.Started) -> Iterator[int]:
    """Follow qemu-img's progress: yields what was done since the last time."""
    done = 0
    while process.stdout is not None:
        text = process.stdout.read1(4096)  # type: ignore[attr-defined] # a BufferedReader, whatever IO[bytes] says
        if not text:
            return
        for match in _PERCENT.finditer(text):
            percent = int(match[1])
            if percent > done:
                yield percent - done
                done = percent


def _call(arguments: list[str], limit: float) -> commands.CalledProcess[bytes]:
    try:
        return commands.run(arguments, stdin=commands.DEVNULL, capture_output=True, timeout=limit)
    except commands.TimeoutExpired as fault:
        raise StageError(f"{' '.join(arguments[:2])}: no answer within {limit:.0f} s") from fault
    except FileNotFoundError as fault:
        raise StageError("qemu-img is not installed on this host (package qemu-utils or qemu-img)") from fault


def _said(errors: bytes) -> str:
    """What qemu-img said, in one line; with what to do where the host is at fault."""
    lines = dict.fromkeys(errors.decode("utf-8", "replace").split("\n"))  # each thread that writes says the same
    said = " | ".join(filter(None, map(str.strip, lines)))[-2000:] or "it failed without a word"
    for number in (errno.ENOSPC, errno.ENOMEM, errno.EROFS):
        if os.strerror(number) in said:
            return f"{said}; {ADVICE[number]}"
    if "thread_create" in said:  # EAGAIN: no memory for its stack, or too many processes
        return f"{said}; {ADVICE[errno.ENOMEM]}"
    return said
