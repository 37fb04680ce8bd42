"""What a download meets, through the whole flow: what passes costs a try, what does not says so at once.

Each fault by itself is tested where it is told, in tests/kvmhost/stages/test_download.py.
"""

from __future__ import annotations

import hashlib

import pytest

from lab.running import RunningLab
from lab.small_guest import ensure_small_guest
from tests.faults.scenario import Scenario, play

pytestmark = [pytest.mark.lab, pytest.mark.night]

PASSING = ({"kind": "cut"}, {"kind": "status", "status": 500}, {"kind": "status", "status": 401}, {"kind": "flip"})


def passing(scene: Scenario) -> None:
    """One after the other: cut, failing server, refused ticket, bytes that change on their way; then it goes well."""
    for fault in PASSING:
        scene.disturb(**fault)
    scene.begin()
    scene.end()


def redirected(scene: Scenario) -> None:
    """The server sends the host elsewhere."""
    scene.disturb("redirect")
    scene.begin()
    scene.end()


@pytest.fixture(scope="module")
def scenes(running_lab: RunningLab) -> dict[str, Scenario]:
    """All runs of this module, played at once."""
    return play(running_lab, ("passing", "small20", passing), ("redirected", "small21", redirected))


def test_what_passes_costs_a_try_with_a_lease_of_its_own_each(scenes: dict[str, Scenario]) -> None:
    scene = scenes["passing"]
    report = scene.report()
    assert (scene.end(), report["errors"]) == ("success", [])
    task = scene.task("export")
    assert task is not None
    assert task.try_number == len(PASSING) + 1
    assert scene.ended_leases() == ["aborted"] * len(PASSING) + ["completed"]


def test_what_is_staged_is_what_the_server_has_and_nothing_half_written_is_left(scenes: dict[str, Scenario]) -> None:
    """Also after bytes that were changed on their way: the decoder noticed, by the Adler-32 of the grain."""
    scene = scenes["passing"]
    assert scene.staged_sha256() == hashlib.sha256(ensure_small_guest().read_bytes()).hexdigest()
    log = (scene.lab.folders.state / "airflow" / "logs").rglob("dag_id=*passing*/**/task_id=export/**/attempt=4.log*")
    assert any("what arrives is damaged" in path.read_text() for path in log)
    assert scene.left(failed=False) == []


def test_a_redirect_is_refused_at_once_and_reported(scenes: dict[str, Scenario]) -> None:
    scene = scenes["redirected"]
    assert scene.end() == "failed"
    task = scene.task("export")
    assert task is not None
    assert task.try_number == 1
    (error,) = scene.report()["errors"]
    assert (error["stage"], "elsewhere.example" in error["message"]) == ("export", True)
    assert scene.left(failed=True) == []
