"""The sub-app below ``/hyperflow``; it only reads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import jinja2
from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from pydantic import ValidationError

from hyperflow.audit.chain import NAME as AUDIT
from hyperflow.audit.held import Held, hold, lost
from hyperflow.manifest.report import Report
from hyperflow.operators.wave_record import JSON_NAME, PAGE_NAME
from hyperflow.ui.access import may_read_connection, may_read_dag, signed_in
from hyperflow.ui.connections import is_connection
from hyperflow.ui.people import unknown_people
from hyperflow.ui.record import audit_entries, parsed, record_file, record_path

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}
RAW = {  # page -> file and media type
    "report.json": ("report.json", "application/json"),
    "console.log": ("console.log", "text/plain; charset=utf-8"),
    "screenshot.png": ("screenshot.png", "image/png"),
    "wave": (PAGE_NAME, "text/html; charset=utf-8"),
    "wave-report.json": (JSON_NAME, "application/json"),
}
PEOPLE_LIMIT = 100  # asked for at once
STYLES = {"proven": "good", "unproven": "doubt", "failed": "bad"}


def build_app() -> FastAPI:
    """Build the app."""
    app = FastAPI(title="Hyperflow", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.middleware("http")(_with_headers)
    access = [may_read_dag()]
    run = "/runs/{dag_id}/{run_id}/"
    app.get(run, dependencies=access, response_class=HTMLResponse)(report_page)
    app.get(run + "audit", dependencies=access, response_class=HTMLResponse)(audit_page)
    for page, (name, media_type) in RAW.items():
        app.get(run + page, dependencies=access, response_class=FileResponse)(_raw(name, media_type))
    app.get("/people/unknown", dependencies=[signed_in()])(people_page)
    app.get("/connections/{connection_id}", dependencies=[may_read_connection()])(connection_page)
    return app


def people_page(user: Annotated[list[str], Query(max_length=PEOPLE_LIMIT)]) -> dict[str, list[str] | None]:
    """Tell a plan's check which users Airflow does not know: ``{"unknown": [id]}``, null where it cannot be told."""
    return {"unknown": unknown_people(user)}


def connection_page(connection_id: str) -> dict[str, bool]:
    """Tell a plan's check whether Airflow has a connection, and nothing of what is in it: ``{"known": true}``."""
    return {"known": is_connection(connection_id)}


def report_page(dag_id: str, run_id: str) -> Response:
    """Show ``report.json``, or lead to the wave's page where the run is a wave's."""
    there = {name: record_file(dag_id, run_id, name) is not None for name in _names()}
    there[AUDIT] = record_file(dag_id, run_id, AUDIT) is not None or _lost_audit(dag_id, run_id) is not None
    if not any(there.values()):
        return _missing("this run has no records")
    path = record_file(dag_id, run_id, "report.json")
    report = None
    if path is not None:
        try:
            report = Report.model_validate(parsed(path))
        except ValidationError:  # of another version, or damaged: the page says so and links to the file itself
            report = None
    return _page("report.html.j2", report=report, there=there, dag_id=dag_id, run_id=run_id, style_of=STYLES)


def audit_page(dag_id: str, run_id: str) -> Response:
    """Show ``audit.jsonl`` as a table, with what is wrong with its chain and what it was held to."""
    path = record_file(dag_id, run_id, AUDIT)
    held = _lost_audit(dag_id, run_id) if path is None else None
    if path is None and held is None:
        return _missing("this run has no audit file")
    entries = [] if path is None else audit_entries(path)
    if path is not None and entries is not None:
        held = hold(path, record_file(dag_id, run_id, "report.json"))
    return _page("audit.html.j2", entries=entries, held=held, dag_id=dag_id, run_id=run_id)


def _lost_audit(dag_id: str, run_id: str) -> Held | None:
    """Tell of an audit file that should be there and is not."""
    path = record_path(dag_id, run_id, AUDIT)
    return None if path is None else lost(path, record_file(dag_id, run_id, "report.json"))


def _names() -> list[str]:
    return [name for name, _ in RAW.values()]


def _raw(name: str, media_type: str) -> Callable[[str, str], Response]:
    def serve(dag_id: str, run_id: str) -> Response:
        path = record_file(dag_id, run_id, name)
        return _missing(f"this run has no {name}") if path is None else FileResponse(path, media_type=media_type)

    return serve


def _missing(what: str) -> Response:
    return PlainTextResponse(f"Not found: {what}.\n", status_code=404)


def _page(template: str, **values: Any) -> Response:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return HTMLResponse(environment.get_template(template).render(**values))


async def _with_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    response.headers.update(HEADERS)
    return response
