"""The links from a task to the pages of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

from hyperflow.links.place import airflow_page_of, page_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class RunLink(BaseOperatorLink):
    """A link to one page of the task's run.

    As the plugin has it, it is made when somebody looks at a task, in the API server, and is there as soon as its page
    is, whatever became of the task. An operator's own would be made by each task for itself, at its end, and cost it an
    XCom.

    :param tasks: gives the operators whose tasks have the link; called in the API server only
    :param found: finds a file of a run by DAG id, run id and name; None when there is none
    """

    name = "Run"
    page: ClassVar[str] = ""
    file: ClassVar[str] = "report.json"  # without it there is nothing on the page

    def __init__(
        self,
        *,
        tasks: Callable[[], Collection[type[BaseOperator]]] | None = None,
        found: Callable[[str, str, str], Any] | None = None,
    ) -> None:
        self._tasks = tasks
        self._found = found

    @property
    def operators(self) -> list[type[BaseOperator]]:  # type: ignore[override] # Airflow only reads it
        """The operators, as Airflow asks a plugin's link for them."""
        return list(self._tasks()) if self._tasks else []

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Give the page's path; empty, which Airflow does not show, while there is nothing on it."""
        if self._found is not None and self._found(ti_key.dag_id, ti_key.run_id, self.file) is None:
            return ""
        return page_of(ti_key.dag_id, ti_key.run_id, self.page)


class ReportLink(RunLink):
    """To the run's report."""

    name = "Report"


class WaveReportLink(RunLink):
    """To the wave's report."""

    name = "Wave report"
    page = "wave"
    file = "wave-report.html"


class ConsoleLogLink(RunLink):
    """To what the guest wrote to its console when it was booted."""

    name = "Console log"
    page = file = "console.log"


class ScreenshotLink(RunLink):
    """To the screen of the booted guest."""

    name = "Boot screenshot"
    page = file = "screenshot.png"


class VmReportLink(BaseOperatorLink):
    """From a wave's task to the report of the run that it started, or found done.

    The task itself makes it, when it begins to wait and at its end: what Airflow else knows of a task does not name the
    VM's DAG.
    """

    name = "Report of the VM"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Give the page's path; empty where no run was started."""
        run = run_of_vm(operator, ti_key)
        return page_of(*run) if run else ""


class VmRunLink(BaseOperatorLink):
    """From a wave's task to that run in Airflow; Airflow's own leads to a run "None" where the task started none."""

    name = "Run of the VM"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Give the page's path; empty where no run was started."""
        run = run_of_vm(operator, ti_key)
        return airflow_page_of(*run) if run else ""


def run_of_vm(operator: Any, ti_key: Any) -> tuple[str, str] | None:
    """DAG and run that a wave's task started or found; None where it did neither.

    :param ti_key: what Airflow gives in a worker: the task instance, with its state
    """
    dag_id = operator.trigger_dag_id
    if operator.trigger_run_id:  # it has started it just now
        return dag_id, operator.trigger_run_id
    if getattr(ti_key, "state", None) == "skipped":  # for each XCom that is not there Airflow logs an error
        return None
    summary = XCom.get_value(ti_key=ti_key, key="summary")  # of operators/proven.py
    run_id = summary.get("run_id") if isinstance(summary, dict) else None
    run_id = run_id or XCom.get_value(ti_key=ti_key, key="trigger_run_id")  # Airflow's; a run that left no summary
    return (dag_id, str(run_id)) if run_id else None
