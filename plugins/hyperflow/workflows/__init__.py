"""DAGs made from plans: first the plan as data, then the operators."""
