"""A VM's DAG can be found by its tags, and tells by an asset event that its VM has arrived."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from hyperflow.hooks.records import keep_state

from tests import own_airflow

ROOT = Path(__file__).resolve().parents[2]
PLAN = """
plan: autumn
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms:
  - name: web01
  - name: db01
    cutover: {strategy: cold}
waves:
  - name: first
    members: [web01]
"""
# A DAG of the real outlet and the real function, run by Airflow with a database of its own.
RUN = """
import json
from datetime import datetime, timedelta, UTC
from airflow.sdk import DAG, BaseOperator
from hyperflow.manifest.report import BootProof, Hosts, ReportedVm, Run, StagePart
from hyperflow.manifest.report_builder import build_report
from hyperflow.operators.arrival import outlet, tell_arrival

START = datetime(2026, 11, 23, 21, 0, tzinfo=UTC)

class Tell(BaseOperator):
    def __init__(self, *, proof, **kwargs):
        super().__init__(**kwargs)
        self.proof = proof

    def execute(self, context):
        proof = None if self.proof is None else BootProof(proven=self.proof)
        report = build_report(
            run=Run(), vm=ReportedVm(name="web01"), hosts=Hosts(kvm="kvm01"), started=START,
            ended=START + timedelta(seconds=1), manifest=None, boot_proof=proof,
            stages={"boot": StagePart(success=False, duration=1.0, error="no") if self.proof is False
                    else StagePart(success=True, duration=1.0)},
        )
        print("OUTCOME", report.summary.outcome)
        tell_arrival(context, "autumn", self.task_id, report, {"host": "kvm01", "path": "/srv/images/report.json"})

with DAG("told", schedule=None) as dag:
    for name, proof in (("proven", True), ("unproven", None), ("failed", False)):
        Tell(task_id=name, proof=proof, outlets=[outlet("autumn", name)])

if __name__ == "__main__":
    run = dag.test()
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    with create_session() as session:
        found = [[event.asset.name, event.extra] for event in session.query(AssetEvent)]
    print("STATE", run.state)
    print("EVENTS", json.dumps(found))
"""


@pytest.fixture
def bag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DagBag:
    (tmp_path / "autumn.yaml").write_text(PLAN)
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__PLANS_FOLDER", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__RECORDS_FOLDER", str(tmp_path / "records"))
    keep_state("migrate.autumn.db01", "cut over")
    keep_state("wave.autumn.first", "partial")
    bag = DagBag(str(ROOT / "dags"), bundle_path=ROOT / "dags", bundle_name="dags-folder")
    assert bag.import_errors == {}
    return bag


def test_dags_are_tagged_with_plan_host_wave_state_and_cold_cutover(bag: DagBag) -> None:
    common = {"hyperflow", "plan:autumn", "host:kvm01"}
    assert bag.dags["migrate.autumn.web01"].tags == {*common, "wave:first", "state:planned"}
    assert bag.dags["migrate.autumn.db01"].tags == {*common, "cutover:cold", "state:cut-over"}
    assert bag.dags["wave.autumn.first"].tags == {"hyperflow", "plan:autumn", "wave:first", "state:partial"}


def test_a_report_task_has_the_alias_of_its_vms_asset_as_outlet(bag: DagBag) -> None:
    (alias,) = bag.dags["migrate.autumn.web01"].get_task("report").outlets
    assert (type(alias).__name__, alias.name) == ("AssetAlias", "hyperflow/autumn/web01")


def test_only_a_proven_vm_has_an_event(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(RUN)
    output = own_airflow.run(tmp_path / "told.py", own_airflow.make(tmp_path))
    assert "STATE success" in output, output[-3000:]
    (events,) = (line for line in output.splitlines() if line.startswith("EVENTS"))
    assert events.count('"hyperflow/autumn/') == 1 and '["hyperflow/autumn/proven", ' in events
    assert '"report": {"host": "kvm01", "path": "/srv/images/report.json"}' in events
