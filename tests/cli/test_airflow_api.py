"""The client of Airflow's REST API, against an HTTP server that fails as Airflow on a busy SQLite does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hyperflow.cli import airflow_api
from hyperflow.cli.airflow_api import AirflowApi, AirflowUnavailable, Refused, ServerFault

LOCKED = {"detail": {"reason": "Database error", "message": "database is locked"}}


class Airflow(ThreadingHTTPServer):
    """Keeps runs; ``faults`` of the next requests fail, before or after the work is done."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: list[str] = []
        self.faults = 0
        self.done_despite_fault = False
        self.credentials: dict[str, str] = {}
        self.token: tuple[int, Any] = (201, {"access_token": "t"})  # how it lets in: status, and object or text


class Handler(BaseHTTPRequestHandler):
    server: Airflow

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/auth/token":
            self.server.credentials = body
            self.answer(*self.server.token)
        elif self.server.faults:
            self.server.faults -= 1
            if self.server.done_despite_fault:
                self.server.runs.append(body["dag_run_id"])
            self.answer(500, LOCKED)
        elif body["dag_run_id"] in self.server.runs:
            self.answer(409, {"detail": "exists"})
        else:
            self.server.runs.append(body["dag_run_id"])
            self.answer(200, {"dag_run_id": body["dag_run_id"]})

    def do_GET(self) -> None:
        if self.server.faults and "xcom" in self.path:
            self.server.faults -= 1
            self.answer(500, LOCKED)
        elif "xcom" in self.path:
            self.answer(200, {"value": 7})
        elif "/taskInstances?" in self.path:
            task = {"map_index": -1, "state": "success", "try_number": 1, "duration": 1.0, "start_date": None}
            self.page("task_instances", [{"task_id": f"vms.w{number:03}", **task} for number in range(250)])
        elif "/importErrors?" in self.path:
            self.page("import_errors", [{"stack_trace": f"plan {number}"} for number in range(101)])
        elif "/dagRuns?" in self.path:
            query = parse_qs(urlsplit(self.path).query)
            self.server.runs = [f"{state}__1" for state in query["state"]]
            self.page("dag_runs", [{"dag_run_id": run} for run in self.server.runs])
        elif self.path.endswith("/pool-list"):
            self.answer(200, [])
        elif self.path.endswith("/page"):
            self.answer(200, "<html>")
        elif self.path.endswith("/refused-by-a-list"):
            self.answer(409, ["no"])
        elif self.path.rpartition("/")[2] in [run.replace("+", "%2B") for run in self.server.runs] + self.server.runs:
            self.answer(200, {"state": "queued"})
        else:
            self.answer(404, {"detail": "not found"})

    def page(self, key: str, items: list[dict[str, Any]]) -> None:
        """Answer as Airflow does, with no more than its maximum_page_limit at once."""
        asked = parse_qs(urlsplit(self.path).query)
        query = {name: int(asked[name][0]) for name in ("limit", "offset") if name in asked}
        begin = query.get("offset", 0)
        shown = items[begin : begin + min(query.get("limit", 50), 100)]
        self.answer(200, {key: shown, "total_entries": len(items)})

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.faults -= 1
        self.answer(500 if self.server.faults >= 0 else 200, LOCKED if self.server.faults >= 0 else body)

    def answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def airflow() -> Iterator[Airflow]:
    server = Airflow()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def endpoint(airflow: Airflow, tmp_path: Path) -> Path:
    path = tmp_path / "airflow.json"
    port = airflow.server_address[1]
    path.write_text(json.dumps({"url": f"http://127.0.0.1:{port}", "user": "u", "password": "p"}))
    return path


@pytest.fixture
def api(endpoint: Path, monkeypatch: pytest.MonkeyPatch) -> AirflowApi:
    monkeypatch.setattr(airflow_api, "WAITS", (0.01, 0.01))
    return AirflowApi(endpoint)


def test_a_run_is_asked_for_again_after_a_fault_of_airflows_own(airflow: Airflow, api: AirflowApi) -> None:
    airflow.faults = 2
    assert [api.trigger("d", {})] == airflow.runs


def test_a_run_that_began_despite_the_fault_is_not_started_twice(airflow: Airflow, api: AirflowApi) -> None:
    airflow.faults, airflow.done_despite_fault = 1, True
    assert [api.trigger("d", {})] == airflow.runs


def test_a_fault_that_stays_is_told(airflow: Airflow, api: AirflowApi) -> None:
    airflow.faults = 99
    with pytest.raises(ServerFault, match=r"500.*database is locked"):
        api.trigger("d", {})
    assert airflow.runs == []


def test_a_question_is_asked_again_and_a_fault_is_no_missing_value(airflow: Airflow, api: AirflowApi) -> None:
    airflow.faults = 1
    assert api.xcom("d", "r", "t") == 7
    airflow.faults = 99
    with pytest.raises(ServerFault):
        api.xcom("d", "r", "t")


def test_what_a_thing_is_to_be_is_said_again(airflow: Airflow, api: AirflowApi) -> None:
    airflow.faults = 2
    assert api.request("PATCH", "/api/v2/dags/d/dagRuns/r", json={"state": "failed"}) == {"state": "failed"}


def test_what_airflow_gives_by_the_hundred_is_read_to_its_end(api: AirflowApi) -> None:
    tasks = api.task_instances("wave.move.night", "r")
    assert [task.task_id for task in tasks] == [f"vms.w{number:03}" for number in range(250)]
    assert len(api.import_errors()) == 101


def test_a_refusal_is_not_asked_again(api: AirflowApi) -> None:
    with pytest.raises(Refused, match="not found"):
        api.run_state("d", "no-such-run")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "7",
        "{}",
        '{"url": 7, "user": "u", "password": "p"}',
        '{"url": "http://127.0.0.1:9", "user": null, "password": "p"}',
        '{"url": "http://[::1", "user": "u", "password": "p"}',
        '{"url": "http://127.0.0.1:x", "user": "u", "password": "p"}',
        b"\xff",
        "[" * 100_000,
        None,
    ],
)
def test_a_file_that_names_no_airflow_is_refused_in_a_sentence(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "airflow.json"
    if content is None:
        path.mkdir()  # which no user can read as a file
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AirflowUnavailable, match=r"airflow\.json: .*expected JSON with url, user and password"):
        AirflowApi(path)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ((200, "<html>" + "x" * 1000), "200 without a JSON object"),
        ((200, "[]"), "200 without a JSON object"),
        ((302, ""), "302 without a JSON object"),
        ((200, {"value": "t"}), "gives no token"),
        ((200, {"access_token": None}), "gives no token"),
        ((404, "<html>\n" + "x" * 1000), "gives no token: <html> x"),
    ],
)
def test_a_url_at_which_something_else_answers_is_told(
    airflow: Airflow, endpoint: Path, token: tuple[int, Any], said: str
) -> None:
    airflow.token = token
    with pytest.raises(AirflowUnavailable) as told:
        AirflowApi(endpoint)
    assert f"answers, but not as Airflow ({said}" in str(told.value)
    assert len(str(told.value)) < 250


def test_a_password_is_sent_as_it_is_written(airflow: Airflow, endpoint: Path) -> None:
    endpoint.write_text(json.dumps({**json.loads(endpoint.read_text()), "password": " p "}))
    AirflowApi(endpoint)
    assert airflow.credentials == {"username": "u", "password": " p "}


def test_an_answer_that_is_no_object_is_told(api: AirflowApi) -> None:
    for path in ("/page", "/pool-list"):
        with pytest.raises(AirflowUnavailable, match="200 without a JSON object"):
            api.request("GET", path)
    with pytest.raises(Refused, match="no"):
        api.request("GET", "/refused-by-a-list")


def test_runs_that_wait_or_work_are_those_at_work(api: AirflowApi) -> None:
    assert [run["dag_run_id"] for run in api.runs_at_work("d")] == ["queued__1", "running__1"]
