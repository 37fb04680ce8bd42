"""Links from a task in Airflow's UI to the pages of its run."""
