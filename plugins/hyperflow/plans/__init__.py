"""What a person writes: plans and profiles, and how they make the migration of one VM.

Knows no Airflow.
"""

from hyperflow.plans.load import load_plan
from hyperflow.plans.plan import PlanError

__all__ = ["PlanError", "load_plan"]
