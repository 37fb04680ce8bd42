"""The host program with a stage that talks for a while: a job whose every line a test can count.

All but the stage's work is the real thing: the program is packed as it is for a host, and ``validate`` is replaced.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from hyperflow.hooks import kvmhost_program

STAGE = "validate"
_SOURCE = '''
"""Says a number of lines, evenly over some seconds."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    lines: int
    seconds: float


def run(options, job):
    for number in range(options.lines):
        job.log(f"line {number}")
        time.sleep(options.seconds / options.lines)
    return {"lines": options.lines}
'''


def pack(folder: Path) -> Path:
    """Write the program into a folder; its path."""
    buffer = io.BytesIO()
    packed = zipfile.ZipFile(io.BytesIO(kvmhost_program.pack().content))
    with packed, zipfile.ZipFile(buffer, "w") as changed:
        for name in packed.namelist():
            is_talker = name == f"hyperflow/kvmhost/stages/{STAGE}.py"
            changed.writestr(name, _SOURCE if is_talker else packed.read(name))
    path = folder / "talking.pyz"
    path.write_bytes(buffer.getvalue())
    return path


def options(lines: int, seconds: float) -> bytes:
    """What the stage is told."""
    return json.dumps({"lines": lines, "seconds": seconds}).encode()


def lines(count: int, first: int = 0) -> list[str]:
    """What it says."""
    return [f"line {number}" for number in range(first, count)]
