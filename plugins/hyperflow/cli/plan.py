"""``./hyperflow plan check``: every fault of plan files, with its path."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from hyperflow.cli.__main__ import EXIT_UNAVAILABLE, EXIT_USAGE
from hyperflow.cli.airflow_api import AirflowApi, AirflowUnavailable, Refused
from hyperflow.cli.in_airflow import connection_faults, faults_in_airflow, needs_airflow
from hyperflow.cli.notifiers import Judging
from hyperflow.plans.check import Checked, check_beside, in_no_wave, not_compared


def check(files: list[Path], endpoint: Path | None = None) -> int:
    """Check plan files, also against each other and the others in their folders, and list all their faults.

    What a plan needs of Airflow, pools, users who are asked and connections, is looked at where somebody has named an
    Airflow, or the plan needs pools or users and the lab's can be reached.

    :param endpoint: that of an Airflow which must be asked
    :return: 0, 2 when there was a fault, 69 when ``endpoint`` could not be asked
    """
    console = Console(highlight=False)
    results, beside = check_beside(files, notifiers=Judging())
    print_notes(not_compared(beside))
    asked = True
    named = endpoint is not None or "HYPERFLOW_AIRFLOW" in os.environ
    if named or any(each.draft is not None and needs_airflow(each.draft) for each in results):
        results, asked = against_airflow(results, beside, endpoint)
    for each in results:
        for fault in each.faults:
            console.print(f"[red]{escape(str(each.path))}:[/red] {escape(str(fault))}", soft_wrap=True)
        if each.plan is not None and not each.faults:
            told = f"plan {each.plan.name}, {len(each.plan.vms)} VM(s)"
            console.print(f"[green]{escape(str(each.path))}:[/green] {escape(told)}", soft_wrap=True)
            if note := in_no_wave(each.plan):
                print_notes([f"{each.path}: {note}"])
    if any(each.faults for each in results):
        return EXIT_USAGE
    return 0 if asked or endpoint is None else EXIT_UNAVAILABLE


def against_airflow(results: list[Checked], beside: list[Checked], endpoint: Path | None) -> tuple[list[Checked], bool]:
    """Add what the plans need and Airflow has not; that it could not be asked is told, and no fault of the plans.

    :return: the results, and whether Airflow could be asked
    """
    plans = [
        *(each.draft for each in results if each.draft is not None),
        *(each.plan for each in beside if each.plan is not None),
    ]
    found, notes, asked = [], [], True
    try:
        api = AirflowApi(endpoint)
        for each in results:
            if each.draft is None:
                found.append(each)
                continue
            connections, untold = connection_faults(api, each.draft)
            faults, unseen = faults_in_airflow(api, each.draft, plans)
            found.append(replace(each, faults=(*each.faults, *connections, *faults)))
            notes += [*untold, *unseen]
    except (AirflowUnavailable, Refused) as fault:
        found = [*found, *results[len(found) :]]
        notes = [*notes, f"pools, approvers and connections were not looked at: {fault}"]
        asked = False
    print_notes(dict.fromkeys(notes))
    return found, asked


def print_notes(notes: Iterable[str]) -> None:
    """Tell what is no fault of the plans."""
    for note in notes:
        Console(stderr=True, highlight=False).print(note, style="yellow", markup=False, soft_wrap=True)
