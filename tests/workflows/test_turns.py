"""Who comes first where more tasks are ready than a pool has slots."""

from __future__ import annotations

from pathlib import Path

from hyperflow.plans.load import load_plan
from hyperflow.workflows.migration import build_dag
from hyperflow.workflows.wave import build_wave

PLAN = """
plan: autumn
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms:
  - {name: app01}
  - {name: db01}
  - {name: web01}
waves:
  - {name: first, members: ["*"], after: {app01: [db01]}}
"""


def test_vms_of_a_wave_come_in_its_order_so_that_one_that_ended_does_not_wait_behind_one_to_come(
    tmp_path: Path,
) -> None:
    (tmp_path / "autumn.yaml").write_text(PLAN)
    plan = load_plan(tmp_path / "autumn.yaml")
    tasks = [task for task in build_wave(plan, plan.waves[0]).tasks if task.task_id.startswith("vms.")]

    first_to_last = sorted(tasks, key=lambda task: -task.priority_weight)

    assert [task.task_id for task in first_to_last] == ["vms.db01", "vms.web01", "vms.app01"]
    assert {task.weight_rule for task in tasks} == {"absolute"}


def test_a_vm_that_is_further_on_comes_first(tmp_path: Path) -> None:
    (tmp_path / "autumn.yaml").write_text(PLAN)
    plan = load_plan(tmp_path / "autumn.yaml")
    dag = build_dag(plan, plan.vm("db01"))

    rules = {dag.get_task(name).weight_rule for name in ("checksum", "inspect", "convert", "boot")}

    assert rules == {"upstream"}
