"""The sub-app as Airflow's plugin names it; built on the first request, because each task loads the plugin too."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def _built() -> Any:
    from hyperflow.ui.app import build_app

    return build_app()


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Serve one request (ASGI)."""
    await _built()(scope, receive, send)
