"""What all tests share: an Airflow home of their own, so that none touches a person's."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]

# Airflow reads these when it is first imported, so they are set before any test module is.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="hyperflow-airflow-")
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(ROOT / "plugins")
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"
os.environ["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"] = "1"  # as in the lab: triggers wait for no longer

# How long an example takes says something about the machine's other work, and nothing about the code.
hypothesis.settings.register_profile(
    "hyperflow", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("hyperflow")

from lab import running  # noqa: E402 - Airflow reads the settings above when a part of it is imported

# One libvirt serves the whole machine: the files whose tests start the lab or its host run in one worker, one by one.
SHARING = re.compile(r"running_lab|host: (kvmhost\.)?KvmHost|kvmhost\.start\(")


class Scheduling(LoadScopeScheduling):
    """Gives whole files to the workers of `make test`, and all that share libvirt to one of them.

    Not xdist's own groups: it marks them in a test's id, which pytest 9 does not let it change.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "lab" if SHARING.search((ROOT / path).read_text()) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Tell xdist how the tests are spread."""
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def running_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[running.RunningLab]:
    """The whole lab, up, once for all tests that need it; it fails, and does not skip, when it cannot start."""
    with running.running_lab(tmp_path_factory.mktemp("lab")) as bench:
        yield bench
