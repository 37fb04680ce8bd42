"""How long a task waits before it is tried again."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow.sdk import RetryDecision, RetryPolicy

if TYPE_CHECKING:
    from airflow.sdk import Context

AWAY = (20.0, 60.0, 300.0, 300.0, 300.0)  # seconds before each retry: a server is back a quarter of an hour later


class WaitForHost(RetryPolicy):
    """Waits longer from try to try while the host is away, as one that reboots; for the rest as its DAG says.

    :param retries: how often a task is tried again; a person who clears it gets as many again, and the first waits too
    """

    def __init__(self, retries: int) -> None:
        self.retries = retries

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Decide by what the task failed with."""
        from hyperflow.hooks.kvmhost import KvmHostAway  # paramiko takes half a second, also in whoever parses DAGs

        if not isinstance(exception, KvmHostAway):
            return RetryDecision.default()
        before_clearing = max_tries - self.retries
        place = min(max(try_number - before_clearing, 1), len(AWAY)) - 1
        return RetryDecision.retry(timedelta(seconds=AWAY[place]), reason=f"the host is away: {AWAY[place]:.0f} s")
