"""Registers what Airflow must know of Hyperflow; nothing else."""

import sys
from functools import cache
from typing import Any

from airflow.plugins_manager import AirflowPlugin
from hyperflow.links.place import PREFIX, base_path
from hyperflow.links.run import ConsoleLogLink, ReportLink, ScreenshotLink, WaveReportLink
from hyperflow.listeners import pools, rehearsal
from hyperflow.ui.lazy import application
from hyperflow.ui.record import record_file


@cache
def tasks_of_runs() -> tuple[type[Any], ...]:
    """Operators of all tasks of a VM's migration or a manifest's conversion; imported where links are shown only."""
    from hyperflow.operators.approval import AskOperator
    from hyperflow.operators.base import HostRunOperator
    from hyperflow.workflows import convert_manifest, migration  # noqa: F401 - they import all kinds of it

    kinds: list[type[Any]] = [HostRunOperator]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return (AskOperator, *dict.fromkeys(kinds))


@cache
def tasks_of_waves() -> tuple[type[Any], ...]:
    """Operators of all tasks of a wave."""
    from hyperflow.operators.approval import ApproveWaveOperator
    from hyperflow.operators.wave_check import CheckWaveOperator
    from hyperflow.operators.wave_report import WriteWaveReportOperator
    from hyperflow.operators.wave_vm import MigrateVmOperator

    return CheckWaveOperator, ApproveWaveOperator, MigrateVmOperator, WriteWaveReportOperator


class HyperflowPlugin(AirflowPlugin):
    """vSphere-to-KVM migrations."""

    name = "hyperflow"
    fastapi_apps: list[Any] = [{"app": application, "url_prefix": PREFIX, "name": "Hyperflow"}]  # noqa: RUF012
    listeners: list[Any] = [pools, rehearsal]  # noqa: RUF012
    operator_extra_links: list[Any] = [  # noqa: RUF012
        *(link(tasks=tasks_of_runs, found=record_file) for link in (ReportLink, ConsoleLogLink, ScreenshotLink)),
        WaveReportLink(tasks=tasks_of_waves, found=record_file),
    ]
    external_views: list[Any] = [  # noqa: RUF012 - Airflow declares these per instance
        {
            "name": "Hyperflow",
            "href": f"{base_path()}{PREFIX}/runs/{{DAG_ID}}/{{RUN_ID}}/",
            "destination": "dag_run",
            "url_route": "hyperflow-run",
        }
    ]

    @classmethod
    def on_load(cls, *_: Any, **__: Any) -> None:
        """Let the components that fork tasks and readers of DAGs import Hyperflow once for all of them.

        A task that is itself the first to load plugins, as Celery's are, imports what it needs and no more.
        """
        if "airflow.jobs.job" in sys.modules:  # the scheduler, the DAG processor and the triggerer have a job
            from hyperflow.workflows.ahead import import_ahead

            import_ahead()
