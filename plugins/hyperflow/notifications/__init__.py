"""Tells people what happens, by the notifiers of Airflow that a plan names."""
