"""``make demo``: the lab's guest leaves its vCenter and comes up on KVM, before the eyes of whoever typed it."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from hyperflow.cli.airflow_api import AirflowApi
from hyperflow.cli.migrate import Outcome, follow, name_of, wait_for_dag
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab import lab

DAG_ID = f"migrate.{lab.PLAN}.{lab.VM}"
EXIT_NOT_PROVEN = 1


def demo() -> int:
    """Run the demo.

    ``DEMO_EXIT=1`` in the environment ends the lab afterwards; without it Airflow stays up for a look.

    :return: 0 when the guest was proven, 1 when not
    """
    return lab.plainly(_demo)


def _demo() -> int:
    console = Console(highlight=False)
    begun = time.monotonic()
    try:
        lab.reset()
        lab.up(console.print)
        outcome = run(console)
        return tell(console, outcome, time.monotonic() - begun)
    finally:
        if os.environ.get("DEMO_EXIT") == "1":
            lab.down()


def run(console: Console) -> Outcome:
    """Start the migration and follow it to its end."""
    api = AirflowApi(lab.folders().state / "airflow.json")
    wait_for_dag(api, DAG_ID, console)
    run_id = api.trigger(DAG_ID, {})
    console.print(f"{DAG_ID}: {api.url}/dags/{DAG_ID}/runs/{run_id}", soft_wrap=True)
    return follow(api, DAG_ID, run_id, console)


def tell(console: Console, outcome: Outcome, seconds: float) -> int:
    """Print stages, proof, Airflow's address, and the report's path as the last line."""
    api = AirflowApi(lab.folders().state / "airflow.json")
    proof = api.xcom(outcome.dag_id, outcome.run_id, "boot") or {}
    report = api.xcom(outcome.dag_id, outcome.run_id, "report", "report") or {}
    console.print(stage_table(outcome))
    console.print(f"whole demo: {seconds:.0f} s")
    proven = outcome.state == "success" and proof.get("proven") is True
    if proven:
        console.print(proof_table(proof))
    else:
        console.print(f"[red]not proven[/red]: the run ended as {outcome.state}; the report says why")
    airflow = json.loads((lab.folders().state / "airflow.json").read_text())
    if os.environ.get("DEMO_EXIT") != "1":
        console.print("Airflow stays up until './hyperflow lab down':")
        console.print(f"  {airflow['url']}  user {airflow['user']}  password {airflow['password']}", soft_wrap=True)
    console.print(f"report: {report.get('path', 'none was written')}", soft_wrap=True)
    return 0 if proven else EXIT_NOT_PROVEN


def stage_table(outcome: Outcome) -> Table:
    """Draw the stages with their times."""
    table = Table(title="stages", box=None, title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    for task in sorted(outcome.tasks, key=lambda each: each.start or ""):
        table.add_row(escape(name_of(task)), task.state or "-", f"{task.seconds or 0:.1f}")
    return table


def proof_table(proof: dict[str, Any]) -> Table:
    """Draw what the guest said of itself."""
    table = Table(title="what the guest said after it booted", box=None, title_justify="left", show_header=False)
    table.add_column("fact", style="bold")
    table.add_column("value")
    said = proof["evidence"]
    root = said["root_device"]
    table.add_row("system", f"{said['os']}, {said['kernel']}, host name {said['hostname']}")
    table.add_row("state", f"{said['state']}, failed units: {', '.join(said['failed_units']) or 'none'}")
    table.add_row("root", f"{root['device']} ({root['fstype']}, UUID {root['uuid']})")
    for mount in said["mounts"]:
        table.add_row("mounted", f"{mount['path']} from {mount['device']}")
    for nic in said["nics"]:
        table.add_row("interface", f"{nic['name']} {nic['mac']} ({nic['driver']}): {', '.join(nic['addresses'])}")
    table.add_row("kernel command line", said["kernel_command_line"])
    table.add_row("up after", f"{proof['seconds_to_up']:.0f} s on {proof['accelerator']}")
    table.add_row("console log", str(proof["console_log"]))
    table.add_row("screenshot", str(proof["screenshot"]))
    return table
