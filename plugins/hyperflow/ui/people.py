"""Whom Airflow knows, so that a plan's check finds an approver who could never answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def unknown_people(ids: Iterable[str]) -> list[str] | None:
    """List those ids that no user of Airflow has; None where the auth manager keeps its users elsewhere.

    :param ids: as a question's ``assigned_users`` has them: names with Airflow's simple users, numbers with FAB's
    """
    from airflow.api_fastapi.app import get_auth_manager

    manager: Any = get_auth_manager()
    if hasattr(manager, "get_users"):  # Airflow's simple users, from its configuration
        known = {user.username for user in manager.get_users()}
        return [one for one in ids if one not in known]
    if hasattr(type(manager), "security_manager"):  # FAB's, from its tables
        return [one for one in ids if not _is_users_number(manager, one)]
    return None


def _is_users_number(manager: Any, text: str) -> bool:
    """Whether an active user has this number; Airflow reads the user of a token in the same way."""
    if not (text.isascii() and text.isdigit()):
        return False
    try:
        manager.deserialize_user({"sub": text})
    except ValueError:
        return False
    return True
