"""How long a task waits for a host that is away."""

from __future__ import annotations

import pytest
from airflow.sdk import RetryAction
from hyperflow.hooks.kvmhost import KvmHostAway, KvmHostError
from hyperflow.operators.retries import WaitForHost
from hyperflow.workflows.migration import RETRIES

REBOOT = 15 * 60  # seconds that a server may take
POLICY = WaitForHost(RETRIES)


def waits(first: int, max_tries: int) -> list[float]:
    decisions = [POLICY.evaluate(KvmHostAway("away"), number, max_tries) for number in range(first, first + RETRIES)]
    assert all(decision.action is RetryAction.RETRY for decision in decisions)
    return [decision.retry_delay.total_seconds() for decision in decisions if decision.retry_delay]


def test_the_tries_outlast_a_reboot_and_the_first_ones_come_soon() -> None:
    found = waits(1, RETRIES)
    assert sum(found) > REBOOT
    assert found == sorted(found)
    assert found[0] == 20


def test_a_task_that_was_cleared_after_all_its_tries_is_tried_as_soon_as_a_new_one() -> None:
    assert waits(RETRIES + 2, RETRIES + 1 + RETRIES) == waits(1, RETRIES)


@pytest.mark.parametrize("fault", [KvmHostError("it answered, and badly"), ValueError("of our own")])
def test_what_is_no_host_that_is_away_is_tried_again_as_the_dag_says(fault: Exception) -> None:
    assert POLICY.evaluate(fault, 1, RETRIES).action is RetryAction.DEFAULT
