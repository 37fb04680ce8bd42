"""The janitor: finds and removes, every night, what dead runs have left on the hosts and vCenters of all plans."""

from airflow.sdk import get_parsing_context
from hyperflow.workflows.janitor import DAG_ID, build_janitor
from hyperflow.workflows.plan_folder import read_plan_folder

if get_parsing_context().dag_id in (None, DAG_ID):
    janitor = build_janitor(read_plan_folder().plans)
