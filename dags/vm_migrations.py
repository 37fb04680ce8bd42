"""One Airflow DAG per VM of every good plan; plan_faults.py tells of the others."""

from airflow.sdk import get_parsing_context
from hyperflow.workflows.migration import build_dag
from hyperflow.workflows.plan_folder import read_plan_folder, read_plan_of

wanted = get_parsing_context().dag_id  # a task that starts needs its own DAG only
for plan in (read_plan_of(wanted) if wanted else read_plan_folder()).plans:
    for vm in plan.vms:
        if wanted in (None, vm.dag_id):
            globals()[vm.dag_id] = build_dag(plan, vm)
