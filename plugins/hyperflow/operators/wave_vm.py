"""The task of a wave that moves a VM: it starts the VM's own DAG and waits for its end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    DagRunTriggerException,
    TaskAwaitingInput,
)
from airflow.sdk.execution_time.hitl import upsert_hitl_detail

from hyperflow.links.run import VmReportLink, VmRunLink
from hyperflow.manifest.shown import shown
from hyperflow.operators.approval import tell_who_is_asked
from hyperflow.operators.cutover_record import MOVED, ROLLED_BACK, cutover_of
from hyperflow.operators.decisions import decisions_of, keep_decision, moment, recall_decisions, task_store, user_name
from hyperflow.operators.proven import SUMMARY_KEY, proven_run, why_other
from hyperflow.operators.wave import (
    APPROVE,
    CHECK,
    EXPECTED_KEY,
    GROUP,
    OPENING_KEY,
    REPORT,
    RUN_KEY,
    asked_again,
    is_rehearsal,
    task_of,
    telling,
)
from hyperflow.triggers.vm_run import ACTIVE, VmRunTrigger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import BaseNotifier, Context

GO_ON, STOP = "Go on", "Stop"
OVER = ["success", "failed"]  # states of a run that is over
PASSED_ON = ("dry_run", "skip_boot")  # what a wave's run asks of the runs of its VMs
POLL = 5  # seconds between looks at a VM's run


class MigrateVmOperator(TriggerDagRunOperator):
    """Starts the DAG of one VM of a wave, and waits for its end without a worker.

    Not started, and skipped with the reason, is a VM whose wave was not approved, which came to the wave after that had
    begun, whose predecessor did not arrive, which cannot begin within the window, or after a failure where the plan
    says so. One that is migrated and proven already is left as it is. A try after a crash, and a person's clearing,
    goes on with a run that still works.

    In a rehearsal every VM is started that is not proven already: it only looks, so no window, no order that was not
    kept and no other VM's failure is in its way.

    Returns and pushes as XCom ``summary`` what the VM's run tells (``VmSummary``).

    :param plan_file: path of the plan
    :param wave: the wave's name
    :param slug: the VM
    :param vm_dag: the VM's DAG
    :param needs: slugs of VMs that must have arrived
    :param apart: DAGs of the VMs that it may not be at work beside: all those that it takes turns with
    :param approved_by_people: whether the wave has a task that asks
    :param on_failure: go-on, stop or ask
    :param approvers: who is asked, ``{"id", "name"}`` each
    :param answer_minutes: how long an answer is waited for; the wave then stops
    :param strategy: how the plan wants the VM to be cut over
    :param subject: what an earlier proof must be of, to count (``plans.subject``)
    :param expected_minutes: how long the migration takes as the plan says; None where it does not, and what the wave's
        first task has made of sizes and measured rates counts
    :param start_over: whether a run that found the VM drifted is followed by another one, once
    :param notifiers: that tell of a question
    """

    template_fields = ()
    ui_color = "#e8f1fa"
    operator_extra_links = (VmReportLink(), VmRunLink())  # type: ignore[assignment] # a list at its base, for no reason

    def __init__(
        self,
        *,
        plan_file: str,
        wave: str,
        slug: str,
        vm_dag: str,
        needs: list[str],
        apart: list[str],
        approved_by_people: bool,
        on_failure: str,
        approvers: list[dict[str, str]],
        answer_minutes: int,
        strategy: str,
        subject: dict[str, str],
        expected_minutes: int | None,
        start_over: bool,
        notifiers: Sequence[BaseNotifier] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            trigger_dag_id=vm_dag,
            wait_for_completion=True,
            deferrable=True,
            poke_interval=POLL,
            logical_date=None,
            **kwargs,
        )
        self.plan_file = plan_file
        self.wave = wave
        self.slug = slug
        self.needs = needs
        self.apart = apart
        self.approved_by_people = approved_by_people
        self.on_failure = on_failure
        self.approvers = approvers
        self.answer_minutes = answer_minutes
        self.strategy = strategy
        self.subject = subject
        self.expected_minutes = expected_minutes
        self.start_over = start_over
        self.notifiers = notifiers

    def execute(self, context: Context) -> Any:
        """Start the VM's run, go on with one that works, or say why not."""
        return telling(context, self.begin, context)

    def begin(self, context: Context) -> Any:
        """Do so; a run of an earlier try comes first: going on with it starts nothing, and what is proven by then is
        proven by that run, and told as its.
        """
        recall_decisions(context)
        if self.run_of_an_earlier_try(context) is not None:
            return self.start(context)
        states = self.states(context)
        self.refuse_unapproved(context, states)
        self.refuse_newcomer(context)
        if (proven := self.proven_already(context)) is not None:
            return proven
        if not is_rehearsal(context):
            self.refuse_without(states)
            self.refuse_start(context, states)
        return self.start(context)

    def states(self, context: Context) -> dict[str, str | None]:
        """State of each task of the wave's run."""
        ti = cast("Any", context["ti"])
        run = str(context["run_id"])
        return dict(ti.get_task_states(dag_id=context["dag"].dag_id, run_ids=[run]).get(run, {}))

    def refuse_unapproved(self, context: Context, states: dict[str, str | None]) -> None:
        """Skip where the wave did not begin; tasks that wait for others' ends run whatever these were."""
        if states.get(CHECK) != "success":
            raise AirflowSkipException("the wave was not started; its first task says why")
        if self.approved_by_people and not is_rehearsal(context):
            answer = context["ti"].xcom_pull(task_ids=APPROVE, map_indexes=-1)
            if not isinstance(answer, dict) or answer.get("chosen_options") != ["Approve"]:
                raise AirflowSkipException("the wave was not approved")

    def refuse_newcomer(self, context: Context) -> None:
        """Skip where the plan has put the VM into the wave after this had begun: nobody was asked about it."""
        members = context["ti"].xcom_pull(task_ids=CHECK, map_indexes=-1)
        if isinstance(members, list) and self.slug not in members:
            raise AirflowSkipException("not started: it came to the wave after that had begun; start the wave again")

    def refuse_without(self, states: dict[str, str | None]) -> None:
        """Skip when a VM that must be there before has not arrived."""
        missing = [slug for slug in self.needs if states.get(task_of(slug)) != "success"]
        if missing:
            raise AirflowSkipException(f"not started: it comes after {', '.join(missing)}, which did not arrive")

    def refuse_start(self, context: Context, states: dict[str, str | None]) -> None:
        """Skip, or ask, where a run of the VM may not begin now.

        :raises TaskAwaitingInput: a person is asked
        """
        self.refuse_beside_another(context)
        self.refuse_outside_window(context)
        self.heed_failures(context, states)

    def refuse_beside_another(self, context: Context) -> None:
        """Skip when a VM that it takes turns with is at work all the same: its task in the wave was ended by a person,
        or somebody has started its DAG.
        """
        ti = cast("Any", context["ti"])
        for dag_id in self.apart:
            if ti.get_dr_count(dag_id=dag_id, states=ACTIVE):
                raise AirflowSkipException(
                    f"not started: a run of {dag_id} is at work, and the two may not be at work together. Clear this "
                    "task when that run is over"
                )

    def proven_already(self, context: Context) -> dict[str, Any] | None:
        """What an earlier run tells, when it proved the VM and nobody asks for it again, or when it cut the VM over:
        its target is the machine now, and a run of it would be refused.
        """
        found = self.cut_over(context)
        if found is None and not asked_again(context):
            found, why = proven_run(self.trigger_dag_id, self.strategy, self.subject)
            if why:
                self.log.warning("%s counts as not migrated: %s", self.slug, why)
        if found is None:
            return None
        self.log.info("%s was migrated by run %s already: it is left as it is", self.slug, found["run_id"])
        summary = {**found["summary"], "outcome": "already done"}
        context["ti"].xcom_push(key=SUMMARY_KEY, value=summary)
        return summary

    def cut_over(self, context: Context) -> dict[str, Any] | None:
        """The run that cut the VM over, ``{"run_id", "summary"}``; None where there is none, or it was taken back."""
        record = cutover_of(self.trigger_dag_id)
        if record is None or record["phase"] not in MOVED or why_other(record, self.subject):
            return None
        told = context["ti"].xcom_pull(
            dag_id=self.trigger_dag_id, run_id=record["run"], task_ids=REPORT, key=SUMMARY_KEY, map_indexes=-1
        )
        known = {"dag_id": self.trigger_dag_id, "run_id": record["run"], "slug": self.slug, "name": record["name"]}
        return {"run_id": record["run"], "summary": told if isinstance(told, dict) else known}

    def refuse_outside_window(self, context: Context) -> None:
        """Skip when it is too late to start, or the VM would not be done before the window closes."""
        opening = self.opening(context)
        if opening is None:
            return
        now = datetime.now(UTC)
        end, latest = datetime.fromisoformat(opening["end"]), datetime.fromisoformat(opening["latest_start"])
        if now >= latest:
            raise AirflowSkipException(f"not started: its latest start was {latest:%Y-%m-%d %H:%M} UTC")
        minutes, told_by = self.expected_minutes, ""
        if minutes is None:
            measured = context["ti"].xcom_pull(task_ids=CHECK, key=EXPECTED_KEY, map_indexes=-1) or {}
            minutes, told_by = measured.get(self.slug), " by its size, which expected_minutes in the plan may correct"
        if minutes and now + timedelta(minutes=minutes) > end:
            raise AirflowSkipException(
                f"not started: it is expected to take {minutes} minutes{told_by}, and the window closes at "
                f"{end:%Y-%m-%d %H:%M} UTC"
            )

    def opening(self, context: Context) -> dict[str, str] | None:
        """The opening of the window that the wave's run belongs to; None where it has no window."""
        return context["ti"].xcom_pull(task_ids=CHECK, key=OPENING_KEY, map_indexes=-1) or None

    def heed_failures(self, context: Context, states: dict[str, str | None]) -> None:
        """After a failure of another VM: stop, ask, or go on.

        :raises TaskAwaitingInput: a person is asked
        """
        failed = sorted(
            task.removeprefix(f"{GROUP}.")
            for task, state in states.items()
            if state == "failed" and task.startswith(f"{GROUP}.") and task != self.task_id
        )
        if not failed or self.on_failure == "go-on":
            return
        if self.on_failure == "stop":
            raise AirflowSkipException(f"not started: {', '.join(failed)} failed, and the wave stops at a failure")
        decided = [
            decision
            for task in states
            if task.startswith(f"{GROUP}.")
            for decision in decisions_of(context["ti"], task)
        ]
        decision = decision_on(failed, decided)
        if decision == STOP:
            raise AirflowSkipException(f"not started: {', '.join(failed)} failed, and it was decided to stop")
        if decision == GO_ON:
            return
        self.ask(context, failed)

    def ask(self, context: Context, failed: list[str]) -> None:
        """Ask whether the wave goes on; nobody's answer is a stop."""
        names = ", ".join(failed)
        # Airflow shows the first text also when the task asks again, because another VM has failed meanwhile.
        subject = f"Wave {self.wave}: VMs have failed. Start {self.slug} and those after it?"
        body = (
            f"{names} failed, and others may have since: the grid of this run shows them, their runs' reports say why. "
            f"**{GO_ON}** starts {self.slug} and asks no more about those that had failed when it asked; "
            f"**{STOP}** starts no further VM of this wave. No answer within {self.answer_minutes} minutes is a stop."
        )
        upsert_hitl_detail(
            ti_id=context["ti"].id,
            options=[GO_ON, STOP],
            subject=subject,
            body=body,
            defaults=[STOP],
            multiple=False,
            params={},
            assigned_users=cast("Any", self.approvers) or None,
        )
        self.log.info("%s failed: a person is asked whether the wave goes on (Required Actions)", names)
        tell_who_is_asked(context, self.notifiers, subject, body)
        raise TaskAwaitingInput(
            method_name="decided", kwargs={"failed": failed}, timeout=timedelta(minutes=self.answer_minutes)
        )

    def decided(self, context: Context, event: dict[str, Any], failed: list[str]) -> Any:
        """Go on, or not, as a person has decided."""
        return telling(context, self.heed_answer, context, event, failed)

    def heed_answer(self, context: Context, event: dict[str, Any], failed: list[str]) -> Any:
        """Keep the answer, and do what it says."""
        if "error" in event:
            raise AirflowFailException(
                f"the question whether wave {self.wave} goes on was not answered: {event['error']}"
            )
        answer = (event.get("chosen_options") or [STOP])[0]
        decision = {
            "question": f"{', '.join(failed)} failed. Start {self.slug} and those after it?",
            "answer": answer,
            "of": failed,
            "by": user_name(event),
            "at": moment(event.get("responded_at")),
        }
        keep_decision(context, decision)
        self.log.info("decided by %s: %s", decision["by"] or "nobody in time", answer)
        if self.run_of_an_earlier_try(context) is not None:  # it drifted; what was decided starts it over, or not
            return self.start(context)
        if answer != GO_ON:
            raise AirflowSkipException(f"not started: {', '.join(failed)} failed, and it was decided to stop")
        self.refuse_start(context, self.states(context))  # another one may have failed, or was decided on, meanwhile
        return self.start(context)

    def start(self, context: Context) -> Any:
        """Trigger the VM's run and defer; the run's name is kept before, so that no crash starts a second one."""
        earlier = self.run_of_an_earlier_try(context)
        if earlier is not None:
            self.log.info("going on with run %s of %s", earlier, self.trigger_dag_id)
            self.wait_for(context, earlier)
        if context["ti"].get_dag(self.trigger_dag_id).is_paused:
            raise AirflowFailException(
                f"{self.slug}: {self.trigger_dag_id} is paused in Airflow, so a run would wait without a word: "
                "un-pause it, and clear this task"
            )
        self.trigger_run_id = self.next_run(context)
        asked = context["dag_run"].conf or {}
        self.conf = {name: True for name in PASSED_ON if asked.get(name)}
        if opening := self.opening(context):
            self.conf["not_after"] = opening["end"]
        try:
            super().execute(context)
        except DagRunTriggerException as wanted:
            start_run(self.trigger_dag_id, self.trigger_run_id, wanted.conf)
        self.wait_for(context, self.trigger_run_id)

    def next_run(self, context: Context) -> str:
        """Name the run that is started now, and keep the name first.

        A name that was kept and is no run yet is used again: an earlier try, whose scheduler died, may still be about
        to start it, and there must be one.
        """
        store, ti = task_store(context), cast("Any", context["ti"])
        kept = store.get("run")
        if kept and not ti.get_dr_count(dag_id=self.trigger_dag_id, run_ids=[kept]):
            return str(kept)
        count = int(store.get("started") or 0) + 1
        run_id = f"{context['run_id']}.{self.wave}.{count}"
        store.set("started", str(count))
        store.set("run", run_id)
        return run_id

    def run_of_an_earlier_try(self, context: Context) -> str | None:
        """The run that this task started before, unless its failure was told, or its success taken back since: who
        clears the task then wants another.

        One that failed while nobody looked, because who waited for it was killed, is told first, and starts no second.
        One that drifted, and that the task has begun to start over, is done with.
        """
        store = task_store(context)
        run_id = store.get("run")
        if not run_id:
            return None
        ti = cast("Any", context["ti"])
        states = list(ACTIVE)
        if not was_rolled_back(self.trigger_dag_id, str(run_id)):
            states.append("success")
        if store.get("started_over") != run_id and not was_told(context, str(run_id)):
            states.append("failed")
        return run_id if ti.get_dr_count(dag_id=self.trigger_dag_id, run_ids=[run_id], states=states) else None

    def wait_for(self, context: Context, run_id: str) -> None:
        """Defer until a run is over, or is there no more."""
        context["ti"].xcom_push(key=RUN_KEY, value=run_id)
        self.defer(
            trigger=VmRunTrigger(
                dag_id=self.trigger_dag_id, states=cast("Any", OVER), run_ids=[run_id], poll_interval=POLL
            ),
            method_name="execute_complete",
        )

    def execute_complete(self, context: Context, event: tuple[str, dict[str, Any]]) -> Any:
        """Take what the VM's run left.

        :raises AirflowFailException: it failed; with its own reasons
        """
        return telling(context, self.take, context, event)

    def take(self, context: Context, event: tuple[str, dict[str, Any]]) -> Any:
        """Do so."""
        run_id = event[1]["run_ids"][0]
        state = event[1].get(run_id)
        if state is None:
            note_told(context, run_id)
            raise AirflowFailException(
                f"{self.slug}: run {run_id} of {self.trigger_dag_id} is not there any more: somebody has deleted it in "
                "Airflow. Look at the VM for what it has left, and clear this task to migrate it anew"
            )
        ti = context["ti"]
        summary = ti.xcom_pull(
            dag_id=self.trigger_dag_id, run_id=run_id, task_ids=REPORT, key=SUMMARY_KEY, map_indexes=-1
        )
        if isinstance(summary, dict):
            ti.xcom_push(key=SUMMARY_KEY, value=summary)
        if state != "success" and self.starts_over(context, summary):
            self.log.warning("%s: run %s found it drifted: starting over, once", self.slug, run_id)
            task_store(context).set("started_over", run_id)
            return self.start(context)
        if state != "success":
            errors = [f"{one['stage']}: {one['message']}" for one in (summary or {}).get("errors", [])]
            reason = shown("; ".join(errors)) or "it left no report; see its tasks"
            message = f"{self.slug}: run {run_id} of {self.trigger_dag_id} failed: {reason}"
            note_told(context, run_id)
            raise AirflowFailException(message)
        if not isinstance(summary, dict):
            raise AirflowFailException(f"{self.slug}: run {run_id} of {self.trigger_dag_id} ended and left no summary")
        self.log.info("%s: %s", self.slug, summary["outcome"])
        return summary

    def starts_over(self, context: Context, summary: Any) -> bool:
        """Whether a VM that drifted is to be migrated anew: once, where the plan says so and it may begin now.

        :raises TaskAwaitingInput: a person is asked
        """
        if not self.start_over or not isinstance(summary, dict) or not summary.get("drifted"):
            return False
        if task_store(context).get("started_over"):
            return False
        try:
            self.refuse_start(context, self.states(context))
        except AirflowSkipException as reason:
            self.log.warning("%s drifted, and is not started over: %s", self.slug, reason)
            return False
        return True


def start_run(dag_id: str, run_id: str, conf: Any) -> None:
    """Start a run; one that is there already, as the try before may have started it at its last, is the one wanted.

    Airflow starts one itself for a :class:`DagRunTriggerException`, and then waits with a trigger of its own.
    """
    from airflow.sdk.execution_time.comms import TriggerDagRun
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    SUPERVISOR_COMMS.send(TriggerDagRun(dag_id=dag_id, run_id=run_id, logical_date=None, conf=conf))


def decision_on(failed: Sequence[str], decided: Sequence[dict[str, Any]]) -> str | None:
    """What people have decided about VMs that failed; None when somebody is to be asked.

    :param decided: ``{"answer", "of": [slug]}`` each; one stop is a stop, and several answers may cover all that failed
    """
    if any(one["answer"] == STOP for one in decided):
        return STOP
    covered = {slug for one in decided for slug in one["of"]}
    return GO_ON if set(failed) <= covered else None


def was_rolled_back(dag_id: str, run_id: str) -> bool:
    """Whether the cutover of a run was taken back."""
    record = cutover_of(dag_id)
    return record is not None and (record["run"], record["phase"]) == (run_id, ROLLED_BACK)


def note_told(context: Context, run_id: str) -> None:
    """Note that the task is about to fail with what has become of a run.

    With the number of the task's last try, which a person's clear raises, and a try after a crash does not.
    """
    task_store(context).set("told", {"run": run_id, "max_tries": cast("Any", context["ti"]).max_tries})


def was_told(context: Context, run_id: str) -> bool:
    """Whether somebody has cleared the task since it was to fail with what had become of a run."""
    told = task_store(context).get("told")
    if not isinstance(told, dict):  # of an older version
        return bool(told == run_id)
    return told.get("run") == run_id and told.get("max_tries") != cast("Any", context["ti"]).max_tries
