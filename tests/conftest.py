"""What all tests share: an Airflow home of their own, so that none touches a person's."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Airflow reads these when it is first imported, so they are set before any test module is.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="hyperflow-airflow-")
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(ROOT / "plugins")
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"

# How long an example takes says something about the machine's other work, and nothing about the code.
hypothesis.settings.register_profile(
    "hyperflow", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("hyperflow")

from lab import running  # noqa: E402 - Airflow reads the settings above when a part of it is imported

# One libvirt and one set of loopback ports serve the whole machine: what uses them runs in one worker, one by one.
SHARING = ("lab", "faults")  # folders
SHARED = {"running_lab", "host"}  # fixtures


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the marks
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Tell the workers of `make test` what belongs together: the lab in one, every other file whole."""
    for item in items:
        shares = item.path.parent.name in SHARING or SHARED & set(item.fixturenames)
        item.add_marker(pytest.mark.xdist_group("lab" if shares else str(item.path)))


@pytest.fixture(scope="session")
def running_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[running.RunningLab]:
    """The whole lab, up, once for all tests that need it; it fails, and does not skip, when it cannot start."""
    with running.running_lab(tmp_path_factory.mktemp("lab")) as bench:
        yield bench
