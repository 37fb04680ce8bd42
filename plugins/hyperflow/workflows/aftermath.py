"""The DAGs that a person starts after a cutover: take it back, or make it final."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from hyperflow.operators.aftermath import FinalizeOperator, RollBackLaterOperator

ROLLBACK_DAG, FINALIZE_DAG = "hyperflow_rollback", "hyperflow_finalize"
VM = {"vm": Param(type="string", minLength=1, title="DAG of the VM", description="As migrate.PLAN.VM")}
TARGET_IS_OFF = Param(
    default=False,
    type="boolean",
    title="The target is off",
    description="Needed when it does not run on its host any more: you have seen that it runs nowhere",
)


def build_rollback() -> DAG:
    """Build the DAG that takes a cutover back."""
    with DAG(
        ROLLBACK_DAG,
        dag_display_name="Roll a cutover back",
        doc_md="Stops and undefines the target, connects the source's network adapters as they were, powers the "
        "source on and reads back that it runs. What was written on the target since its start stays in its images, "
        "and nowhere else. Possible until the VM is finalized.",
        schedule=None,
        catchup=False,
        is_paused_upon_creation=False,
        default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
        tags=["hyperflow"],
        params={**VM, "target_is_off": TARGET_IS_OFF},
        render_template_as_native_obj=True,
    ) as dag:
        RollBackLaterOperator(task_id="rollback", vm_dag="{{ params.vm }}", target_is_off="{{ params.target_is_off }}")
    return dag


def build_finalize() -> DAG:
    """Build the DAG that makes a cutover final."""
    with DAG(
        FINALIZE_DAG,
        dag_display_name="Make a cutover final",
        doc_md="Renames the source VM to NAME-migrated and marks it with the custom attribute `hyperflow.migrated`. It "
        "is never deleted. No rollback is possible afterwards.",
        schedule=None,
        catchup=False,
        is_paused_upon_creation=False,
        default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
        tags=["hyperflow"],
        params=dict(VM),
    ) as dag:
        FinalizeOperator(task_id="finalize", vm_dag="{{ params.vm }}")
    return dag
