"""What a person does after a cutover, and what is written of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hyperflow.operators import aftermath
from hyperflow.operators.aftermath import AftermathOperator, FinalizeOperator, RollBackLaterOperator

DAG = "migrate.autumn.web01"


@pytest.mark.parametrize(
    ("operator", "more", "said"),
    [
        (RollBackLaterOperator, {"target_is_off": True}, {"target_is_off": True}),
        (RollBackLaterOperator, {}, {"target_is_off": False}),
        (FinalizeOperator, {}, {}),
    ],
)
def test_the_audit_tells_what_the_person_has_said(
    monkeypatch: pytest.MonkeyPatch, operator: type[AftermathOperator], more: dict[str, Any], said: dict[str, Any]
) -> None:
    told: list[dict[str, Any]] = []
    record = {"name": "web01", "vm": "5010", "phase": "cut over"}
    monkeypatch.setattr(aftermath, "cutover_of", lambda _: record)
    monkeypatch.setattr(aftermath, "audit_start", lambda context, what, details: told.append(details))
    for name in ("claim", "release"):
        monkeypatch.setattr(aftermath, name, lambda *_: None)
    monkeypatch.setattr(operator, "work", lambda *_: None)
    context: Any = SimpleNamespace()
    operator(task_id="task", vm_dag=DAG, **more).execute(context)
    assert told == [{"dag": DAG, "phase": "cut over", **said}]
