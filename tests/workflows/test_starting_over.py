"""A wave and its VMs that drift: run by Airflow with a database of its own, where the VMs' runs are played."""

from __future__ import annotations

import json
from pathlib import Path

from tests import own_airflow

ROOT = Path(__file__).resolve().parents[2]
PLAN = """
plan: autumn
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms:
  - {name: over, drift: start-over}
  - {name: twice, drift: start-over}
  - {name: stop}
waves:
  - {name: first, members: ["*"]}
"""
# The wave is the real one. Of each VM there is a DAG of its name, whose runs end as they are told here, in their order.
RUN = """
import json, sys, threading, time
from pathlib import Path
from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from hyperflow.plans.load import load_plan
from hyperflow.workflows.wave import build_wave

(plan_file,) = Path(__file__).parent.glob("plans/*.yaml")
PLAN = load_plan(plan_file)
DRIFTED = {"outcome": "failed", "drifted": True, "errors": [{"stage": "snapshot", "message": "it drifted"}]}
ENDS = {"over": [DRIFTED, {"outcome": "migrated"}], "twice": [DRIFTED, DRIFTED], "stop": [DRIFTED]}
OVER = threading.Event()

def play():
    while not OVER.wait(0.2):
        with create_session() as session:
            for run in session.query(DagRun).filter(DagRun.dag_id.like("migrate.%"), DagRun.state == "queued"):
                slug = run.dag_id.rpartition(".")[2]
                told = {"dag_id": run.dag_id, "run_id": run.run_id, "slug": slug, **ENDS[slug].pop(0)}
                XComModel.set(key="summary", value=told, task_id="report", dag_id=run.dag_id, run_id=run.run_id,
                              serialize=False, session=session)
                run.state = DagRunState.FAILED if told["outcome"] == "failed" else DagRunState.SUCCESS

wave = build_wave(PLAN, PLAN.waves[0])
for vm in PLAN.vms:
    with DAG(vm.dag_id, schedule=None) as dag:
        EmptyOperator(task_id="report")
    globals()[vm.dag_id] = dag

if __name__ == "__main__":
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(__file__, bundle_path=Path(__file__).parent, bundle_name="dags-folder")
    sync_bag_to_db(bag, "dags-folder", None)
    threading.Thread(target=play, daemon=True).start()
    run = wave.test()
    OVER.set()
    with create_session() as session:
        counts = {}
        for found in session.query(DagRun).filter(DagRun.dag_id.like("migrate.%")):
            slug = found.dag_id.rpartition(".")[2]
            counts[slug] = counts.get(slug, 0) + 1
    print("RUNS", json.dumps(counts))
"""


def test_a_vm_that_drifted_starts_over_once_where_its_plan_says_so(tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "autumn.yaml").write_text(PLAN)
    (tmp_path / "wave.py").write_text(RUN)

    output = own_airflow.run(tmp_path / "wave.py", own_airflow.make(tmp_path))

    runs = [line for line in output.splitlines() if line.startswith("RUNS ")]
    assert runs, output[-5000:]
    assert json.loads(runs[0].removeprefix("RUNS ")) == {"over": 2, "twice": 2, "stop": 1}
    (report,) = tmp_path.glob("hyperflow/*/*/wave-report.json")
    vms = {vm["slug"]: vm for vm in json.loads(report.read_text())["vms"]}
    outcomes = {slug: vm["outcome"] for slug, vm in vms.items()}
    assert outcomes == {"over": "migrated", "twice": "failed", "stop": "failed"}
    assert vms["over"]["run_id"].endswith(".2")
    assert "drifted" not in vms["over"]
    assert vms["twice"]["drifted"] and vms["stop"]["drifted"]
