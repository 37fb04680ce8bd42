"""The last task of a wave: what became of each VM, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.exceptions import AirflowFailException

from hyperflow.hooks.audit import audit
from hyperflow.manifest.shown import shown
from hyperflow.operators.base import FAILURE_KEY, run_key
from hyperflow.operators.decisions import decisions_of
from hyperflow.operators.kept_plan import let_go_of_plan
from hyperflow.operators.preflight import plan_location
from hyperflow.operators.proven import SUMMARY_KEY
from hyperflow.operators.wave import (
    APPROVE,
    CHECK,
    OPENING_KEY,
    SKIPPED_KEY,
    WaveOperator,
    is_rehearsal,
    load_wave,
    task_of,
)
from hyperflow.operators.wave_record import keep_wave_report

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.manifest.report import Decision
    from hyperflow.manifest.wave_report import VmSummary, WaveReport
    from hyperflow.plans.plan import Plan
    from hyperflow.plans.wave import Wave


class WriteWaveReportOperator(WaveOperator):
    """Writes ``wave-report.json`` and the page that a person reads, and fails when a VM of the wave failed.

    Pushes the XCom ``report``: ``{"path", "outcome"}``, the folder being on the machine that ran the task
    (``[hyperflow] records_folder``, which the components of an Airflow share).
    """

    def execute(self, context: Context) -> dict[str, Any]:
        """Write the report of what the tasks left, and give back the plan that the run kept."""
        let_go_of_plan(plan_location(self.plan_file), run_key(context))
        plan, wave = load_wave(self.plan_file, self.wave)
        report = self.build(context, plan, wave)
        audit("run", "ended", details={"outcome": report.summary.outcome})
        path = keep_wave_report(context["dag"].dag_id, str(context["run_id"]), report)
        for vm in report.vms:
            self.log.info("%s: %s%s", vm.slug, vm.outcome, f": {shown(vm.reason)}" if vm.reason else "")
        counts = report.summary
        self.log.info(
            "wave %s: %s; %d migrated, %d already done, %d failed, %d not started; report: %s",
            *(wave.name, counts.outcome, counts.migrated, counts.already_done, counts.failed, counts.not_started, path),
        )
        place = {"path": str(path), "outcome": counts.outcome}
        context["ti"].xcom_push(key="report", value=place)
        failed = [vm.slug for vm in report.vms if vm.outcome in ("failed", "rolled back")]
        if failed:
            raise AirflowFailException(f"wave {wave.name}: failed: {', '.join(failed)}. Report: {path}")
        if self.states(context).get(CHECK) == "failed":
            raise AirflowFailException(f"wave {wave.name} was not started: {report.reason}. Report: {path}")
        return place

    def states(self, context: Context) -> dict[str, str | None]:
        """State of each task of the wave's run."""
        run = str(context["run_id"])
        ti = cast("Any", context["ti"])
        return dict(ti.get_task_states(dag_id=context["dag"].dag_id, run_ids=[run]).get(run, {}))

    def build(self, context: Context, plan: Plan, wave: Wave) -> WaveReport:
        """Make the report."""
        from hyperflow.manifest.builder import timestamp
        from hyperflow.manifest.wave_report import WaveReport, summarise_wave

        ti = cast("Any", context["ti"])
        dag_run = cast("Any", context["dag_run"])
        run = str(context["run_id"])
        states = self.states(context)
        vms = [self.vm(context, plan, wave, slug, states) for slug in wave.members]
        opening = ti.xcom_pull(task_ids=CHECK, key=OPENING_KEY, map_indexes=-1)
        document = {
            "version": "1.0",
            "plan": plan.name,
            "wave": wave.name,
            "dag_id": context["dag"].dag_id,
            "run_id": run,
            "triggered_by": dag_run.triggering_user_name,
            "overrides": {key: value for key, value in (dag_run.conf or {}).items() if value is not None} or None,
            "started": timestamp(dag_run.start_date or datetime.now(UTC)),
            "ended": timestamp(datetime.now(UTC)),
            "window_end": timestamp(datetime.fromisoformat(opening["end"])) if opening else None,
            "summary": summarise_wave(vms),
            "reason": self.reason(context, wave, states),
            "decisions": list(self.decisions(context, wave)),
            "vms": vms,
        }
        return WaveReport.model_validate({key: value for key, value in document.items() if value is not None})

    def vm(self, context: Context, plan: Plan, wave: Wave, slug: str, states: dict[str, str | None]) -> VmSummary:
        """What became of one VM."""
        from hyperflow.manifest.wave_report import VmSummary

        ti = context["ti"]
        task = task_of(slug)
        state = states.get(task)
        planned = plan.vm(slug)
        summary = ti.xcom_pull(task_ids=task, key=SUMMARY_KEY, map_indexes=-1)
        document: dict[str, Any] = {"outcome": "not started", "dag_id": planned.dag_id, "slug": slug}
        if isinstance(summary, dict) and state in ("success", "failed"):
            document |= summary
        elif state == "failed":
            document["outcome"] = "failed"
        if document["outcome"] == "not started":
            document["reason"] = self.why_not(context, wave, slug, states)
        elif state == "failed":
            failure = ti.xcom_pull(task_ids=task, key=FAILURE_KEY, map_indexes=-1)
            told = failure["message"] if isinstance(failure, dict) else "the task was ended from outside; see its log"
            document["reason"] = told
        return VmSummary.model_validate(document)

    def why_not(self, context: Context, wave: Wave, slug: str, states: dict[str, str | None]) -> str:
        """Why a VM was not started."""
        told = context["ti"].xcom_pull(task_ids=task_of(slug), key=SKIPPED_KEY, map_indexes=-1)
        if isinstance(told, str):
            return told
        missing = [need for need in wave.after.get(slug, ()) if states.get(task_of(need)) != "success"]
        if missing:
            return f"not started: it comes after {', '.join(missing)}, which did not arrive"
        return self.reason(context, wave, states) or f"its task is {states.get(task_of(slug)) or 'not there'}"

    def reason(self, context: Context, wave: Wave, states: dict[str, str | None]) -> str | None:
        """Why the whole wave was not started; None when it was."""
        if states.get(CHECK) != "success":
            ti = context["ti"]
            failure = ti.xcom_pull(task_ids=CHECK, key=FAILURE_KEY, map_indexes=-1)
            skipped = ti.xcom_pull(task_ids=CHECK, key=SKIPPED_KEY, map_indexes=-1)
            return str((failure or {}).get("message") or skipped or "its first task did not let it begin")
        if wave.entry.approval is None or is_rehearsal(context):
            return None
        decided = decisions_of(context["ti"], APPROVE)
        if not decided:
            return "the question whether it may begin was not answered"
        decision = decided[-1]
        if decision["answer"] != "Approve":
            who = decision.get("by")
            return f"rejected by {who}" if who else "nobody approved it in time"
        return None

    def decisions(self, context: Context, wave: Wave) -> Iterator[Decision]:
        """Who decided what, in the order of the wave."""
        from hyperflow.manifest.report import Decision

        asking = [APPROVE] if wave.entry.approval else []
        for task in (*asking, *map(task_of, wave.members)):
            for found in decisions_of(context["ti"], task):
                wanted = ("question", "answer", "by", "at")
                yield Decision.model_validate({key: found[key] for key in wanted if found.get(key)})
