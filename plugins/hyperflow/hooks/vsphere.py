"""A vCenter behind an Airflow connection."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.hook import BaseHook

from hyperflow.hooks.audit import observer_of

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from hyperflow.vsphere.session import Session


NO_NAME = re.compile(r"[\s/@]")  # what a pasted address of a page, or two names, have in them


class VsphereHook(BaseHook):
    """Opens sessions with the vCenter of a connection.

    Connection: host, port (443), login, password; extra: ``thumbprint`` (SHA-256 or SHA-1 of the certificate) or
    ``ca_file``, where the system's certificate authorities do not know the vCenter; ``task_time_limit``, seconds that
    taking or removing a snapshot may last (default: half an hour, two hours).

    :param vsphere_conn_id: the connection of the vCenter
    """

    conn_name_attr = "vsphere_conn_id"
    default_conn_name = "vsphere_default"
    conn_type = "vsphere"
    hook_name = "VMware vSphere"

    def __init__(self, vsphere_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.vsphere_conn_id = vsphere_conn_id

    def session(self) -> Session:
        """Log in; use as a context manager, which logs out."""
        return open_session(self.get_connection(self.vsphere_conn_id))

    def endpoint(self) -> str:
        """``host:port`` of the vCenter."""
        arguments = session_arguments(self.get_connection(self.vsphere_conn_id))
        return f"{arguments['host']}:{arguments['port']}"

    def thumbprint(self) -> str | None:
        """The pinned certificate of the connection, where it has one."""
        value = session_arguments(self.get_connection(self.vsphere_conn_id))["thumbprint"]
        return str(value) if value else None

    def task_time_limit(self, default: float) -> float:
        """Seconds that a task of this vCenter may last.

        :raises ValueError: when the connection's ``task_time_limit`` is no number of seconds
        """
        value = self.get_connection(self.vsphere_conn_id).extra_dejson.get("task_time_limit", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(
                f"connection {self.vsphere_conn_id}: task_time_limit: found {value!r}, expected a number of seconds"
            )
        return float(value)


def open_session(connection: Connection, task: Any = None) -> Session:
    """Log in to the vCenter that ``connection`` names; what is changed there goes to the run's audit file.

    :param task: the task instance, where it is not the current context's: a trigger's
    """
    from hyperflow.vsphere.session import connect

    return connect(**session_arguments(connection), observer=observer_of(str(connection.conn_id), task))


def session_arguments(connection: Connection) -> dict[str, Any]:
    """Read a connection as the arguments of :func:`hyperflow.vsphere.session.connect`.

    :raises ValueError: naming the field that is missing, or a host that is no name
    """
    host = (connection.host or "").strip()
    missing = [name for name in ("host", "login", "password") if not getattr(connection, name)]
    if missing:
        raise ValueError(f"connection {connection.conn_id}: {', '.join(missing)} missing; a vCenter needs them")
    if not host or NO_NAME.search(host):
        raise ValueError(
            f"connection {connection.conn_id}: host: found {connection.host!r}, expected the vCenter's name or address "
            "alone, as vcenter.example.org"
        )
    extra = connection.extra_dejson
    return {
        "host": host,
        "port": connection.port or 443,
        "user": connection.login,
        "password": connection.password,
        "thumbprint": extra.get("thumbprint"),
        "ca_file": extra.get("ca_file"),
    }
