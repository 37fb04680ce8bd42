"""What people have decided in a task: kept for the reports, and in the audit."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from hyperflow.hooks.audit import audit_decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

# XCom: a list of {"question", "answer", "by", "at"}, in their order. The task's store, which outlives a try, has it as
# well, with the number of the task's last try: a person's clear raises that, who then wants to be asked anew.
DECISIONS_KEY = "decisions"


def keep_decision(context: Context, decision: Mapping[str, Any]) -> None:
    """Add a decision to those that the task has got already, as one that was asked again has."""
    ti, store = cast("Any", context["ti"]), task_store(context)
    decided = [*recall_decisions(context), {key: value for key, value in decision.items() if value}]
    if store is not None:
        store.set(DECISIONS_KEY, {"max_tries": ti.max_tries, "decisions": decided})
    ti.xcom_push(key=DECISIONS_KEY, value=decided)
    audit_decision(decision)


def recall_decisions(context: Context) -> list[dict[str, Any]]:
    """List what was decided in this task, also in a try before this one, whose XComs Airflow has removed: they are put
    back for whoever else asks. What was decided before a person cleared the task does not count.
    """
    ti, store = cast("Any", context["ti"]), task_store(context)
    found = decisions_of(ti, ti.task_id)
    kept = store.get(DECISIONS_KEY) if store is not None else None
    if found or not isinstance(kept, dict) or kept.get("max_tries") != ti.max_tries:
        return found
    ti.xcom_push(key=DECISIONS_KEY, value=kept["decisions"])
    return list(kept["decisions"])


def decisions_of(ti: Any, task_id: str) -> list[dict[str, Any]]:
    """List what was decided in a task of this run."""
    found = ti.xcom_pull(task_ids=task_id, key=DECISIONS_KEY, map_indexes=-1)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def user_name(answer: dict[str, Any]) -> str | None:
    """Who answered a question; None when nobody did in time."""
    user = answer.get("responded_by_user")
    if isinstance(user, dict):
        return str(user.get("name") or user.get("id"))
    return str(getattr(user, "name", user)) if user else None


def moment(value: Any) -> str | None:
    """Write when an answer was given as the reports write times."""
    from hyperflow.manifest.builder import timestamp

    if not value:
        return None
    return timestamp(value if isinstance(value, datetime) else datetime.fromisoformat(str(value)))


def task_store(context: Context) -> Any:
    """What Airflow keeps of a task over its tries; None outside of Airflow."""
    return cast("Any", context).get("task_state_store")
