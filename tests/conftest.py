"""What all tests share: an Airflow home of their own, so that none touches a person's."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Airflow reads these when it is first imported, so they are set before any test module is.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="hyperflow-airflow-")
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(ROOT / "plugins")
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"

from lab import running  # noqa: E402 - Airflow reads the settings above when a part of it is imported


@pytest.fixture(scope="session")
def running_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[running.RunningLab]:
    """The whole lab, up, once for all tests that need it; it fails, and does not skip, when it cannot start."""
    with running.running_lab(tmp_path_factory.mktemp("lab")) as bench:
        yield bench
