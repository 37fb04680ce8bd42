"""Registers what Airflow must know of Hyperflow; nothing else."""

import sys
from typing import Any

from airflow.plugins_manager import AirflowPlugin
from hyperflow.links.place import PREFIX, base_path
from hyperflow.links.run import ConsoleLogLink, ReportLink, ScreenshotLink, WaveReportLink
from hyperflow.ui.lazy import application


class HyperflowPlugin(AirflowPlugin):
    """vSphere-to-KVM migrations."""

    name = "hyperflow"
    fastapi_apps: list[Any] = [{"app": application, "url_prefix": PREFIX, "name": "Hyperflow"}]  # noqa: RUF012
    operator_extra_links: list[Any] = [ReportLink(), WaveReportLink(), ConsoleLogLink(), ScreenshotLink()]  # noqa: RUF012
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
