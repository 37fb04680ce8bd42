"""Hyperflow: vSphere-to-KVM migrations as Airflow DAGs."""
