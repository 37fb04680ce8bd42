"""What people have decided in a task: kept for the reports, and in the audit."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from hyperflow.hooks.audit import audit_decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

DECISIONS_KEY = "decisions"  # XCom: a list of {"question", "answer", "by", "at"}, in their order


def keep_decision(context: Context, decision: Mapping[str, Any]) -> None:
    """Add a decision to those that the task has got already, as one that was asked again has."""
    ti = cast("Any", context["ti"])
    kept = {key: value for key, value in decision.items() if value}
    ti.xcom_push(key=DECISIONS_KEY, value=[*decisions_of(ti, ti.task_id), kept])
    audit_decision(decision)


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
