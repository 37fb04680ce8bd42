"""The part of a report that every kind of run has: what each task left, and where the report goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.configuration import AIRFLOW_HOME
from airflow.sdk.exceptions import AirflowException

from hyperflow.operators.base import FAILURE_KEY, RESULT_KEY, HostRunOperator, finished_tasks, safe
from hyperflow.operators.results import require_as_asked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context

    from hyperflow.manifest.report import Message, Report, Stage, StagePart

REPORT_KEY = "report"  # XCom: {"host": connection or None, "path", "failures": [{"stage", "code"}], "outcome"}
FAILED, SKIPPED, NOT_REACHED = "failed", "skipped", "upstream_failed"  # task states of Airflow
NOTHING_TO_DO = {  # why a closing task skips itself
    "remove_snapshot": "no snapshot was taken",
    "rollback": "there was nothing to roll back",
    "cleanup": "the run had created nothing",
}
ENDED = "not reached, because the run was ended from outside"


class RunReportOperator(HostRunOperator):
    """A last task: it reads what the others have left, and writes ``report.json`` into the output directory."""

    order: ClassVar[Sequence[str]]  # ids of the tasks that are in the report, as they run

    @property
    def was_dry_run(self) -> bool:
        """Whether the run was a dry one."""
        return bool(self.migration) and self.settings.dry_run

    def disk_ids(self) -> list[str]:
        """The disks that tasks were mapped over, in their order."""
        raise NotImplementedError

    def why_skipped(self, task_id: str) -> str:
        """Tell why a task was skipped: somebody asked for it, or a person set the state of the whole run."""
        reason = self.settings.why_skipped(task_id) if self.migration else None
        return reason or NOTHING_TO_DO.get(task_id, ENDED)

    def ended_between(self, stages: Mapping[str, Stage | StagePart]) -> list[Message]:
        """Give the error of a run that a person ended when none of its tasks was at work, so that none has failed."""
        from hyperflow.manifest.report import Message

        if any(stage.error for stage in stages.values()):
            return []
        first = next((name for name, stage in stages.items() if stage.skipped == ENDED), None)
        return [] if first is None else [Message(stage=first, message=ENDED)]

    def stages(self, context: Context) -> dict[str, Stage | StagePart]:
        """What each task left, in the order they ran; tasks per disk as parts of one stage."""
        from hyperflow.manifest.report_builder import stage_of_parts

        crumbs: dict[str, dict[int, dict[str, Any]]] = {}
        for crumb in finished_tasks(context):
            crumbs.setdefault(crumb["task_id"], {})[crumb["map_index"]] = crumb
        disks = self.disk_ids()
        stages: dict[str, Stage | StagePart] = {}
        for name in self.order:
            instances = crumbs.get(name, {})
            parts = {index: self.part(context, name, crumb) for index, crumb in sorted(instances.items())}
            if -1 in parts:
                stages[name] = parts[-1]
            elif parts:
                stages[name] = stage_of_parts(
                    {disks[index] if index < len(disks) else str(index): part for index, part in parts.items()}
                )
        return stages

    def part(self, context: Context, task_id: str, crumb: dict[str, Any]) -> Stage:
        """What one task left: its result, or why it failed or did not run."""
        from hyperflow.manifest.report import Stage
        from hyperflow.manifest.report_builder import host_part

        state, duration = crumb["state"], crumb["duration"] or 0.0
        if state == NOT_REACHED:
            return Stage(success=False, duration=0.0, skipped="not reached, because an earlier task failed")
        if state == SKIPPED:
            return Stage(success=False, duration=0.0, skipped=self.why_skipped(task_id))
        pulled = {"task_ids": task_id, "map_indexes": crumb["map_index"]}
        result = context["ti"].xcom_pull(**pulled, key=RESULT_KEY)
        failure = context["ti"].xcom_pull(**pulled, key=FAILURE_KEY)
        document = host_part(result).to_document() if isinstance(result, dict) else {"duration": duration}
        document["success"] = state == "success"
        if state == FAILED:
            told = failure["message"] if isinstance(failure, dict) else "the task was ended from outside; see its log"
            document["error"] = told
            if isinstance(failure, dict) and failure.get("code"):
                document["code"] = failure["code"]
        return Stage.model_validate(document)

    def write(self, context: Context, report: Report) -> dict[str, Any]:
        """Write the report on the host, or here when that cannot be."""
        document = report.to_document()
        failures = [{"stage": error.stage, "code": error.code} for error in report.errors if error.code]
        if self.migration and not self.was_dry_run:
            options = {"path": self.settings.report_path, "report": document}
            try:
                result = self.host.run_stage("report", options)
                if result.get("succeeded"):
                    require_as_asked("report", options, result["observed"])
                    place = {"host": self.settings.host_connection, "path": result["observed"]["path"]}
                    return {**place, "failures": failures}
                reason: Any = result.get("error")
            except (AirflowException, OSError, ValueError) as fault:
                reason = fault
            self.log.warning("the report could not be written on the host, so it is kept here: %s", reason)
        folder = Path(AIRFLOW_HOME) / "hyperflow-reports" / safe(context["dag"].dag_id) / safe(context["run_id"])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "report.json"
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return {"host": None, "path": str(path), "failures": failures}
