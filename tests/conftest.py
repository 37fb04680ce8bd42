"""What all tests share: an Airflow home of their own, so that none touches a person's."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
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

from lab import kvmhost, running  # noqa: E402 - Airflow reads the settings above when a part of it is imported

# The lab's tests look at all of vCenter, Airflow and the host, so one worker runs them, one by one. What else needs the
# host brings domains of its own, and runs beside them.
OF_THE_LAB = re.compile(r"running_lab")
LAB = "lab"  # their scope
# What takes minutes begins first, the longest before the others: who begins last must be done soon.
LONG = (
    LAB,
    "tests/operators/test_cutover.py",
    "tests/kvmhost/stages/test_fix.py",
    "tests/faults/test_ssh.py",
    "tests/kvmhost/stages/test_inspect.py",
    "tests/faults/test_export.py",
    "tests/kvmhost/guest/test_hostile_guest.py",
    "tests/kvmhost/stages/test_boot.py",
    "tests/kvmhost/stages/test_fix_configuration.py",
    "tests/hooks/test_audit.py",
    "tests/kvmhost/test_watch.py",
    "tests/workflows/test_wave_runs.py",
    "tests/notifications/test_planned.py",
)

HOST = pytest.StashKey[Path]()  # folder of the libvirt that was started for all workers


class Scheduling(LoadScopeScheduling):
    """Gives whole files to the workers of `make test`, and all that use the lab to one of them.

    Not xdist's own groups: it marks them in a test's id, which pytest 9 does not let it change.
    """

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """What one worker runs as a whole: a test's file, or all that use the lab."""
    return _scope_of_file(nodeid.partition("::")[0])


@cache
def _scope_of_file(path: str) -> str:
    return LAB if OF_THE_LAB.search((ROOT / path).read_text()) else path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes minutes first; xdist keeps that order (``--no-loadscope-reorder``)."""
    rank = {scope: at for at, scope in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(scope_of(item.nodeid), len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Tell xdist how the tests are spread."""
    return Scheduling(config, log)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the one libvirt of this machine before the workers, each of which uses what is there and leaves it."""
    if session.config.getoption("numprocesses", None):
        session.config.stash[HOST] = state = Path(tempfile.mkdtemp(prefix="hyperflow-libvirt-"))
        kvmhost.start(state)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End it when all workers are done."""
    state = session.config.stash.get(HOST, None)
    if state is not None:
        kvmhost.stop(state)
        shutil.rmtree(state)


@pytest.fixture(scope="session")
def running_lab(request: pytest.FixtureRequest) -> Iterator[running.RunningLab]:
    """The whole lab, up, once for all tests that need it; it fails, and does not skip, when it cannot start.

    In a folder of its own, which is kept when a test failed: those of pytest are closed to libvirt's user again when
    another session of pytest begins.
    """
    folder = Path(tempfile.mkdtemp(prefix="hyperflow-lab-"))
    with running.running_lab(folder / "lab") as bench:
        yield bench
    if request.session.testsfailed:
        print(f"what the lab has left is kept in {folder}")
    else:
        shutil.rmtree(folder)
