"""A DAG that tells whether a KVM host can take migrations: tools, acceleration, memory and space."""

from airflow.sdk import DAG, Param
from hyperflow.operators.host_check import HostCheckOperator

with DAG(
    "hyperflow_host_check",
    dag_display_name="Check a KVM host",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    is_paused_upon_creation=False,
    tags=["hyperflow"],
    params={
        "connection": Param("kvm01", type="string", title="Connection", description="Airflow SSH connection"),
        "staging_directory": Param("/var/lib/hyperflow", type="string", title="Staging directory", pattern="^/"),
        "output_directory": Param("/var/lib/libvirt/images", type="string", title="Output directory", pattern="^/"),
    },
):
    HostCheckOperator(
        task_id="check",
        ssh_conn_id="{{ params.connection }}",
        staging_directory="{{ params.staging_directory }}",
        output_directory="{{ params.output_directory }}",
    )
