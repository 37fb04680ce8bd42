"""What a person starts after a cutover: take it back, or make it final."""

from airflow.sdk import get_parsing_context
from hyperflow.workflows.aftermath import FINALIZE_DAG, ROLLBACK_DAG, build_finalize, build_rollback

for dag_id, build in ((ROLLBACK_DAG, build_rollback), (FINALIZE_DAG, build_finalize)):
    if get_parsing_context().dag_id in (None, dag_id):
        globals()[dag_id] = build()
