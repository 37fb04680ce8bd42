"""Asks a vCenter what the VMs of a plan are; ``./hyperflow wave survey`` and people start it."""

from airflow.sdk import get_parsing_context
from hyperflow.workflows.survey import DAG_ID, build_survey

if get_parsing_context().dag_id in (None, DAG_ID):
    survey = build_survey()
