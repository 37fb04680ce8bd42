"""The end of the window that a VM's run belongs to: no cutover begins, or is approved, after it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk.exceptions import AirflowFailException


def time_left(end: datetime | None, what: str) -> timedelta | None:
    """How long the window is open yet; None for a run that belongs to none.

    :param end: ``not_after`` of the run's settings
    :param what: is not done any more when it is closed
    :raises AirflowFailException: it is closed
    """
    if end is None:
        return None
    left = end - datetime.now(UTC)
    if left <= timedelta():
        raise AirflowFailException(
            f"{what}: the run's window closed at {end:%Y-%m-%d %H:%M %Z}, and it was too late for this. Start the VM, "
            "or its wave, again when it is open"
        )
    return left
