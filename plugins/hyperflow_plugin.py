"""Registers what Airflow must know of Hyperflow; nothing else."""

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
