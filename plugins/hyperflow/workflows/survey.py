"""The DAG that asks a vCenter what the VMs of a plan are."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from hyperflow.operators.survey import SurveyOperator
from hyperflow.workflows.plan_folder import plans_folder

DAG_ID = "hyperflow_survey"


def build_survey() -> DAG:
    """Build the DAG; its form asks for the plan."""
    with DAG(
        DAG_ID,
        dag_display_name="Survey the VMs of a plan",
        doc_md="Asks the vCenter for sizes, folders, ESXi hosts and tags of a plan's VMs, and keeps them beside the "
        "plan. Waves choose members and estimate times by them. Nothing is changed at the vCenter.",
        schedule=None,
        catchup=False,
        is_paused_upon_creation=False,
        tags=["hyperflow"],
        params={"plan": Param(type="string", minLength=1, title="Plan", description="Its name")},
    ) as dag:
        SurveyOperator(task_id="survey", plan="{{ params.plan }}", folder=str(plans_folder()))
    return dag
