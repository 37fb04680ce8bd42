"""Registers what Airflow must know of Hyperflow; nothing else."""

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin
from hyperflow.links.place import PREFIX, base_path
from hyperflow.links.run import ConsoleLogLink, ReportLink, ScreenshotLink, WaveReportLink
from hyperflow.ui.lazy import application


class HyperflowPlugin(AirflowPlugin):
    """vSphere-to-KVM migrations."""

    name = "hyperflow"
    fastapi_apps: ClassVar[list[Any]] = [{"app": application, "url_prefix": PREFIX, "name": "Hyperflow"}]
    operator_extra_links: ClassVar[list[Any]] = [ReportLink(), WaveReportLink(), ConsoleLogLink(), ScreenshotLink()]
    external_views: ClassVar[list[Any]] = [
        {
            "name": "Hyperflow",
            "href": f"{base_path()}{PREFIX}/runs/{{DAG_ID}}/{{RUN_ID}}/",
            "destination": "dag_run",
            "url_route": "hyperflow-run",
        }
    ]
