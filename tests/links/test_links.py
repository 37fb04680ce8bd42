"""Tasks link to the pages of their run, also when Airflow knows the DAG only as it was serialized."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from airflow.serialization.serialized_objects import DagSerialization
from hyperflow.links.run import ConsoleLogLink, ReportLink, RunLink, ScreenshotLink, WaveReportLink
from hyperflow.workflows.convert_manifest import build_conversion

KEY = SimpleNamespace(dag_id="migrate.p.web01", run_id="manual__2026-11-23T21:00:00+00:00")
RUN = "/hyperflow/runs/migrate.p.web01/manual__2026-11-23T21%3A00%3A00%2B00%3A00/"


@pytest.mark.parametrize(
    ("link", "page"),
    [
        (ReportLink(), ""),
        (WaveReportLink(), "wave"),
        (ConsoleLogLink(), "console.log"),
        (ScreenshotLink(), "screenshot.png"),
    ],
)
def test_a_link_leads_to_a_page_of_the_tasks_own_run(link: RunLink, page: str) -> None:
    assert link.get_link(None, ti_key=KEY) == RUN + page  # type: ignore[arg-type]


def test_a_link_stays_below_the_path_that_airflow_is_served_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://example.org/airflow/")
    assert ReportLink().get_link(None, ti_key=KEY) == f"/airflow{RUN}"  # type: ignore[arg-type]


def test_a_serialized_report_task_has_its_link() -> None:
    dag = DagSerialization.from_dict(DagSerialization.to_dict(build_conversion()))
    assert list(dag.get_task("report").operator_extra_link_dict) == ["Report"]


def test_loading_the_plugin_imports_neither_the_api_server_nor_jinja_templates_of_ours() -> None:
    code = (
        "import sys, airflow.plugins_manager; known = set(sys.modules); import hyperflow_plugin; "
        "new = set(sys.modules) - known; "
        "print([name for name in new if name.startswith(('fastapi', 'hyperflow.ui.app', 'hyperflow.operators', "
        "'airflow.api_fastapi'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
