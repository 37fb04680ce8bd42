"""A KVM host whose sshd is down when a run begins, and again in the middle of its export, and which comes back with a
clock that is an hour fast: the run waits and goes on.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from lab import kvmhost, lab, leftovers
from lab.running import RunningLab
from tests.faults.clock import wrong_clock
from tests.faults.scenario import Scenario
from tests.faults.sshd import Sshd

pytestmark = [pytest.mark.lab, pytest.mark.night]

OUTAGE = 60.0  # seconds
HOUR = 3600  # seconds


@pytest.fixture(scope="module")
def dark(running_lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """A run on the second host, played to its end."""
    running_lab.start_second_host()
    where = running_lab.folders.second.host
    host = kvmhost.running(where)
    assert host is not None
    sshd = Sshd(where, host)
    scene = Scenario(running_lab, "dark", "small22")
    scene.stall()
    try:
        sshd.kill()
        scene.begin(host=running_lab.host_folders("dark", lab.SECOND_HOST_CONNECTION))
        scene.until_task("preflight", "up_for_retry")
        sshd.start()
        scene.until(lambda: bool(scene.leases()) and bool(partials(scene)))
        sshd.kill()
        time.sleep(OUTAGE)
        scene.facts["in the dark"] = (scene.task("export"), scene.ended_leases())
        clock = wrong_clock(tmp_path_factory.mktemp("clock"), HOUR)
        sshd.start(f'ForceCommand {clock} sh -c "$SSH_ORIGINAL_COMMAND"\n')
        scene.lab.vcenter.admin("DELETE", f"/leases?vm={scene.vm}")  # what is stalled goes on with another one
        scene.end()
        scene.facts["end"] = datetime.now(UTC)
    finally:
        sshd.end()
    return scene


def partials(scene: Scenario) -> list[str]:
    """What is being downloaded on the second host."""
    return [str(path) for path in (scene.lab.folders.second.staging / scene.name).rglob("*.vmdk.partial")]


def test_a_host_that_is_down_when_the_run_begins_costs_preflight_a_try(dark: Scenario) -> None:
    task = dark.task("preflight")
    assert task is not None
    assert (task.state, task.try_number) == ("success", 2)


def test_while_the_host_is_dark_the_export_waits_and_keeps_its_lease(dark: Scenario) -> None:
    task, ended = dark.facts["in the dark"]
    assert (task.state, task.try_number, ended) == ("deferred", 1, [])


def test_stages_of_a_host_whose_clock_is_an_hour_fast_are_waited_for_as_ever(dark: Scenario) -> None:
    told = dark.report()["pipeline"]["stages"]["validate"]["started"]
    fast = datetime.fromisoformat(told) - dark.facts["end"]
    assert timedelta(minutes=50) < fast <= timedelta(hours=1), "the host's clock is really off"


def test_the_run_ends_well_and_leaves_nothing(dark: Scenario) -> None:
    assert (dark.end(), dark.report()["errors"]) == ("success", [])
    assert dark.ended_leases() == ["aborted", "completed"]
    assert leftovers.of_run(dark.lab, dark.name, dark.vm, failed=False, second_host=True) == []
