"""Shows the faults of bad plans among Airflow's import errors.

Apart from vm_migrations.py, because an error of a file takes all of the file's DAGs away: here it takes none.
"""

from airflow.sdk import get_parsing_context
from hyperflow.workflows.plan_folder import PlanFaults, read_plan_folder

if get_parsing_context().dag_id is None and (faults := read_plan_folder().faults):
    raise PlanFaults("\n" + "\n".join(faults))
