"""An auth manager that lets the user ``other`` see one DAG only; Airflow's simple one knows no DAGs apart."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

MINE = "wave.p.first"


class PerDagAuthManager(SimpleAuthManager):
    """Simple, but for one user."""

    def is_authorized_dag(self, *, user: Any, details: Any = None, **kwargs: Any) -> bool:
        if user.username == "other" and (details is None or details.id != MINE):
            return False
        return super().is_authorized_dag(user=user, details=details, **kwargs)
