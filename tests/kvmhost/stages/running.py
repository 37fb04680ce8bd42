"""Runs a stage as a host does: the host's own Python, options on standard input, a result in a file."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PYTHON = "/usr/bin/python3"  # the venv's Python has no guestfs


def run(stage: str, options: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a stage to its end; its result, with ``exit_status`` and ``log`` added."""
    with tempfile.TemporaryDirectory(prefix="hyperflow-test-") as folder:
        result = Path(folder, "result.json")
        process = start(stage, options, result, environment)
        log, _ = process.communicate()
        document: dict[str, Any] = json.loads(result.read_text())
    return document | {"exit_status": process.returncode, "log": log}


def start(
    stage: str,
    options: dict[str, Any],
    result: Path,
    environment: dict[str, str] | None = None,
    under: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start a stage; its log is the process's standard output.

    :param under: a command that becomes it, such as one that sets a limit
    """
    process = subprocess.Popen(
        [*under, PYTHON, "-m", "hyperflow.kvmhost", stage, "--result", str(result)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "plugins"), **(environment or {})},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(options))
    process.stdin.close()
    process.stdin = None  # communicate() would flush it
    return process
