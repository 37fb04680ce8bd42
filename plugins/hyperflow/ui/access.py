"""Who may see what: the one place that imports what Airflow keeps for its own API (tests/ui holds that it works)."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.core_api.security import get_user, requires_access_connection, requires_access_dag
from fastapi import Depends


def may_read_dag() -> Any:
    """Make the dependency of a route with a ``{dag_id}``: 401 for nobody, 403 for whom Airflow does not let read it."""
    return Depends(requires_access_dag(method="GET"))


def may_read_connection() -> Any:
    """Make the dependency of a route with a ``{connection_id}``, as :func:`may_read_dag` does."""
    return Depends(requires_access_connection(method="GET"))


def signed_in() -> Any:
    """Make the dependency of a route for all whom Airflow knows: 401 for nobody."""
    return Depends(get_user)
