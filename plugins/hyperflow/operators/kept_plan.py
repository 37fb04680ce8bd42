"""The plan of a run that works, kept beside the plans for as long as it does.

Airflow parses the DAG file again for every task, and goes on with no run of a DAG that is not there. So a plan that is
deleted, or saved half-written, would leave its runs stuck in their middle, their snapshots with them. A copy lies in
``PLANS/.running/DAG/RUN/``, where both who parses and who works can reach it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

FOLDER = ".running"
SURVEY = "survey.json"  # beside the copy of a wave's plan: what its members were chosen by
ENDED = "ended"  # when the run's last task began: Airflow needs the DAG until it has seen that task's end
GRACE = timedelta(minutes=10)
LONGEST = timedelta(days=14)  # of a run that never ended, because somebody deleted it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptPlan:
    """A copy of a plan.

    :param copy: the copy
    :param original: where the plan was
    :param dag: the DAG that its run is of, as a path writes it (``safe``)
    :param survey: the copy of its survey; None where none was kept
    """

    copy: Path
    original: Path
    dag: str
    survey: Path | None = None


def keep_plan(plan: Path, run: str, survey: Path | None = None) -> None:
    """Keep a copy of the plan; where the folder cannot be written, the log says what that means.

    :param run: ``DAG/RUN`` (``run_key``)
    :param survey: the file of its survey, which may not be there; of a wave, whose members it tells
    """
    folder = plan.parent / FOLDER / run
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / plan.name).write_bytes(plan.read_bytes())
        if survey is not None and survey.exists():
            (folder / SURVEY).write_bytes(survey.read_bytes())
        (folder / ENDED).unlink(missing_ok=True)
    except OSError as fault:
        log.warning("%s cannot be kept (%s): do not delete or break it while this run works", plan, fault)


def let_go_of_plan(plan: Path, run: str) -> None:
    """Say that the run is at its end."""
    folder = plan.parent / FOLDER / run
    with contextlib.suppress(OSError):  # nothing was kept
        if (folder / plan.name).exists():
            (folder / ENDED).write_text(datetime.now(UTC).isoformat())


def kept_plans(plans: Path) -> Iterator[KeptPlan]:
    """List the plans of runs that work; copies that nobody needs any more are removed.

    :param plans: the folder of plans
    """
    for folder in (run for dag in _below(plans / FOLDER) for run in _below(dag)):
        copies = [path for path in _below(folder) if path.name not in (ENDED, SURVEY)]
        if any(_is_over(folder, copy) for copy in copies):
            with contextlib.suppress(OSError):  # another parser was faster, or it is not ours to remove
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
                folder.parent.rmdir()
            continue
        survey = folder / SURVEY if (folder / SURVEY).exists() else None
        for copy in copies:
            yield KeptPlan(copy, plans / copy.name, folder.parent.name, survey)


def _below(folder: Path) -> list[Path]:
    """List what is in a folder; nothing where another parser has removed it meanwhile, or it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _is_over(folder: Path, copy: Path) -> bool:
    now = datetime.now(UTC)
    try:
        if now - datetime.fromtimestamp(copy.stat().st_mtime, UTC) > LONGEST:
            return True
        return now - datetime.fromisoformat((folder / ENDED).read_text()) > GRACE
    except (OSError, ValueError):
        return False
