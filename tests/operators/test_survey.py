"""What a survey keeps of a VM that is not there any more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hyperflow.operators.survey import SurveyOperator
from hyperflow.plans.survey import Survey, SurveyedVm, read_survey, survey_path, write_survey

PLAN = """
plan: move
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms: [{name: web01}, {name: web02}, {name: web03}]
waves:
  - {name: two, members: [{tag: gold}]}
"""


def seen(name: str, *tags: str) -> SurveyedVm:
    """A VM as a vCenter knows it."""
    return SurveyedVm(
        name=name, inventory_path=f"/dc/vm/{name}", host=None, power_state="on", tags=list(tags), capacity_bytes=1
    )


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "move.yaml").write_text(PLAN)
    return tmp_path / "move.yaml"


def survey(plan: Path, monkeypatch: pytest.MonkeyPatch, found: Survey) -> Survey:
    """Have a survey find that; what is kept then."""
    task = SurveyOperator(task_id="survey", plan="move", folder=str(plan.parent))
    monkeypatch.setattr(task, "ask", lambda _: found)
    context: Any = {"ti": SimpleNamespace(xcom_push=lambda **_: None)}
    told = task.execute(context)
    kept = read_survey(plan, "move")
    assert Survey.model_validate(told) == kept
    return kept


def test_a_vm_that_is_not_found_any_more_keeps_what_was_known_of_it(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was finalized has another name by now, and the waves of its plan must stay what they are."""
    before = {"web01": seen("web01", "gold"), "web02": seen("web02")}
    write_survey(plan, "move", Survey(vms=before))
    found = Survey(vms={"web02": seen("web02", "gold")}, missing={"web01": "not found", "web03": "not found"})
    kept = survey(plan, monkeypatch, found)
    assert kept.vms == {"web01": before["web01"], "web02": seen("web02", "gold")}
    assert set(kept.missing) == {"web01", "web03"}


def test_a_survey_that_was_damaged_keeps_nobody_from_a_new_one(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survey_path(plan, "move").parent.mkdir()
    survey_path(plan, "move").write_text("damaged")
    assert survey(plan, monkeypatch, Survey(missing={"web01": "not found"})).vms == {}
