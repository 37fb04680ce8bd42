"""``./hyperflow janitor``: what dead runs have left, found and removed through Airflow, which knows the runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hyperflow.cli.__main__ import EXIT_FAILED, EXIT_UNAVAILABLE
from hyperflow.cli.airflow_api import AirflowApi, AirflowUnavailable, Refused
from hyperflow.cli.started import run_to_its_end

DAG_ID = "hyperflow_janitor"
COLUMNS = ("action", "kind", "thing", "why")
STYLES = {"removed": "green", "would remove": "cyan", "failed": "red", "kept": "yellow"}


def janitor(*, dry_run: bool, keep_days: float | None, as_json: bool, endpoint: Path | None) -> int:
    """Run the janitor's DAG and print what it found.

    :param keep_days: how long failed runs keep staged disks; None for Airflow's setting
    :return: 0, 1 when something could not be looked at or removed, 69 without Airflow
    """
    errors = Console(stderr=True, highlight=False)
    asked: dict[str, Any] = {"dry_run": dry_run} | ({} if keep_days is None else {"keep_days": keep_days})
    try:
        api = AirflowApi(endpoint)
        run_id, _ = run_to_its_end(api, DAG_ID, asked)
        found = api.xcom(DAG_ID, run_id, "result", "result")
    except AirflowUnavailable as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_UNAVAILABLE
    except Refused as fault:
        errors.print(str(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_FAILED
    if not isinstance(found, dict):
        told = f"the janitor left no result; see run {run_id} of DAG {DAG_ID}"
        errors.print(told, style="red", markup=False, soft_wrap=True)
        return EXIT_FAILED
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show(found, Console(highlight=False))
    for each in found["faults"]:
        errors.print(each, style="red", markup=False, soft_wrap=True)
    return EXIT_FAILED if found["faults"] else 0


def show(found: dict[str, Any], console: Console) -> None:
    """Print the findings, a table for each run at each place, or that there are none."""
    places: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for finding in found["findings"]:
        places.setdefault((finding["where"], finding["run"]), []).append(finding)
    if not places:
        console.print("nothing is left of dead runs")
    for (where, run), findings in sorted(places.items()):
        console.print(f"{escape(shown(where))}: [bold]{escape(shown(run)) or 'of nobody known'}[/bold]", soft_wrap=True)
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
        for _ in COLUMNS:
            table.add_column(overflow="fold")
        for finding in sorted(findings, key=lambda each: (each["kind"], each["thing"])):
            style = STYLES.get(finding["action"], "dim")
            action, *cells = [escape(shown(str(finding[column]))) for column in COLUMNS]
            table.add_row(f"[{style}]{action}[/{style}]", *cells)
        console.print(table)


def shown(text: str) -> str:
    """Write a name from outside so that a terminal shows it and does not obey it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
