"""The part of a report that every kind of run has: what each task left, and where the report goes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from hyperflow.audit.chain import head
from hyperflow.hooks.audit import audit, audit_file
from hyperflow.hooks.records import keep, run_folder
from hyperflow.manifest.shown import shown
from hyperflow.operators.base import FAILURE_KEY, RESULT_KEY, HostRunOperator, finished_tasks
from hyperflow.operators.results import require_as_asked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context

    from hyperflow.manifest.report import AuditHead, Message, Report, Stage, StagePart

REPORT_NAME = "report.json"
REPORT_KEY = "report"  # XCom: {"host": connection or None, "path", "failures": [{"stage", "code"}], "outcome"}
FAILED, SKIPPED, NOT_REACHED = "failed", "skipped", "upstream_failed"  # task states of Airflow
NOTHING_TO_DO = {  # why a closing task skips itself
    "remove_snapshot": "no snapshot was taken",
    "rollback": "there was nothing to roll back, or the target was well already",
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
        document = host_part(result).to_document() if isinstance(result, dict) else {"duration": duration}
        document["success"] = state == "success"
        if state == FAILED:  # asked for only now: Airflow writes an error into the log for each that is not there
            failure = context["ti"].xcom_pull(**pulled, key=FAILURE_KEY)
            told = failure["message"] if isinstance(failure, dict) else "the task was ended from outside; see its log"
            document["error"] = told
            if isinstance(failure, dict) and failure.get("code"):
                document["code"] = failure["code"]
        return Stage.model_validate(document)

    def finish(self, context: Context, report: Report, what: str) -> dict[str, Any]:
        """Write the report, say what it says, and fail when the run did.

        :param what: the run was to do, for the message
        :return: where the report is, and the outcome
        """
        outcome = report.summary.outcome
        codes = [f"{error.stage} {error.code}" for error in report.errors]
        audit("run", "ended", details={"outcome": outcome, "errors": codes})
        report = report.model_copy(update={"audit": audited(context)})
        place = self.write(context, report)
        where = f"{place['host']}:{place['path']}" if place["host"] else place["path"]
        summary = {**place, "outcome": outcome}
        context["ti"].xcom_push(key=REPORT_KEY, value=summary)
        self.tell(context, report, place)
        for message in report.warnings:
            self.log.warning("%s: %s", message.stage, shown(message.message))
        self.log.info("outcome: %s; report: %s", outcome, where)
        if report.errors or (outcome == FAILED and not self.was_dry_run):
            reasons = "; ".join(f"{error.stage}: {error.message}" for error in report.errors)
            raise AirflowFailException(shown(f"this run failed ({what}): {reasons}. Report: {where}"))
        return summary

    def tell(self, context: Context, report: Report, place: dict[str, Any]) -> None:
        """Tell others of the report; here nobody."""

    def write(self, context: Context, report: Report) -> dict[str, Any]:
        """Write the report on the host, and into the run's records, where Airflow's pages find it.

        :return: ``{"host", "path", "failures"}``; host is None, and path that of the records, when it is there only
        """
        document = report.to_document()
        failures = [{"stage": error.stage, "code": error.code} for error in report.errors if error.code]
        path = run_folder(context["dag"].dag_id, str(context["run_id"])) / REPORT_NAME
        keep(path, json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")
        place = {"host": None, "path": str(path), "failures": failures}
        if not self.migration or self.was_dry_run:
            return place
        options = {"path": self.settings.report_path, "report": document}
        try:
            result = self.host.run_stage("report", options)
            if result.get("succeeded"):
                require_as_asked("report", options, result["observed"])
                place |= {"host": self.settings.host_connection, "path": result["observed"]["path"]}
                return place
            reason: Any = result.get("error")
        except (AirflowException, OSError, ValueError) as fault:
            reason = fault
        self.log.warning("the report could not be written on the host, so it is kept here only: %s", reason)
        return place


def audited(context: Context) -> AuditHead | None:
    """Number and digest of the run's last audit entry, for its report."""
    from hyperflow.manifest.report import AuditHead

    last = head(audit_file(context["dag"].dag_id, str(context["run_id"])))
    return None if last is None else AuditHead(entries=last.entries, sha256=last.sha256)
