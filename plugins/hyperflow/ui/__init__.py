"""Pages of a run's records, served by Airflow's API server to whom Airflow lets see the DAG."""
