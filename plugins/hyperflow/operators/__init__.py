"""The tasks of a migration, as Airflow operators."""
