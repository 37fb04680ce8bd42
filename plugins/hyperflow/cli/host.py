"""``./hyperflow host check``: what a KVM host has and lacks, asked through Airflow, which holds its key."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hyperflow.cli.__main__ import EXIT_FAILED, EXIT_UNAVAILABLE
from hyperflow.cli.airflow_api import AirflowApi, AirflowUnavailable, Refused
from hyperflow.cli.started import run_to_its_end

DAG_ID = "hyperflow_host_check"


def check(connection: str, staging: str, output: str, *, endpoint: Path | None) -> int:
    """Run the host check DAG and print its report.

    :return: 0 when the host can take a migration, 1 when not, 69 without Airflow
    """
    console = Console(highlight=False)
    conf = {"connection": connection, "staging_directory": staging, "output_directory": output}
    try:
        api = AirflowApi(endpoint)
        run_id, state = run_to_its_end(api, DAG_ID, conf)
        failure = api.xcom(DAG_ID, run_id, "check", "failure")
        observed = api.xcom(DAG_ID, run_id, "check")
    except AirflowUnavailable as fault:
        console.print(str(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_UNAVAILABLE
    except Refused as fault:
        console.print(str(fault), style="red", markup=False, soft_wrap=True)
        return EXIT_FAILED
    if state != "success" or not isinstance(observed, dict):
        message = failure["message"] if isinstance(failure, dict) else f"see run {run_id} of DAG {DAG_ID}"
        console.print(f"{connection}: {message}", style="red", markup=False, soft_wrap=True)
        return EXIT_FAILED
    table = Table(title=escape(connection), box=None)
    table.add_column("what")
    table.add_column("found")
    for name, version in observed["tools"].items():
        table.add_row(name, escape(str(version)))
    acceleration = observed["acceleration"]
    table.add_row("acceleration", escape(f"{acceleration['kind']}: {acceleration['reason']}"))
    table.add_row("CPUs, memory", f"{observed['cpus']}, {observed['memory_mb']} MB")
    for directory, space in observed["space"].items():
        table.add_row(escape(directory), f"{space['free_bytes'] / 2**30:.1f} GiB free")
    console.print(table)
    return 0
