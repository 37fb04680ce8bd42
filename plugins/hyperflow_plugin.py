"""Registers what Airflow must know of Hyperflow; nothing else."""

from airflow.plugins_manager import AirflowPlugin


class HyperflowPlugin(AirflowPlugin):
    """vSphere-to-KVM migrations."""

    name = "hyperflow"
