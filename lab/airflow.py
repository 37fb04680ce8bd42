"""The lab's Airflow: what ``airflow standalone`` starts, on SQLite, with every listener on loopback.

Not ``airflow standalone`` itself, for two reasons: its log servers listen on all interfaces and have no setting
for that, and a SIGTERM to it leaves its children behind (``reference/airflow-notes.md``).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from lab import processes

ROOT = Path(__file__).resolve().parent.parent
COMPONENTS = {
    "api-server": ["api-server", "--host", "127.0.0.1"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}
REPLACED = "airflow-replaced.json"  # components that were killed and started again
HEALTH = {"scheduler": "scheduler", "dag-processor": "dag_processor", "triggerer": "triggerer"}  # on the health page
START_LIMIT = 900.0  # seconds; 25 s where it was measured
USER = "admin"
BUSY_LIMIT = 60  # seconds that a writer waits for SQLite's lock; the default, 5 s, ends in errors on a busy machine


def start(
    state: Path, connections: list[dict[str, Any]], plans: Path, settings: Mapping[str, object] | None = None
) -> Path:
    """Start Airflow and give it the lab's connections.

    :param state: the lab's state folder
    :param connections: bodies for Airflow's REST API; they go to the database, never into the environment
    :param plans: folder of the plans
    :param settings: Airflow's settings that are to be other than the lab's, as ``SECTION__KEY``
    :return: ``airflow.json``: url, user and password, as ``./hyperflow`` reads them
    """
    home = state / "airflow"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    port = processes.free_port()
    environment = _environment(home, port, plans, settings or {})
    airflow = str(Path(sys.executable).parent / "airflow")
    with (home / "migrate.log").open("w") as log:
        subprocess.run([airflow, "db", "migrate"], env=environment, stdout=log, stderr=log, check=True)
    servers = [_start(name, home, environment) for name in COMPONENTS]
    processes.save(state / "airflow-servers.json", servers)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(url, servers, home)
    except BaseException:
        stop(state)
        raise
    password = json.loads((home / "passwords.json").read_text())[USER]
    endpoint = state / "airflow.json"
    endpoint.touch(mode=0o600)
    endpoint.write_text(json.dumps({"url": url, "user": USER, "password": password}, indent=2) + "\n")
    _add_connections(url, password, connections)
    return endpoint


def stop(state: Path) -> None:
    """End Airflow with everything it started."""
    processes.end(processes.load(state / "airflow-servers.json"))
    for server in processes.load(state / REPLACED):  # what a killed component left to itself
        processes.kill(server)
    for name in ("airflow-servers.json", REPLACED, "airflow.json"):
        (state / name).unlink(missing_ok=True)


def kill(state: Path, *names: str, whole: bool) -> None:
    """Kill -9 components, without telling anybody; :func:`revive` starts them again.

    :param names: of :data:`COMPONENTS`
    :param whole: with everything they have started; else only the component's own process, and what it has started is
        left to itself
    """
    for server in processes.load(state / "airflow-servers.json"):
        if server.name in names:
            (os.killpg if whole else os.kill)(server.pid, signal.SIGKILL)


def revive(state: Path, plans: Path, *names: str) -> None:
    """Start killed components again, on the same database, and wait until they are healthy."""
    servers = processes.load(state / "airflow-servers.json")
    endpoint = json.loads((state / "airflow.json").read_text())
    home, url = state / "airflow", endpoint["url"]
    environment = _environment(home, int(url.rpartition(":")[2]), plans, {})
    replaced = [server for server in servers if server.name in names]
    _wait_until_dead(replaced)
    running = [server for server in servers if server not in replaced] + [
        _start(name, home, environment) for name in names
    ]
    processes.save(state / "airflow-servers.json", running)
    processes.save(state / REPLACED, [*processes.load(state / REPLACED), *replaced])
    wait_until_healthy(url, [server for server in running if server.name in names], home)


def _wait_until_dead(servers: list[processes.Server]) -> None:
    """Wait for components that were killed: one that takes its moment still listens on the port of the next."""
    limit = time.monotonic() + processes.END_GRACE
    while any(server.is_alive() for server in servers) and time.monotonic() < limit:
        time.sleep(0.1)


def add(state: Path, plans: Path, name: str) -> None:
    """Start one more of a component beside that which runs."""
    servers = processes.load(state / "airflow-servers.json")
    port = int(json.loads((state / "airflow.json").read_text())["url"].rpartition(":")[2])
    more = _start(name, state / "airflow", _environment(state / "airflow", port, plans, {}), f"{name}-2.log")
    processes.save(state / "airflow-servers.json", [*servers, more])


@contextlib.contextmanager
def stopped(state: Path, name: str) -> Iterator[None]:
    """Stop a component with everything it has started, as a machine that is too busy does, and let it go on."""
    (server,) = (each for each in processes.load(state / "airflow-servers.json") if each.name == name)
    os.killpg(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGCONT)


def _start(name: str, home: Path, environment: dict[str, str], log: str | None = None) -> processes.Server:
    airflow = str(Path(sys.executable).parent / "airflow")
    return processes.start(name, [airflow, *COMPONENTS[name]], home / (log or f"{name}.log"), environment)


def is_up(state: Path) -> bool:
    """Tell whether all components run."""
    servers = processes.load(state / "airflow-servers.json")
    return bool(servers) and all(server.is_alive() for server in servers) and (state / "airflow.json").exists()


def wait_until_healthy(url: str, servers: list[processes.Server], home: Path) -> None:
    """Wait until Airflow's own health page says that components are healthy.

    :raises RuntimeError: naming the component that ended or is not healthy, and its log
    """
    limit = time.monotonic() + START_LIMIT
    parts = ["metadatabase", *(HEALTH[server.name] for server in servers if server.name in HEALTH)]
    health: dict[str, Any] = {}
    while time.monotonic() < limit:
        for server in servers:
            if not server.is_alive():
                raise RuntimeError(f"Airflow's {server.name} ended at start; see {home / server.name}.log")
        try:
            health = httpx.get(f"{url}/api/v2/monitor/health", timeout=BUSY_LIMIT).json()
        except (httpx.HTTPError, ValueError):
            health = {}
        if health and all(health[part]["status"] == "healthy" for part in parts):
            return
        time.sleep(0.5)
    raise RuntimeError(f"Airflow is not healthy after {START_LIMIT:.0f} s: {health}; see {home}/*.log")


def _environment(home: Path, port: int, plans: Path, others: Mapping[str, object]) -> dict[str, str]:
    settings = {
        "CORE__DAGS_FOLDER": ROOT / "dags",
        "CORE__PLUGINS_FOLDER": ROOT / "plugins",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": 4,
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db?timeout={BUSY_LIMIT}",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": home / "passwords.json",
        "API__PORT": port,
        "API__BASE_URL": f"http://127.0.0.1:{port}",
        "CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "API__WORKERS": 1,
        # Idle sleep is most of what Airflow adds to a task: 0.2 s instead of 1 s (airflow-notes.md).
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 0.2,
        # What runs a task sees its end at once or, every other time, after a heartbeat: 5 s of a slot otherwise.
        "WORKERS__MIN_HEARTBEAT_INTERVAL": 1,
        # How soon a component that was killed is missed; docs/faults.md says what the defaults mean.
        "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": 15,
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": 10,
        "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": 15,
        "DAG_PROCESSOR__REFRESH_INTERVAL": 10,
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 10,
        "LOGGING__NAMESPACE_LEVELS": "asyncssh=WARNING paramiko.transport=WARNING",
        "HYPERFLOW__PLANS_FOLDER": plans,
        **others,
    }
    # A task is a process: without compiled files each one compiles what it imports.
    unwanted = ("AIRFLOW__", "PYTHONDONTWRITEBYTECODE")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    environment |= {f"AIRFLOW__{key}": str(value) for key, value in settings.items()}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return environment | {"AIRFLOW_HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT)}


def _add_connections(url: str, password: str, connections: list[dict[str, Any]]) -> None:
    with httpx.Client(base_url=url, timeout=2 * BUSY_LIMIT) as client:
        answer = client.post("/auth/token", json={"username": USER, "password": password})
        client.headers["Authorization"] = f"Bearer {answer.raise_for_status().json()['access_token']}"
        for connection in connections:
            name = connection["connection_id"]
            answer = client.patch(f"/api/v2/connections/{name}", json=connection)
            if answer.status_code == httpx.codes.NOT_FOUND:
                answer = client.post("/api/v2/connections", json=connection)
            answer.raise_for_status()
