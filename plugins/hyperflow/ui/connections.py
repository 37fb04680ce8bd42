"""Which connections Airflow has, so that a plan's check finds one that is mistyped."""

from __future__ import annotations


def is_connection(connection_id: str) -> bool:
    """Whether Airflow has a connection: in its database, its environment, or a secrets backend.

    Airflow's own API tells of its database only, so it would call many a good plan faulty.
    """
    from airflow.models.connection import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        Connection.get_connection_from_secrets(connection_id)
    except AirflowNotFoundException:
        return False
    return True
