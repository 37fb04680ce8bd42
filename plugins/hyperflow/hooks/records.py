"""Where Airflow's side keeps what a run leaves for people: reports, console logs, screenshots, audit files.

A folder for each run, ``RECORDS/DAG/RUN/``, which all parts of Airflow share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.configuration import AIRFLOW_HOME, conf

STATE = ".state"  # beside the folders of a DAG's runs
POOLS = ".pools.json"  # beside the folders of DAGs
CLOCKS = timedelta(minutes=1)  # by which those of two schedulers may differ
PLANNED = "planned"  # state of a DAG of which no run has come to anything yet


def records_folder() -> Path:
    """Airflow's setting ``[hyperflow] records_folder``, by default ``hyperflow`` in Airflow's home."""
    return Path(conf.get("hyperflow", "records_folder", fallback=str(Path(AIRFLOW_HOME) / "hyperflow")))


def run_folder(dag_id: str, run_id: str) -> Path:
    """The folder of a run; it may not be there yet."""
    return records_folder() / safe(dag_id) / safe(run_id)


def keep_state(dag_id: str, state: str) -> None:
    """Keep how a DAG's runs have left its VM or wave, for the DAG's tag.

    :param state: some small words
    :raises OSError: it cannot be written
    """
    keep(records_folder() / safe(dag_id) / STATE, state.replace(" ", "-").encode())


def state_of(dag_id: str) -> str:
    """How a DAG's runs have left its VM or wave, as one word; :data:`PLANNED` where none has left anything."""
    try:
        with (records_folder() / safe(dag_id) / STATE).open(errors="replace") as file:
            state = file.read(32)
    except OSError:
        return PLANNED
    return state if re.fullmatch("[a-z]+(-[a-z]+)*", state) else PLANNED


def keep_pools(pools: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep the pools that Airflow has, for tasks, which cannot see them.

    :param pools: name -> ``slots`` and ``include_deferred``
    :raises OSError: it cannot be written
    """
    told = {"told": datetime.now(UTC).isoformat(), "pools": pools}
    keep(records_folder() / POOLS, f"{json.dumps(told, indent=2)}\n".encode())


def pools_since(begun: datetime | None) -> dict[str, dict[str, Any]] | None:
    """What :func:`keep_pools` has kept at that time or later; None where nothing was, or nobody knows the time."""
    if begun is None:
        return None
    try:
        kept = json.loads((records_folder() / POOLS).read_text())
        is_late = datetime.fromisoformat(kept["told"]) < begun - CLOCKS
        return None if is_late else {str(name): dict(pool) for name, pool in kept["pools"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def keep(path: Path, content: bytes) -> None:
    """Write a file, and its folder, so that a reader finds the old content, the new, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def safe(text: str) -> str:
    """Write a DAG's, run's or task's id (``+`` and ``:`` in run ids) so that it can be one part of a path."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip(".") or "_"
