"""A stage on this machine, before the eyes of whoever converts: its lines as they come, and an end in any case."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from hyperflow.cli import host_stage

LIMIT = 30.0  # seconds until a test gives up

# In place of the host's Python: starts what keeps its output open, and is killed, as for want of memory.
KILLED = """#!/bin/sh
cat > /dev/null
echo begun
sleep 300 &
echo $! > %s
printf 'without an end'
kill -KILL $$
"""


def test_a_stage_that_was_killed_is_over_whatever_it_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text(KILLED % (tmp_path / "pid"))
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(host_stage, "PYTHON", str(tmp_path / "python"))
    said: list[str] = []
    results: list[dict[str, Any]] = []
    thread = threading.Thread(
        target=lambda: results.append(host_stage.run_stage("convert", {}, tmp_path, said.append)), daemon=True
    )

    thread.start()
    thread.join(LIMIT)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    assert len(results) == 1, "it was waited for what the stage had left"
    assert "ended with exit status -9 and left no result" in results[0]["error"]["message"]
    assert said == ["begun", "without an end"]
