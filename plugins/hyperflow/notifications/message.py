"""What people are told: made of what the tasks of a run have left, before any notifier is asked."""

from __future__ import annotations

import html
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.configuration import conf

from hyperflow.links.place import base_path, page_of
from hyperflow.manifest.shown import shown
from hyperflow.operators.approval import QUESTION
from hyperflow.operators.base import FAILURE_KEY
from hyperflow.operators.proven import SUMMARY_KEY
from hyperflow.operators.run_report import REPORT_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hyperflow.plans.notices import Event

LISTED = 20  # errors or VMs in a message; the report has all
LONGEST = 500  # characters of one error
EVENTS: dict[str, Event] = {"migrated": "proven", "unproven": "unproven", "failed": "failed", "rolled back": "failed"}


@dataclass(frozen=True)
class Message:
    """What templates know as ``hyperflow``.

    :param event: as the plan's ``on``
    :param plan: the plan's name
    :param name: of the VM (its slug), or as "wave NAME"
    :param outcome: as in the report; for a question, its subject
    :param codes: of the errors, each once; what they mean is in docs/errors.md
    :param link: address of the report, or of the page that asks; only its path where Airflow has no ``[api] base_url``
    :param lines: the rest of what is to be said
    """

    event: Event
    plan: str
    name: str
    outcome: str
    link: str
    codes: tuple[str, ...] = ()
    lines: tuple[str, ...] = field(default=())

    @property
    def subject(self) -> str:
        """One line."""
        codes = f" ({', '.join(self.codes[:3])}{', ...' if len(self.codes) > 3 else ''})" if self.codes else ""
        return f"Hyperflow: {self.name} of plan {self.plan}: {self.outcome}{codes}"

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join((self.subject, *self.lines, self.link))

    @property
    def html(self) -> str:
        """All of it as HTML, in which nothing but the link is obeyed."""
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in (self.subject, *self.lines))
        return f'{lines}<p><a href="{html.escape(self.link)}">{html.escape(self.link)}</a></p>'


def of_vm(context: Mapping[str, Any], plan: str, slug: str) -> Message | None:
    """Tell how a VM's run ended; None of a rehearsal that went well, which moves nothing."""
    ti = context["ti"]
    summary = ti.xcom_pull(task_ids=ti.task_id, key=SUMMARY_KEY, map_indexes=-1)
    outcome = summary["outcome"] if isinstance(summary, dict) else "failed"
    if outcome not in EVENTS:
        return None
    errors = summary.get("errors", []) if isinstance(summary, dict) else [_own_failure(context)]
    told = tuple(_error(error) for error in errors[:LISTED])
    warnings = len(summary.get("warnings", [])) if isinstance(summary, dict) else 0
    return Message(
        event=EVENTS[outcome],
        plan=plan,
        name=slug,
        outcome=outcome,
        codes=_codes(errors),
        link=address(page_of(context["dag"].dag_id, str(context["run_id"]))),
        lines=(*told, *([f"{warnings} warning(s)"] if warnings else [])),
    )


def of_wave(context: Mapping[str, Any], plan: str, name: str) -> Message:
    """Tell what became of a wave."""
    ti = context["ti"]
    place = ti.xcom_pull(task_ids=ti.task_id, key=REPORT_KEY, map_indexes=-1)
    report = _read(place["path"]) if isinstance(place, dict) else {}
    vms = report.get("vms", [])
    failed = [vm for vm in vms if vm["outcome"] in ("failed", "rolled back")]
    counts = Counter(vm["outcome"] for vm in vms)
    lines = [", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())] if counts else []
    lines += [shown(report["reason"])] if report.get("reason") else []
    lines += [_failed(vm) for vm in failed[:LISTED]]
    lines += [f"and {len(failed) - LISTED} more failed"] if len(failed) > LISTED else []
    if not report:
        lines.append(_error(_own_failure(context)))
    return Message(
        event="wave_done",
        plan=plan,
        name=name,
        outcome=place["outcome"] if isinstance(place, dict) else "failed",
        codes=_codes([error for vm in failed for error in vm.get("errors", [])]),
        link=address(page_of(context["dag"].dag_id, str(context["run_id"]), "wave")),
        lines=tuple(lines),
    )


def of_question(context: Mapping[str, Any], plan: str, name: str) -> Message:
    """Tell that somebody is asked, and what."""
    ti, task = context["ti"], context["task"]
    asked = context.get(QUESTION) or {"subject": task.subject, "body": task.body}
    path = "/".join(f"{kind}/{quote(str(one), safe='')}" for kind, one in _parts(ti))
    return Message(
        event="approval",
        plan=plan,
        name=name,
        outcome=shown(str(asked["subject"])),
        link=address(f"{base_path()}/{path}/required_actions"),
        lines=tuple(shown(line) for line in str(asked["body"] or "").splitlines() if line.strip()),
    )


def address(path: str) -> str:
    """Give the whole address of a page of Airflow's."""
    base = conf.get("api", "base_url", fallback="").rstrip("/")
    return base.removesuffix(base_path()) + path


def _parts(ti: Any) -> tuple[tuple[str, str], ...]:
    return ("dags", ti.dag_id), ("runs", ti.run_id), ("tasks", ti.task_id)


def _own_failure(context: Mapping[str, Any]) -> dict[str, Any]:
    """Why the report's own task failed, where it wrote none."""
    ti = context["ti"]
    kept = ti.xcom_pull(task_ids=ti.task_id, key=FAILURE_KEY, map_indexes=-1)
    if isinstance(kept, dict):
        return kept
    return {"stage": ti.task_id, "message": str(context.get("exception") or "it was ended from outside; see its log")}


def _error(error: Mapping[str, Any]) -> str:
    code = f"{error['code']}: " if error.get("code") else ""
    return shown(f"{error['stage']}: {code}{error['message']}")[:LONGEST]


def _failed(vm: Mapping[str, Any]) -> str:
    codes = _codes(vm.get("errors", []))
    why = ", ".join(codes) or vm.get("reason") or "see its run"
    return shown(f"{vm['slug']}: {vm['outcome']}: {why}")[:LONGEST]


def _codes(errors: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(error["code"] for error in errors if error.get("code")))


def _read(path: str) -> dict[str, Any]:
    """A wave's report, as its task has just written it; nothing where that cannot be read."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
