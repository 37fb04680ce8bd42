"""The last task of a wave: what became of each VM, for people and for programs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.exceptions import AirflowFailException

from hyperflow.hooks.audit import audit
from hyperflow.hooks.records import keep_state
from hyperflow.manifest.shown import shown
from hyperflow.operators.base import FAILURE_KEY, run_key
from hyperflow.operators.decisions import decisions_of
from hyperflow.operators.kept_plan import let_go_of_plan
from hyperflow.operators.preflight import plan_location
from hyperflow.operators.proven import SUMMARY_KEY
from hyperflow.operators.wave import (
    APPROVE,
    CHECK,
    GROUP,
    OPENING_KEY,
    RUN_KEY,
    SKIPPED_KEY,
    WaveOperator,
    is_rehearsal,
    task_of,
)
from hyperflow.operators.wave_record import keep_wave_report

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from airflow.sdk import Context

    from hyperflow.manifest.report import Decision
    from hyperflow.manifest.wave_report import VmSummary, WaveReport

REMOVED = "removed"  # Airflow's state of a task that the DAG has no more, whatever it was before
NOTHING_NEW = ("rehearsed", "not started")  # outcomes of a run that leaves the wave where it was
NOT_BEGUN = (None, "upstream_failed")  # states of a task that has left nothing


class WriteWaveReportOperator(WaveOperator):
    """Writes ``wave-report.json`` and the page that a person reads, and fails when a VM of the wave failed.

    It tells of the wave as it ran: of the members that its first task found, and of every VM that has a task in the
    run. The plan is not asked: it may be another one by now, or half-written.

    Pushes the XCom ``report``: ``{"path", "outcome"}``, the folder being on the machine that ran the task
    (``[hyperflow] records_folder``, which the components of an Airflow share).
    """

    def execute(self, context: Context) -> dict[str, Any]:
        """Write the report of what the tasks left, and give back the plan that the run kept."""
        let_go_of_plan(plan_location(self.plan_file), run_key(context))
        report = self.build(context)
        audit("run", "ended", details={"outcome": report.summary.outcome})
        path = keep_wave_report(context["dag"].dag_id, str(context["run_id"]), report)
        for vm in report.vms:
            self.log.info("%s: %s%s", vm.slug, vm.outcome, f": {shown(vm.reason)}" if vm.reason else "")
        counts = report.summary
        self.log.info(
            "wave %s: %s; %d migrated, %d already done, %d failed, %d not started; report: %s",
            *(self.wave, counts.outcome, counts.migrated, counts.already_done, counts.failed, counts.not_started, path),
        )
        if counts.outcome not in NOTHING_NEW:
            keep_state(context["dag"].dag_id, counts.outcome)
        place = {"path": str(path), "outcome": counts.outcome}
        context["ti"].xcom_push(key="report", value=place)
        failed = [vm.slug for vm in report.vms if vm.outcome in ("failed", "rolled back")]
        if failed:
            raise AirflowFailException(f"wave {self.wave}: failed: {', '.join(failed)}. Report: {path}")
        if self.states(context).get(CHECK) == "failed":
            raise AirflowFailException(f"wave {self.wave} was not started: {report.reason}. Report: {path}")
        return place

    def states(self, context: Context) -> dict[str, str | None]:
        """State of each task of the wave's run, also of those that the plan has no more."""
        run = str(context["run_id"])
        ti = cast("Any", context["ti"])
        return dict(ti.get_task_states(dag_id=context["dag"].dag_id, run_ids=[run]).get(run, {}))

    def members(self, context: Context, states: Mapping[str, str | None]) -> list[str]:
        """Slugs of the VMs of the run: as its first task found them, and those that came to the wave since."""
        found = context["ti"].xcom_pull(task_ids=CHECK, map_indexes=-1)
        tasks = [*context["dag"].task_dict, *sorted(states)]  # in the wave's order, as far as it is known
        there = [task.removeprefix(f"{GROUP}.") for task in tasks if task in states and task.startswith(f"{GROUP}.")]
        return list(dict.fromkeys([*(found if isinstance(found, list) else []), *there]))

    def build(self, context: Context) -> WaveReport:
        """Make the report."""
        from hyperflow.manifest.builder import timestamp
        from hyperflow.manifest.wave_report import WaveReport, summarise_wave

        ti = cast("Any", context["ti"])
        dag_run = cast("Any", context["dag_run"])
        dag_id, run = context["dag"].dag_id, str(context["run_id"])
        states = self.states(context)
        members = self.members(context, states)
        vms = [self.vm(context, slug, states) for slug in members]
        opening = ti.xcom_pull(task_ids=CHECK, key=OPENING_KEY, map_indexes=-1)
        document = {
            "version": "1.0",
            "plan": plan_of(dag_id),
            "wave": self.wave,
            "dag_id": dag_id,
            "run_id": run,
            "triggered_by": dag_run.triggering_user_name,
            "overrides": {key: value for key, value in (dag_run.conf or {}).items() if value is not None} or None,
            "started": timestamp(dag_run.start_date or datetime.now(UTC)),
            "ended": timestamp(datetime.now(UTC)),
            "window_end": timestamp(datetime.fromisoformat(opening["end"])) if opening else None,
            "summary": summarise_wave(vms),
            "reason": self.reason(context, states),
            "decisions": list(self.decisions(context, members, states)),
            "vms": vms,
        }
        return WaveReport.model_validate({key: value for key, value in document.items() if value is not None})

    def vm(self, context: Context, slug: str, states: Mapping[str, str | None]) -> VmSummary:
        """What became of one VM."""
        from hyperflow.manifest.wave_report import VmSummary

        ti, task = context["ti"], task_of(slug)
        state = states.get(task)
        summary = ti.xcom_pull(task_ids=task, key=SUMMARY_KEY, map_indexes=-1)
        vm_dag = f"migrate.{plan_of(context['dag'].dag_id)}.{slug}"
        document: dict[str, Any] = {"outcome": "not started", "dag_id": vm_dag, "slug": slug}
        # Airflow calls a task removed when the plan has its VM in this wave no more, however it had ended, and skips
        # those of a run that is cleared as a whole after its time, whatever they had brought about before.
        if isinstance(summary, dict) and (
            state in ("success", "failed", REMOVED) or self.is_of_its_run(ti, task, summary)
        ):
            document |= summary
        failure = self.failure(context, task, state)
        if failure is not None:
            document |= {"reason": failure}
            if document["outcome"] != "rolled back":
                document["outcome"] = "failed"
        elif document["outcome"] == "not started":
            document |= self.not_started(context, vm_dag, slug, states)
        return VmSummary.model_validate(document)

    def is_of_its_run(self, ti: Any, task: str, summary: Mapping[str, Any]) -> bool:
        """Whether a summary tells of the run that the VM's task has started last."""
        started = ti.xcom_pull(task_ids=task, key=RUN_KEY, map_indexes=-1)
        return isinstance(started, str) and summary.get("run_id") == started

    def failure(self, context: Context, task: str, state: str | None) -> str | None:
        """Why a VM's task failed; None where it did not."""
        if state not in ("failed", REMOVED):
            return None
        kept = context["ti"].xcom_pull(task_ids=task, key=FAILURE_KEY, map_indexes=-1)
        if isinstance(kept, dict):
            return str(kept["message"])
        return "the task was ended from outside; see its log" if state == "failed" else None

    def not_started(self, context: Context, vm_dag: str, slug: str, states: Mapping[str, str | None]) -> dict[str, Any]:
        """Why a VM was not started; or that it was, and what waited for its run was ended: ``outcome``, ``reason``."""
        ti, task = context["ti"], task_of(slug)
        state = states.get(task)
        told = ti.xcom_pull(task_ids=task, key=SKIPPED_KEY, map_indexes=-1)
        if isinstance(told, str):
            return {"reason": told}
        run = ti.xcom_pull(task_ids=task, key=RUN_KEY, map_indexes=-1) if state not in NOT_BEGUN else None
        if isinstance(run, str):
            left = {"run_id": run, "reason": f"run {run} of {vm_dag} was not waited for (task: {state}); see that run"}
            return left if state == "success" else {**left, "outcome": "failed"}
        needs = getattr(context["dag"].task_dict.get(task), "needs", ())
        missing = [need for need in needs if states.get(task_of(need)) != "success"]
        if missing:
            return {"reason": f"not started: it comes after {', '.join(missing)}, which did not arrive"}
        if task not in context["dag"].task_dict:
            return {"reason": "not started: the plan has it in this wave no more"}
        return {"reason": self.reason(context, states) or f"its task is {state or 'not there'}"}

    def reason(self, context: Context, states: Mapping[str, str | None]) -> str | None:
        """Why the whole wave was not started; None when it was."""
        if states.get(CHECK) != "success":
            ti = context["ti"]
            failure = ti.xcom_pull(task_ids=CHECK, key=FAILURE_KEY, map_indexes=-1)
            skipped = ti.xcom_pull(task_ids=CHECK, key=SKIPPED_KEY, map_indexes=-1)
            return str((failure or {}).get("message") or skipped or "its first task did not let it begin")
        if APPROVE not in states or is_rehearsal(context):
            return None
        decided = decisions_of(context["ti"], APPROVE)
        if not decided:
            return "the question whether it may begin was not answered"
        decision = decided[-1]
        if decision["answer"] != "Approve":
            who = decision.get("by")
            return f"rejected by {who}" if who else "nobody approved it in time"
        return None

    def decisions(
        self, context: Context, members: Sequence[str], states: Mapping[str, str | None]
    ) -> Iterator[Decision]:
        """Who decided what, in the order of the wave."""
        from hyperflow.manifest.report import Decision

        asking = [APPROVE] if APPROVE in states else []
        for task in (*asking, *map(task_of, members)):
            for found in decisions_of(context["ti"], task):
                wanted = ("question", "answer", "by", "at")
                yield Decision.model_validate({key: found[key] for key in wanted if found.get(key)})


def plan_of(wave_dag: str) -> str:
    """Name of the plan that a wave's DAG is of (``plans.wave.wave_dag_id``)."""
    return wave_dag.split(".")[1]
