"""One Airflow DAG per wave of every good plan."""

from airflow.sdk import get_parsing_context
from hyperflow.workflows.plan_folder import read_plan_folder
from hyperflow.workflows.wave import build_wave

wanted = get_parsing_context().dag_id
if wanted is None or wanted.startswith("wave."):
    for plan in read_plan_folder().plans:
        for wave in plan.waves:
            if wanted in (None, wave.dag_id):
                globals()[wave.dag_id] = build_wave(plan, wave)
