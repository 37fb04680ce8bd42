"""Asks a KVM host what it has and lacks, apart from any migration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from hyperflow.hooks.audit import audit_start
from hyperflow.hooks.kvmhost import KvmHostHook
from hyperflow.operators.base import JOB_FOLDER, accept_result, keep_failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context


class HostCheckOperator(BaseOperator):
    """Runs the check stage on a host; returns tools, acceleration, memory and space, or fails with all that is missing.

    :param ssh_conn_id: connection of the host; templated
    :param staging_directory: a directory that must be writable there; templated
    :param output_directory: another one; templated
    """

    template_fields: Sequence[str] = ("ssh_conn_id", "staging_directory", "output_directory")

    def __init__(self, *, ssh_conn_id: str, staging_directory: str, output_directory: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ssh_conn_id = ssh_conn_id
        self.staging_directory = staging_directory
        self.output_directory = output_directory

    def execute(self, context: Context) -> dict[str, Any]:
        """Check the host."""
        audit_start(context, "host check", {"on": self.ssh_conn_id})
        options = {
            "staging_directory": self.staging_directory,
            "output_directory": self.output_directory,
            "staging_bytes": 0,
            "output_bytes": 0,
            "endpoints": [],
            "any_migration": True,
        }
        try:
            host = KvmHostHook(ssh_conn_id=self.ssh_conn_id, directory=f"{self.staging_directory}/{JOB_FOLDER}")
            return accept_result(context, host.run_stage("check", options))
        except Exception as fault:
            keep_failure(context, self.task_id, fault)
            raise
