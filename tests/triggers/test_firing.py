"""A trigger does not fire before Airflow has seen the end of the process that deferred."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hyperflow.triggers import job
from hyperflow.triggers.job import JobTrigger


class EndedJob:
    """A host whose job has ended before somebody asks."""

    async def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        return b'{"state": "DONE", "exit_status": 0, "offset": 0, "more": false, "result": {}}\n'

    async def close(self) -> None:
        pass


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were slept, without sleeping."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(job.asyncio, "sleep", sleep)
    return found


def fired(trigger: JobTrigger) -> list[Any]:
    async def run() -> list[Any]:
        return [event.payload async for event in trigger.run()]

    return asyncio.run(run())


@pytest.mark.parametrize("heartbeat", [1, 5])
def test_a_job_that_has_ended_already_is_told_after_a_heartbeat_and_a_loop_of_the_scheduler(
    heartbeat: int, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", str(heartbeat))
    trigger = JobTrigger(ssh_conn_id="kvm", program="p", job="j")
    trigger._host = EndedJob()  # type: ignore[assignment]
    monkeypatch.setattr(job, "time", SimpleNamespace(monotonic=lambda: 1000.0))  # it takes no time, on any machine
    (event,) = fired(trigger)
    assert event["state"] == "DONE"
    (waited,) = slept
    assert heartbeat < waited <= heartbeat + job.SCHEDULER_LOOP


def test_a_job_that_took_longer_is_told_at_once(slept: list[float]) -> None:
    asyncio.run(job.not_too_soon(time.monotonic() - 3600))
    assert slept[0] < 0
