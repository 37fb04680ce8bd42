"""Asks a person, and goes on only when the answer is yes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from hyperflow.operators.base import PREFLIGHT, RESULT_KEY, SHUTDOWN, keep_failure, left_by, tasks_run
from hyperflow.operators.decisions import keep_decision, moment, user_name
from hyperflow.operators.wave import CHECK, QUESTION_KEY, is_rehearsal
from hyperflow.operators.window import time_left

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import BaseNotifier, Context

QUESTION = "question"  # in the context that a notifier gets: {"subject", "body"} of what an operator of ours asks


class AskOperator(ApprovalOperator):
    """A question of a VM's cutover. A no, or nobody's answer where that counts as a no, fails the run.

    Airflow's own operator would skip what follows; much of what follows here runs also after something was skipped.

    :param about: what the answer lets happen, for the log and the report
    """

    template_fields = ()  # Airflow's has subject and body, and a VM may be called {{ conn.vcenter.password }}
    ui_color = "#fdf0d0"

    def __init__(self, *, about: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.about = about

    def execute(self, context: Context) -> Any:
        """Ask, with what a person must know to answer; a dry run asks nobody."""
        migration = context["ti"].xcom_pull(task_ids=PREFLIGHT, key="migration", map_indexes=-1) or {}
        if migration.get("dry_run"):
            raise AirflowSkipException("dry run: nothing is created, copied or changed")
        self.body = question(context, self.about)
        try:
            end = migration.get("not_after")
            left = time_left(datetime.fromisoformat(end) if end else None, self.about)
        except AirflowFailException as fault:
            keep_failure(context, self.task_id, fault)
            raise
        if left is not None and (self.response_timeout is None or left < self.response_timeout):
            self.response_timeout, self.defaults = left, [self.REJECT]
        if self.response_timeout is not None:
            self.body += deadline(self.response_timeout, left, is_yes=self.defaults == [self.APPROVE])
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Keep who decided; go on or fail."""
        try:
            if "error" in event:
                raise AirflowFailException(f"{self.about}: the question was not answered: {event['error']}")
            chosen = (event.get("chosen_options") or [self.REJECT])[0]
            who = user_name(event)
            decision = {"question": self.subject, "answer": chosen, "by": who, "at": moment(event.get("responded_at"))}
            keep_decision(context, decision)
            self.log.info("%s: %s by %s", self.about, chosen, who or "nobody in time")
            if chosen != self.APPROVE:
                raise AirflowFailException(
                    f"{self.about}: rejected by {who}" if who else f"{self.about}: not approved in time"
                )
            return decision
        except AirflowException as fault:
            keep_failure(context, self.task_id, fault)
            raise


def deadline(wait: timedelta, left: timedelta | None, *, is_yes: bool) -> str:
    """Write until when an answer is waited for, and what silence means then, as lines of a question.

    :param left: how long the window is open yet; None without one
    """
    from hyperflow.plans.estimate import minutes_text

    window = f"\n* the window closes in {minutes_text(left.total_seconds() / 60)}" if left is not None else ""
    return f"{window}\n* no answer within {minutes_text(wait.total_seconds() / 60)} is a {'yes' if is_yes else 'no'}"


class ApproveWaveOperator(ApprovalOperator):
    """The question whether a wave may begin. A no skips what follows, which the wave's report tells.

    What a person must know is what the wave's first task has left. A rehearsal asks nobody, and goes on.
    """

    template_fields = ()  # as above: what is asked is text, and nothing in it is obeyed

    def execute(self, context: Context) -> Any:
        """Ask."""
        if is_rehearsal(context):
            self.log.info("a rehearsal: nobody is asked")
            return None
        self.body = context["ti"].xcom_pull(task_ids=CHECK, key=QUESTION_KEY, map_indexes=-1)
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Keep who decided, and go on as Airflow does."""
        if "error" not in event:
            answer = (event.get("chosen_options") or [self.REJECT])[0]
            told = {"answer": answer, "by": user_name(event), "at": moment(event.get("responded_at"))}
            decision = {"question": self.subject, **told}
            # Now: Airflow returns nothing of a no, as it skips what follows instead.
            keep_decision(context, decision)
        return super().execute_complete(context, event)


def tell_who_is_asked(context: Context, notifiers: Sequence[BaseNotifier], subject: str, body: str) -> None:
    """Have notifiers tell of a question that is no HITL operator's own: those call theirs themselves."""
    for notifier in notifiers:
        notifier({**context, QUESTION: {"subject": subject, "body": body}})


def question(context: Context, about: str) -> str:
    """Write what a person must know: the VM, its sizes, the warnings so far, and the boot proof where there is one."""
    from hyperflow.manifest.shown import shown_in_markdown

    ti = context["ti"]
    vm = ti.xcom_pull(task_ids=PREFLIGHT, key="vm", map_indexes=-1) or {}
    size = sum(disk["capacity_bytes"] for disk in vm.get("disks", [])) / 2**30
    lines = [
        f"**{about}**",
        f"* {shown_in_markdown(str(vm.get('inventory_path')))}: {vm.get('power_state')}, {vm.get('cpus')} CPU(s), "
        f"{vm.get('memory_mb')} MB, {len(vm.get('disks', []))} disk(s), {size:.1f} GiB",
    ]
    ran = tasks_run(context)
    off = left_by(ran, context, SHUTDOWN)
    if isinstance(off, dict):
        lines.append(f"* the source is {off['state']} since {off['at']}")
    proof = left_by(ran, context, "boot")
    if isinstance(proof, dict):
        lines.append(
            f"* the converted guest booted in {proof['seconds_to_up']:.0f} s ({proof['accelerator']}), in isolation"
        )
    for task in (PREFLIGHT, "snapshot", "export", "inspect", "fix", "convert", "validate", "boot", "define"):
        for result in _results(ti, task) if task in ran else ():
            lines += [f"* {task}: {shown_in_markdown(str(warning))}" for warning in result.get("warnings", [])]
    return "\n".join(lines)


def _results(ti: Any, task: str) -> list[dict[str, Any]]:
    found = ti.xcom_pull(task_ids=task, key=RESULT_KEY)
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]
