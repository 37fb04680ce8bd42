"""The janitor's DAG: looks where the plans point, once a day, and takes nobody else's snapshot for ours."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import TimeRestriction
from hyperflow.operators.janitor import foreign
from hyperflow.plans.load import load_plan
from hyperflow.vsphere.facts import SnapshotFacts
from hyperflow.vsphere.snapshot import Ownership, read_ownership, snapshot_name
from hyperflow.workflows.janitor import build_janitor, hosts_of, vcenters_of

PLAN = """
plan: {name}
vcenter: {{connection: {vcenter}}}
profile: kvm-migration
host: {{connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}}
networks: {{"*": default}}
vms:
  - name: web01
  - name: db01
    host: {{connection: kvm02}}
"""
OWNED = Ownership(dag="migrate.a.web01", run="manual__1", created="2026-11-24T01:00:00Z", airflow="a-1")


@pytest.fixture
def plans(tmp_path: Path) -> list[object]:
    for name, vcenter in (("a", "vc-b"), ("b", "vc-a"), ("c", "vc-a")):
        (tmp_path / f"{name}.yaml").write_text(PLAN.format(name=name, vcenter=vcenter))
    return [load_plan(path) for path in sorted(tmp_path.glob("*.yaml"))]


def test_each_host_and_each_vcenter_of_all_plans_is_looked_at_once(plans: list) -> None:
    staging = {"staging_directory": "/srv/staging"}
    assert hosts_of(plans) == [{"connection": "kvm01", **staging}, {"connection": "kvm02", **staging}]
    assert vcenters_of(plans) == ["vc-a", "vc-b"]


@pytest.mark.parametrize("count", [0, 3])
def test_the_dag_can_be_kept_by_airflow_also_without_a_plan(plans: list, count: int) -> None:
    dag = build_janitor(plans[:count])
    document = DagSerialization.to_dict(dag)
    assert DagSerialization.from_dict(document).dag_id == "hyperflow_janitor"
    assert document == DagSerialization.to_dict(build_janitor(plans[:count]))


def test_it_runs_once_a_day_and_not_as_soon_as_it_is_installed(plans: list) -> None:
    timetable = DagSerialization.from_dict(DagSerialization.to_dict(build_janitor(plans))).timetable
    assert timetable.serialize()["run_immediately"] == timedelta(0).total_seconds()
    before = datetime.now(UTC)
    nothing = TimeRestriction(earliest=None, latest=None, catchup=False)
    first = timetable.next_dagrun_info(last_automated_data_interval=None, restriction=nothing)
    second = timetable.next_dagrun_info(last_automated_data_interval=first.data_interval, restriction=nothing)
    assert first.run_after > before
    assert first.run_after.hour == 0
    assert second.run_after - first.run_after == timedelta(days=1)


@pytest.mark.parametrize(
    "description",
    [
        "",
        "before the upgrade",
        "[]",
        "null",
        "7",
        "[" * 100_000,
        json.dumps({"owner": "hyperflow"}),
        json.dumps({"owner": "anna", "dag": "d", "run": "r", "created": "c"}),
        json.dumps({"owner": "hyperflow", "dag": "d", "run": 7, "created": "c"}),
        json.dumps({"owner": "hyperflow", "dag": "d", "run": "r", "created": "c", "airflow": {}}),
    ],
    ids=range(10),
)
def test_our_prefix_without_our_owner_is_somebody_elses(description: str) -> None:
    snapshot = SnapshotFacts("snapshot-1", snapshot_name("manual__1"), description, "2026-11-24T01:00:00Z")
    assert read_ownership(description) is None
    assert "somebody else made it" in str(foreign(snapshot, read_ownership(description)))


def test_our_owner_under_another_name_is_a_copy_or_was_renamed() -> None:
    renamed = SnapshotFacts("snapshot-1", "hyperflow-manual__2", OWNED.description(), "2026-11-24T01:00:00Z")
    assert "manual__1" in str(foreign(renamed, read_ownership(renamed.description)))
    ours = SnapshotFacts("snapshot-1", snapshot_name("manual__1"), OWNED.description(), "2026-11-24T01:00:00Z")
    assert foreign(ours, read_ownership(ours.description)) is None
    assert read_ownership(ours.description) == OWNED
