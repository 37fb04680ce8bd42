"""Airflow's REST API v2, as far as the command line needs it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from hyperflow.manifest.faults import SHOWN

LAB_ENDPOINT = Path(__file__).resolve().parents[3] / ".lab" / "airflow.json"
TIMEOUT = 90.0  # seconds; on SQLite a writer may wait long for its turn
WAITS = (1.0, 3.0, 10.0)  # seconds before asking again after a fault of Airflow's own

PAGE = 100  # entries that Airflow gives at once ([api] maximum_page_limit), whatever it is asked for


class AirflowUnavailable(Exception):
    """Airflow cannot be reached or does not let us in; the message says what to do."""


class ServerFault(AirflowUnavailable):
    """Airflow failed at a good request (5xx), such as on a locked SQLite; what was asked may be done or not."""


class Forbidden(AirflowUnavailable):
    """Airflow does not let us do this, or does not let us in any more."""


class Refused(Exception):
    """Airflow refused a request; the message is Airflow's own."""


@dataclass(frozen=True)
class TaskInstance:
    """A task of a run.

    :param label: the map index as a person reads it, or an empty text
    :param seconds: how long it took; None while it runs
    """

    task_id: str
    map_index: int
    label: str
    state: str | None
    try_number: int
    seconds: float | None
    start: str | None


class AirflowApi:
    """A session with Airflow's API.

    :param endpoint: a JSON file with ``url``, ``user`` and ``password``; HYPERFLOW_AIRFLOW names another
        default than the lab's
    :raises AirflowUnavailable: when there is no such file, no answer, or no admission
    """

    def __init__(self, endpoint: Path | None = None) -> None:
        path = endpoint or Path(os.environ.get("HYPERFLOW_AIRFLOW", LAB_ENDPOINT))
        try:
            settings = json.loads(path.read_text())
            url, user, password = (settings[key] for key in ("url", "user", "password"))
            if not all(isinstance(each, str) for each in (url, user, password)):
                raise AirflowUnavailable(f"{path}: expected JSON with url, user and password, each a text")
        except FileNotFoundError as fault:
            raise AirflowUnavailable(
                f"{path}: not found; start the lab ('./hyperflow lab up'), or name a JSON file with url, user and "
                "password of your Airflow by --airflow"
            ) from fault
        except OSError as fault:
            found = fault.strerror or type(fault).__name__
            raise AirflowUnavailable(f"{path}: {found}; expected JSON with url, user and password") from fault
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as fault:
            raise AirflowUnavailable(f"{path}: expected JSON with url, user and password ({fault!r})") from fault
        self.url: str = url.rstrip("/")
        try:
            self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT)
            answer = self.request("POST", "/auth/token", json={"username": user, "password": password})
        except httpx.InvalidURL as fault:
            raise AirflowUnavailable(f"{path}: expected JSON with url, user and password ({fault})") from fault
        except Refused as fault:
            raise self._no_airflow(f"gives no token: {_first_words(str(fault))}") from fault
        token = answer.get("access_token")
        if not isinstance(token, str):
            raise self._no_airflow("gives no token")
        self._client.headers["Authorization"] = f"Bearer {token}"

    def _no_airflow(self, how: str) -> AirflowUnavailable:
        return AirflowUnavailable(f"{self.url}: answers, but not as Airflow ({how}); is it the url of Airflow's API?")

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Start a run.

        The run's id is chosen here, so that asking again after a fault of Airflow's own starts no second run.

        :return: the run's id
        """
        run_id = f"manual__{datetime.now(UTC).isoformat()}"
        body = {"logical_date": None, "conf": conf, "dag_run_id": run_id}
        for wait in (*WAITS, None):
            try:
                self._send("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body)
            except ServerFault:
                if wait is None:
                    raise
                time.sleep(wait)
                if self._has_run(dag_id, run_id):
                    break
            else:
                break
        return run_id

    def _has_run(self, dag_id: str, run_id: str) -> bool:
        try:
            self.run_state(dag_id, run_id)
        except Refused:
            return False
        return True

    def run_state(self, dag_id: str, run_id: str) -> str:
        """State of a run: queued, running, success, failed."""
        return str(self.request("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def fail_run(self, dag_id: str, run_id: str) -> None:
        """Set a run to failed, as a person does in Airflow; it is over when its last task is."""
        self.request("PATCH", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}", json={"state": "failed"})

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """All tasks of a run."""
        found = self._all(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances", "task_instances")
        return [
            TaskInstance(
                task_id=item["task_id"],
                map_index=item["map_index"],
                label=item.get("rendered_map_index") or "",
                state=item["state"],
                try_number=item["try_number"],
                seconds=item["duration"],
                start=item["start_date"],
            )
            for item in found
        ]

    def log_lines(self, dag_id: str, run_id: str, task: TaskInstance) -> list[str]:
        """What a task has logged in its last try."""
        answer = self.request(
            "GET",
            f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task.task_id}/logs/{max(task.try_number, 1)}",
            params={"map_index": task.map_index, "full_content": True},
            headers={"Accept": "application/json"},
        )
        content = answer.get("content", [])
        return [str(record.get("event", "")) for record in content if isinstance(record, dict)]

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """A value that a task left; None where it left none.

        :param map_index: of a mapped task, from 0
        """
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        try:
            return self.request("GET", path, params={"deserialize": True, "map_index": map_index}).get("value")
        except Refused:
            return None

    def has_dag(self, dag_id: str) -> bool:
        """Tell whether Airflow knows a DAG."""
        try:
            self.request("GET", f"/api/v2/dags/{dag_id}")
        except Refused:
            return False
        return True

    def pools(self) -> dict[str, dict[str, Any]]:
        """Airflow's pools by name: ``slots``, ``include_deferred`` and more of each."""
        return {item["name"]: item for item in self._all("/api/v2/pools", "pools")}

    def pool_of(self, dag_id: str, task_id: str) -> str:
        """The pool of a task, as Airflow read its plan last."""
        return str(self.request("GET", f"/api/v2/dags/{dag_id}/tasks/{task_id}")["pool"])

    def set_pool(self, name: str, slots: int, description: str, *, exists: bool) -> None:
        """Make or change a pool, which counts deferred tasks too."""
        body = {"name": name, "slots": slots, "description": description, "include_deferred": True}
        if exists:
            self.request("PATCH", f"/api/v2/pools/{name}", json={"pool": name, **body})
        else:
            self.request("POST", "/api/v2/pools", json=body)

    def unknown_people(self, ids: Iterable[str]) -> list[str] | None:
        """List those ids that no user of this Airflow has, as Hyperflow's plugin in it tells.

        :return: None where it cannot tell: another auth manager, or no plugin of this version
        """
        asked = sorted(set(ids))
        unknown: list[str] = []
        for begin in range(0, len(asked), PAGE):
            try:
                query = {"user": asked[begin : begin + PAGE]}
                answer = self.request("GET", "/hyperflow/people/unknown", params=query)["unknown"]
            except Refused:
                return None
            if answer is None:
                return None
            unknown += answer
        return unknown

    def unknown_connections(self, ids: Iterable[str]) -> list[str] | None:
        """List those ids that no connection of this Airflow has, as Hyperflow's plugin in it tells.

        :return: None where it does not tell: no plugin of this version, or a user who may not read connections
        """
        unknown = []
        for one in sorted(set(ids)):
            try:
                if not self.request("GET", f"/hyperflow/connections/{quote(one, safe='')}")["known"]:
                    unknown.append(one)
            except (Refused, Forbidden):
                return None
        return unknown

    def variables(self, prefix: str) -> dict[str, Any]:
        """Airflow's variables whose names begin so, those that hold JSON read."""
        pattern = {"variable_key_pattern": f"{prefix}%"}
        return {
            item["key"]: _json_or_text(item["value"])
            for item in self._all("/api/v2/variables", "variables", pattern)
            if item["key"].startswith(prefix)
        }

    def unpause(self, dag_id: str) -> None:
        """Let a DAG run."""
        self.request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": False})

    def pause(self, dag_id: str) -> None:
        """Let no task of a DAG begin, and no run by its schedule."""
        self.request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": True})

    def is_paused(self, dag_id: str) -> bool:
        """Whether a DAG is paused."""
        return bool(self.request("GET", f"/api/v2/dags/{dag_id}")["is_paused"])

    def paused_dags(self, prefix: str) -> set[str]:
        """The paused ones of the DAGs whose ids begin so."""
        found = self._all("/api/v2/dags", "dags", {"dag_id_prefix_pattern": prefix, "paused": True})
        return {str(item["dag_id"]) for item in found if item["dag_id"].startswith(prefix)}

    def last_run(self, dag_id: str) -> str | None:
        """Id of the run that was started last; None when there is none."""
        query = {"order_by": "-run_after", "limit": 1}
        runs = self.request("GET", f"/api/v2/dags/{dag_id}/dagRuns", params=query)["dag_runs"]
        return str(runs[0]["dag_run_id"]) if runs else None

    def runs_at_work(self, dag_id: str) -> list[dict[str, Any]]:
        """Runs of a DAG that are not over: ``dag_run_id``, ``run_type``, ``conf`` and more of each."""
        return self._all(f"/api/v2/dags/{dag_id}/dagRuns", "dag_runs", {"state": ["queued", "running"]})

    def _all(self, path: str, key: str, query: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        while True:
            answer = self.request("GET", path, params={**(query or {}), "limit": PAGE, "offset": len(items)})
            items += answer[key]
            if not answer[key] or len(items) >= answer["total_entries"]:
                return items

    def import_errors(self) -> list[str]:
        """Errors of DAG files and plans."""
        return [str(item["stack_trace"]) for item in self._all("/api/v2/importErrors", "import_errors")]

    def request(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the object that Airflow answers with.

        After a 5xx it is asked again where that does no harm: a question, and a PATCH, which says how a thing is to be.

        :raises AirflowUnavailable: no answer, or no admission
        :raises ServerFault: Airflow failed at it
        :raises Refused: with Airflow's own words
        """
        for wait in WAITS if method in ("GET", "PATCH") else ():
            try:
                return self._send(method, path, **arguments)
            except ServerFault:
                time.sleep(wait)
        return self._send(method, path, **arguments)

    def _send(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **arguments)
        except httpx.HTTPError as fault:
            raise AirflowUnavailable(f"{self.url}: no answer ({fault}); is Airflow up?") from fault
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise Forbidden(f"{self.url}: {response.status_code}: user or password refused, or no right")
        if response.is_error:
            detail = (_object(response) or {}).get("detail", response.text)
            if response.is_server_error:
                raise ServerFault(f"{self.url}: {response.status_code}: {detail}")
            raise Refused(f"{detail}")
        answer = _object(response)
        if answer is None:  # every call of the API used here answers with an object
            raise self._no_airflow(f"{response.status_code} without a JSON object")
        return answer


def _object(response: httpx.Response) -> dict[str, Any] | None:
    """Read the JSON object that an answer is; None where it is something else."""
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _first_words(text: str) -> str:
    """Keep of a text, which may be a page, what fits into a sentence."""
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}..."


def _json_or_text(value: Any) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value
