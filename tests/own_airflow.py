"""An Airflow of a test's own: a home with an empty database, for programs that run DAGs without any server.

Migrating a database takes five seconds and gives the same each time, so a migrated one is kept and copied.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lab.airflow import BUSY_LIMIT

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path.home() / ".cache" / "hyperflow"
AIRFLOW = Path(sys.executable).parent / "airflow"
DATABASE = "airflow.db"  # where Airflow looks for SQLite's in its home


def make(home: Path, **settings: str) -> dict[str, str]:
    """Make a home with a database.

    :param settings: further variables for the environment
    :return: the environment for programs of this Airflow; nothing of the test session's own Airflow is in it
    """
    shutil.copyfile(_migrated(), home / DATABASE)
    return _environment(home) | settings


def task_instance(dag_id: str, task_id: str) -> Any:
    """What Airflow's triggerer gives a trigger of its task, as far as triggers look at it."""
    where = {"dag_id": dag_id, "run_id": "run", "task_id": task_id, "map_index": -1, "try_number": 1}
    return SimpleNamespace(id=uuid.uuid4(), **where)


def run(program: Path, environment: dict[str, str], *arguments: str) -> str:
    """Run a Python program to its end; all that it printed."""
    done = subprocess.run(
        [sys.executable, program, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def _environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return kept | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/{DATABASE}?timeout={BUSY_LIMIT}",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "PYTHONPATH": str(ROOT / "plugins"),
    }


def _migrated() -> Path:
    """A migrated database of the locked Airflow; made when it is not there yet."""
    key = hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()[:16]
    kept = CACHE / f"airflow-{key}.db"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="hyperflow-airflow-") as name:
            home = Path(name)
            subprocess.run([AIRFLOW, "db", "migrate"], env=_environment(home), check=True, capture_output=True)
            partial = CACHE / f".{kept.name}.{os.getpid()}"
            shutil.copyfile(home / DATABASE, partial)
            partial.replace(kept)
    return kept
