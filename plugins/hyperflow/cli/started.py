"""Starts a run in Airflow and waits for its end, before the eyes of whoever asked for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from hyperflow.cli.airflow_api import AirflowApi, Refused

OVER = ("success", "failed")
POLL = 1.0  # seconds between two looks at a run
QUEUED = 60.0  # seconds after which a run that has not begun is told of; a scheduler begins one in a few


def run_to_its_end(api: AirflowApi, dag_id: str, conf: dict[str, Any]) -> tuple[str, str]:
    """Start a run, say on standard error where it is, and wait until it is over; say so when nobody begins it.

    :return: its id, and its state
    :raises Refused: its DAG is paused
    """
    refuse_paused(api, dag_id)
    run_id = api.trigger(dag_id, conf)
    _say(started(api, dag_id, run_id))
    begun, told = time.monotonic(), False
    with goes_on(dag_id, run_id):
        while (state := api.run_state(dag_id, run_id)) not in OVER:
            if state == "queued" and not told and time.monotonic() - begun > QUEUED:
                told = True
                _say(
                    f"run {run_id} has waited for {QUEUED:.0f} s to begin: is Airflow's scheduler at work, and no "
                    f"other run of {dag_id}?"
                )
            time.sleep(POLL)
    return run_id, state


def refuse_paused(api: AirflowApi, dag_id: str) -> None:
    """Name a DAG that is paused: a run of it would wait for ever, and whoever waits for the run.

    :raises Refused: it is
    """
    if api.is_paused(dag_id):
        raise Refused(f"{dag_id}: paused in Airflow, so a run would wait without a word: un-pause first")


def started(api: AirflowApi, dag_id: str, run_id: str) -> str:
    """Say of a run that it was started, and where it is."""
    return f"started {dag_id}, run {run_id}: {api.url}/dags/{dag_id}/runs/{run_id}"


@contextlib.contextmanager
def goes_on(dag_id: str, run_id: str) -> Iterator[None]:
    """Say to whom ends this program, and may think to have ended the run, that it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        _say(f"run {run_id} of {dag_id} goes on in Airflow")
        raise


def _say(line: str) -> None:
    Console(stderr=True, highlight=False).print(line, markup=False, soft_wrap=True)
