"""Has the notifiers of plans judged by the Airflow that Hyperflow is installed with, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperflow.plans.notices import Wrong

PLUGINS = Path(__file__).resolve().parents[2]
SECONDS = 120  # to import Airflow and the notifiers
LAST_LINES = 300  # characters of what a process said that failed
Named = tuple[str, Mapping[str, Any]]


class Judging:
    """A judge of notifiers (``plans.notices.Judge``); one that several plans or VMs name is looked at once."""

    def __init__(self) -> None:
        self._known: dict[str, list[Wrong]] = {}

    def __call__(self, named: Sequence[Named]) -> list[list[Wrong]]:
        """Say what is wrong with each."""
        keys = [json.dumps([path, arguments], sort_keys=True) for path, arguments in named]
        new = {key: one for key, one in zip(keys, named, strict=True) if key not in self._known}
        if new:
            self._known |= zip(new, _ask(list(new.values())), strict=True)
        return [self._known[key] for key in keys]


def _ask(named: Sequence[Named]) -> list[list[Wrong]]:
    question = json.dumps(named)
    command = [sys.executable, "-m", "hyperflow.notifications.check"]
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                command,
                input=question,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
                env={**os.environ, "AIRFLOW_HOME": _airflow_home(empty), "PYTHONPATH": _search_path()},
            )
        except subprocess.TimeoutExpired:
            return [_not_judged(path, f"importing it took more than {SECONDS} s") for path, _ in named]
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        why = " ".join((done.stderr or done.stdout).strip().splitlines()[-1:])[-LAST_LINES:]
        return [_not_judged(path, why or f"exit status {done.returncode}") for path, _ in named]
    return [[(tuple(place), found, expected) for place, found, expected in each] for each in json.loads(lines[-1])]


def _airflow_home(empty: str) -> str:
    """Airflow's home, whose configuration says what is allowed; where there is none, none is made."""
    home = Path(os.environ.get("AIRFLOW_HOME") or Path.home() / "airflow")
    return str(home) if home.is_dir() else empty


def _search_path() -> str:
    return os.pathsep.join([str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])])


def _not_judged(path: str, why: str) -> list[Wrong]:
    return [(("notifier",), f"{path}, which could not be looked at ({why})", "a notifier that Airflow can import")]
