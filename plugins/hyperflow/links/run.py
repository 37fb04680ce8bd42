"""The links; Airflow keeps what they give when the task ends, so they work without the DAG's code."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from airflow.sdk import BaseOperatorLink

from hyperflow.links.place import page_of

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class RunLink(BaseOperatorLink):
    """A link to one page of the task's run."""

    name = "Run"
    page: ClassVar[str] = ""

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Give the page's path."""
        return page_of(ti_key.dag_id, ti_key.run_id, self.page)


class ReportLink(RunLink):
    """To the run's report."""

    name = "Report"


class WaveReportLink(RunLink):
    """To the wave's report."""

    name = "Wave report"
    page = "wave"


class ConsoleLogLink(RunLink):
    """To what the guest wrote to its console when it was booted."""

    name = "Console log"
    page = "console.log"


class ScreenshotLink(RunLink):
    """To the screen of the booted guest."""

    name = "Boot screenshot"
    page = "screenshot.png"
