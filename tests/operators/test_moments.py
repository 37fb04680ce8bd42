"""Disks of one moment: what tells two exports of a VM apart, and what a run that is cleared as a whole has left."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from hyperflow.operators import ownership
from hyperflow.operators.approval import question
from hyperflow.operators.base import RESULT_KEY, left_by, tasks_run
from hyperflow.operators.cleanup import created_anything
from hyperflow.operators.export import ExportDiskOperator
from hyperflow.operators.manifest import WriteManifestOperator
from hyperflow.operators.preflight import without_own_snapshots
from hyperflow.vsphere.facts import SnapshotFacts, VmFacts
from hyperflow.vsphere.snapshot import Ownership

SNAPSHOT = {"entity": "snapshot-12", "snapshot": "hyperflow-run", "warnings": []}
OFF = {"entity": "vm-42", "snapshot": None, "since": "2026-11-27T01:00:00+00:00", "warnings": []}
LATER = {**OFF, "since": "2026-11-27T02:00:00+00:00"}
FIELDS = [each.name for each in dataclasses.fields(VmFacts) if each.default is dataclasses.MISSING]
DAG, RUN = "migrate.autumn.web01", "manual__1"


def exported(*taken: dict[str, Any]) -> list[dict[str, Any]]:
    """What the exports of a VM's disks tell, each of another snapshot or of a VM that is off."""
    made = [ExportDiskOperator(task_id=f"export{number}", disk={}, snapshot=each) for number, each in enumerate(taken)]
    return [{"disk_id": f"disk-{number}", "moment": one.moment()} for number, one in enumerate(made)]


@pytest.mark.parametrize("taken", [SNAPSHOT, OFF])
def test_disks_of_one_moment_go_together(taken: dict[str, Any]) -> None:
    WriteManifestOperator(task_id="manifest", exports=exported(taken, taken), snapshot=taken).require_one_moment()


@pytest.mark.parametrize("taken", [(SNAPSHOT, {**SNAPSHOT, "entity": "snapshot-13"}), (OFF, LATER), (SNAPSHOT, OFF)])
def test_disks_of_two_moments_do_not(taken: tuple[dict[str, Any], dict[str, Any]]) -> None:
    operator = WriteManifestOperator(task_id="manifest", exports=exported(*taken), snapshot=taken[1])
    with pytest.raises(AirflowFailException, match=r"not exported at one moment: disk-\d of .*; disk-\d of "):
        operator.require_one_moment()


def context(tries: tuple[int, int | None], states: dict[str, str]) -> Any:
    """Of the cleanup.

    :param tries: its own, and that of preflight, None where that has left none
    """
    crumbs = [{"task_id": task, "map_index": -1, "state": state} for task, state in states.items()]
    ti = SimpleNamespace(
        try_number=tries[0], xcom_pull=lambda **_: tries[1], get_task_breadcrumbs=lambda **_: iter(crumbs)
    )
    return {"dag": SimpleNamespace(dag_id=DAG), "run_id": RUN, "ti": ti}


@pytest.mark.parametrize(
    ("tries", "states", "created"),
    [
        ((1, 1), {"preflight": "failed", "snapshot": "upstream_failed"}, False),
        ((1, None), {"preflight": "failed", "snapshot": "upstream_failed"}, False),
        ((1, 1), {"preflight": "success", "snapshot": "failed"}, True),
        ((1, 2), {"preflight": "failed", "snapshot": "upstream_failed"}, True),
        ((2, 1), {"preflight": "failed", "snapshot": "upstream_failed"}, True),
    ],
)
def test_what_a_run_made_before_it_was_cleared_is_cleaned_up(
    tries: tuple[int, int | None], states: dict[str, str], created: bool
) -> None:
    assert created_anything(context(tries, states)) is created


def test_a_run_is_not_hindered_by_its_own_snapshot_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "instance", lambda: "here")
    owners = {"ours": ("here", RUN), "elsewhere": ("there", RUN), "another": ("here", "manual__2")}
    descriptions = {
        name: Ownership(dag=DAG, run=run, created="2026-11-27T01:00:00Z", airflow=airflow).description()
        for name, (airflow, run) in owners.items()
    }
    snapshots = tuple(
        SnapshotFacts(f"snapshot-{name}", name, text, "2026-11-27T01:00:00Z")
        for name, text in {**descriptions, "theirs": "before the update"}.items()
    )
    facts = VmFacts(**{**dict.fromkeys(FIELDS), "snapshots": snapshots})  # type: ignore[arg-type]
    left = without_own_snapshots(context((1, 1), {}), facts).snapshots
    assert [one.name for one in left] == ["elsewhere", "another", "theirs"]


@pytest.mark.parametrize(
    ("states", "told"), [({"boot": "success"}, True), ({"boot": "upstream_failed"}, False), ({}, False)]
)
def test_who_is_asked_is_told_of_this_round_of_the_run_only(states: dict[str, str], told: bool) -> None:
    left = {
        ("boot", "return_value"): {"seconds_to_up": 41.0, "accelerator": "kvm"},
        ("shutdown", "return_value"): {"state": "poweredOff", "at": "2026-11-20T22:14:00Z"},
        ("boot", RESULT_KEY): {"warnings": ["it took its time"]},
    }
    asked = context((1, 1), states)
    asked["ti"].xcom_pull = lambda task_ids, key="return_value", **_: left.get((task_ids, key))
    asked["ti"].get_task_breadcrumbs = lambda **_: [
        {"task_id": task, "map_index": -1, "state": state} for task, state in states.items()
    ]
    text = question(asked, "Shut it down?")
    assert ("booted in 41 s" in text) is told
    assert ("it took its time" in text) is told
    assert "poweredOff since" not in text
    assert (left_by(tasks_run(asked), asked, "boot") is not None) is told
