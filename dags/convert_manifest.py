"""Converts the disks of an Artifact Manifest on a KVM host; somebody starts it by hand."""

from airflow.sdk import get_parsing_context
from hyperflow.workflows.convert_manifest import DAG_ID, build_conversion

if get_parsing_context().dag_id in (None, DAG_ID):
    conversion = build_conversion()
