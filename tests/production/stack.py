"""The project's docker-compose.yaml, brought up as its page in docs says, and reached as its users reach it."""

from __future__ import annotations

import base64
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hyperflow.cli.airflow_api import AirflowApi

from lab import processes
from tests.production.engine import Engine, run

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yaml"
PROJECT = "hyperflowproduction"
USER = "admin"
UID = 50000  # AIRFLOW_UID's default
WORKERS = 2
UP_LIMIT = 900.0  # seconds
KEY = "/opt/airflow/ssh/id_ed25519"
COMPONENTS = ("airflow-apiserver", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", "airflow-worker")
# How soon a worker that was killed is missed; the defaults are 300 s and 10 s, which docs/faults.md explains.
SETTINGS = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "20",
    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "4",  # two cores serve all of it
}


@dataclass(frozen=True)
class Stack:
    """The containers of docker-compose.yaml.

    :param folder: holds secrets and settings, ``plans`` and ``ssh``
    :param environment: the secrets, and the engine to talk to
    """

    engine: Engine
    folder: Path
    environment: dict[str, str]

    @property
    def endpoint(self) -> Path:
        """The file that ``./hyperflow --airflow`` takes."""
        return self.folder / "airflow.json"

    @property
    def url(self) -> str:
        """Airflow's address on this machine."""
        return f"http://127.0.0.1:{self.environment['AIRFLOW_PORT']}"

    def compose(self, *arguments: str, limit: float = UP_LIMIT) -> str:
        """Run ``docker-compose`` with the project's file and what the test adds to it."""
        files = ["--file", str(FILE), "--file", str(self.folder / "override.yaml")]
        command = ["docker-compose", "--project-name", PROJECT, "--project-directory", str(ROOT), *files, *arguments]
        return run(command, self.environment, limit)

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers that run."""
        return [one["Id"] for one in self.described(service) if one["State"]["Running"]]

    def described(self, *services: str) -> list[dict[str, Any]]:
        """What the engine knows of containers, of those that ended too."""
        found = json.loads(self.engine.docker("inspect", *self.compose("ps", "--quiet", *services).split()))
        assert isinstance(found, list)
        return found

    def pid(self, container: str) -> int:
        """The process id, on this machine, of a container's first process."""
        return int(self.engine.docker("inspect", "--format", "{{.State.Pid}}", container))

    def health(self) -> dict[str, str]:
        """What the health checks say: service and number of the container -> ``healthy`` and others."""
        return {
            one["Name"].removeprefix(f"/{PROJECT}_"): one["State"]["Health"]["Status"]
            for one in self.described()
            if one["State"]["Running"] and "Health" in one["State"]
        }

    def until_healthy(self) -> None:
        """Wait until every health check is good."""
        limit = time.monotonic() + UP_LIMIT
        while (health := self.health()) is not None and set(health.values()) != {"healthy"}:
            assert time.monotonic() < limit, f"not healthy: {health}"
            time.sleep(3)

    def api(self, user: str = USER, password: str | None = None) -> AirflowApi:
        """Log in as a user, with what ``./hyperflow`` logs in with."""
        endpoint = self.folder / f"{user}.json" if user != USER else self.endpoint
        secret = password or self.environment["AIRFLOW_ADMIN_PASSWORD"]
        endpoint.touch(mode=0o600)
        endpoint.write_text(json.dumps({"url": self.url, "user": user, "password": secret}))
        return AirflowApi(endpoint)


def make(engine: Engine, folder: Path, plans: Path, key: Path) -> Stack:
    """Write the secrets and folders that docker-compose.yaml takes.

    :param plans: the folder of plans
    :param key: the private key that the KVM host lets in
    """
    keys = folder / "ssh"
    keys.mkdir(parents=True)
    copy = keys / Path(KEY).name
    copy.touch(mode=0o600)
    copy.write_bytes(key.read_bytes())
    for path in (copy, plans):
        os.chown(path, UID, 0)
    environment = {
        **engine.environment,
        "POSTGRES_PASSWORD": secrets.token_urlsafe(18),
        "REDIS_PASSWORD": secrets.token_urlsafe(18),
        "AIRFLOW_FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "AIRFLOW_JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW_SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW_ADMIN_PASSWORD": secrets.token_urlsafe(18),
        "AIRFLOW_WORKERS": str(WORKERS),
        "AIRFLOW_PORT": str(processes.free_port()),
        "HYPERFLOW_PLANS_DIRECTORY": str(plans),
        "HYPERFLOW_SSH_DIRECTORY": str(keys),
        "COMPOSE_HTTP_TIMEOUT": "600",
    }
    override = {"services": {service: {"environment": SETTINGS} for service in COMPONENTS}}
    (folder / "override.yaml").write_text(yaml.safe_dump(override))
    return Stack(engine, folder, environment)


def up(stack: Stack) -> None:
    """Start everything, with two workers, and wait until it is healthy."""
    stack.compose("up", "--detach", "--no-build")
    stack.until_healthy()


def add_connections(api: AirflowApi, connections: list[dict[str, Any]]) -> None:
    """Make connections as a person does, in the UI or by the API.

    :param connections: of the lab; that of the KVM host gets the key as the containers see it
    """
    for connection in connections:
        extra = json.loads(connection["extra"])
        if "key_file" in extra:
            extra["key_file"] = KEY
        api.request("POST", "/api/v2/connections", json={**connection, "extra": json.dumps(extra)})


def until(condition: Callable[[], bool], limit: float = 900.0) -> None:
    """Wait for something that happens by itself.

    :param limit: seconds
    """
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.5)
