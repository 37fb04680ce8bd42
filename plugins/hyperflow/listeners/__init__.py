"""What Airflow's own components tell of themselves, as it happens."""
