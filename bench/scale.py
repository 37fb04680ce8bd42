"""1,000 planned VMs in waves on Airflow with PostgreSQL: what orchestrating a task costs, and whether any gets stuck.

Everything is real but the work: plans, DAGs of VMs and of waves, operators, triggers, pools, PostgreSQL, Airflow's four
components with a LocalExecutor. ``simulated.py`` answers for the KVM hosts and the vCenter, at once.

``wave_1000_s_per_task`` is throughput: seconds of wall time from when 10 % of the tasks had ended to when 90 % had,
divided by the tasks that ended between. At steady state that is what a task costs the machine that orchestrates; all
else (scheduler, API server, database, triggerer, the re-reading of 1,000 VMs) goes on meanwhile and is in it. A task
that waits for a job on a host is started twice, and counts once. The other thing that could be meant, how long a run
waits between one task's end and the next one's start, depends on how many runs share the machine; it is in the notes.

Moving all 1,000 VMs takes hours on two cores. So all are planned, read and kept by Airflow, and waves of them are moved
until :data:`MINUTES` are over; those that have begun are finished.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from hyperflow.cli.airflow_api import AirflowApi
from hyperflow.cli.limits import limits
from hyperflow.plans.load import load_plan
from rich.console import Console

from bench import postgres, simulated
from bench.results import Result
from bench.stages import BenchError
from lab import airflow, processes

PLANS = 10
VMS_PER_PLAN = 100
VMS_PER_WAVE = 25
FIRST = 5  # VMs of a wave that the others come after
WAVES_AT_ONCE = 2
IN_FLIGHT = 8  # VMs of one wave
PARALLELISM = (
    6  # task processes at once, on two cores: every other one waits for up to a second until it is seen to end
)
MINUTES = float(os.environ.get("BENCH_MINUTES", "12"))  # after which no further wave is started
GOAL = 1.0  # seconds
READ_LIMIT = 600.0  # seconds for Airflow to have read 1,000 VMs
STUCK = 300.0  # seconds without a task that ends, while runs are at work
SAMPLE = 5.0  # seconds between two looks at the database
SETTINGS = Path("config", "airflow_local_settings.py")  # in Airflow's home: policies of an installation
POLICIES = """from bench.simulated import simulate_for_triggers, task_policy

simulate_for_triggers()
"""
UNDER_WAY = "SELECT count(*) FROM dag_run WHERE state IN ('queued', 'running')"
ENDED = "SELECT count(*) FROM task_instance WHERE end_date IS NOT NULL"
TAKEN = """
    SELECT pool, slots, sum(pool_slots) FROM task_instance JOIN slot_pool USING (pool)
    WHERE state IN ('queued', 'running') OR (state = 'deferred' AND include_deferred)
    GROUP BY pool, slots"""


@dataclass
class Watched:
    """What was seen while waves were moved.

    :param fullest: pool -> largest number of its slots that were taken, over all samples
    :param cpu: seconds of CPU time of each component, and of what it has started
    """

    samples: int = 0
    fullest: dict[str, tuple[int, int]] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def measure(folder: Path, console: Console) -> Result:
    """Move waves of VMs, and see that every run, limit and report is as it must be."""
    plans = folder / "plans"
    write_plans(plans)
    with postgres.running() as database, _airflow(folder, plans, database.socket) as api:
        socket = database.socket
        seconds_to_read = wait_for_dags(socket)
        console.print(f"Airflow has read {PLANS * VMS_PER_PLAN} VMs after {seconds_to_read:.0f} s")
        files = sorted(plans.glob("*.yaml"))
        with redirect_stdout(io.StringIO()) as said:  # a line for each of many pools
            if limits(files, apply=True, endpoint=folder / "airflow.json"):
                raise BenchError(f"the pools could not be made: {said.getvalue()[-2000:]}")
        servers = [database.server, *processes.load(folder / "airflow-servers.json")]
        runs, watched = move(api, socket, files, servers, console)
        tasks = require_success(socket)
        require_reports(folder / "airflow", runs)
        gaps = sorted(_gaps(api, socket))
        again = _count(socket, "SELECT count(*) FROM task_instance WHERE try_number > 1")
    steady = throughput([end for _, end in tasks])
    notes = {
        "planned_vms": PLANS * VMS_PER_PLAN,
        "moved_vms": len(runs) * VMS_PER_WAVE,
        "waves": len(runs),
        "tasks": len(tasks),
        "tasks_tried_again": again,
        "seconds": round(watched.seconds),
        "seconds_until_all_dags_were_read": round(seconds_to_read),
        "gap_between_tasks_s": {"median": _at(gaps, 0.5), "p95": _at(gaps, 0.95)},
        "parallelism": PARALLELISM,
        "vms_in_flight": WAVES_AT_ONCE * IN_FLIGHT,
        "pools_most_taken_of": watched.fullest,
        "samples": watched.samples,
        "cpu_s_per_task": {name: round(value / len(tasks), 3) for name, value in watched.cpu.items()},
        "simulated": "KVM hosts and vCenter, which answer at once",
    }
    return Result("wave_1000_s_per_task", steady, None, GOAL, "s", {"ours": [steady]}, notes)


def write_plans(folder: Path) -> None:
    """Write plans of 1,000 VMs, each plan with a host of its own and its VMs in waves."""
    folder.mkdir(exist_ok=True)
    for number in range(PLANS):
        names = [f"vm-{number * VMS_PER_PLAN + index:04}" for index in range(VMS_PER_PLAN)]
        waves = []
        for begin in range(0, VMS_PER_PLAN, VMS_PER_WAVE):
            members = names[begin : begin + VMS_PER_WAVE]
            waves.append(
                {
                    "name": f"wave-{begin // VMS_PER_WAVE}",
                    "members": members,
                    "groups": {"first": members[:FIRST], "others": members[FIRST:]},
                    "after": {"others": ["first"]},
                    "max_in_flight": IN_FLIGHT,
                }
            )
        plan = {
            "plan": f"plan-{number}",
            "vcenter": {"connection": "vc"},
            "profile": "kvm-migration",
            "host": {
                "connection": f"kvm{number:02}",
                "staging_directory": "/srv/staging",
                "output_directory": "/srv/images",
            },
            "networks": {"*": "default"},
            "pools": {"nfc_streams_per_esxi": 8, "jobs_per_host": 8, "guests_per_host": 4},
            "vms": [{"name": name} for name in names],
            "waves": waves,
        }
        (folder / f"plan-{number}.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))


@contextmanager
def _airflow(folder: Path, plans: Path, socket: Path) -> Iterator[AirflowApi]:
    home = folder / "airflow"
    (home / SETTINGS).parent.mkdir(parents=True)
    (home / SETTINGS).write_text(POLICIES)
    (home / simulated.JOBS).mkdir()
    settings = {
        "DATABASE__SQL_ALCHEMY_CONN": postgres.url(socket),
        "CORE__PARALLELISM": PARALLELISM,
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 120,  # as in docker-compose.yaml
        # 1,000 VMs are read and stored in some 20 s of CPU, and in several times that beside tasks that take all of it:
        # Airflow gives a file 30 s and its storing 50 s, and what is not read in time counts as gone.
        "CORE__DAGBAG_IMPORT_TIMEOUT": 300,
        "DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": 600,
        # As Airflow has them: the lab misses components that were killed sooner.
        "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": 30,
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": 300,
        "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": 30,
    }
    try:
        yield AirflowApi(airflow.start(folder, connections(), plans, settings))
    finally:
        airflow.stop(folder)


def connections() -> list[dict[str, Any]]:
    """Describe the simulated machines as Airflow's REST API takes them."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti"
    hosts = [
        {
            "connection_id": f"kvm{number:02}",
            "conn_type": "ssh",
            "host": "127.0.0.1",
            "login": "root",
            "extra": json.dumps({"host_key": key}),
        }
        for number in range(PLANS)
    ]
    access = {"host": "127.0.0.1", "login": "nobody", "password": "nothing"}
    return [*hosts, {"connection_id": "vc", "conn_type": "vsphere", **access}]


def wait_for_dags(socket: Path) -> float:
    """Wait until Airflow knows all DAGs.

    :return: seconds
    """
    begun = time.monotonic()
    while time.monotonic() - begun < READ_LIMIT:
        vms = _count(socket, "SELECT count(*) FROM serialized_dag WHERE dag_id LIKE 'migrate.%'")
        waves = _count(socket, "SELECT count(*) FROM serialized_dag WHERE dag_id LIKE 'wave.%'")
        if (vms, waves) == (PLANS * VMS_PER_PLAN, PLANS * VMS_PER_PLAN // VMS_PER_WAVE):
            return time.monotonic() - begun
        time.sleep(1)
    raise BenchError(f"after {READ_LIMIT:.0f} s Airflow knows {vms} VMs and {waves} waves")


def move(
    api: AirflowApi, socket: Path, files: list[Path], servers: list[processes.Server], console: Console
) -> tuple[list[tuple[str, str]], Watched]:
    """Start waves, some at a time, until the time is over, and wait for the end of each.

    :return: DAG and run of each wave
    """
    # One wave of each plan after the other, so that those that are at work have hosts of their own.
    plans = [load_plan(file) for file in files]
    waiting = [wave.dag_id for several in zip(*(plan.waves for plan in plans), strict=True) for wave in several]
    runs: list[tuple[str, str]] = []
    watched = Watched()
    begun = changed = time.monotonic()
    before, ended = _cpu(servers), 0
    while True:
        active = _count(socket, UNDER_WAY + " AND dag_id LIKE 'wave.%'")
        now = time.monotonic()
        while waiting and active < WAVES_AT_ONCE and (not runs or now - begun < MINUTES * 60):
            dag_id = waiting.pop(0)
            api.unpause(dag_id)
            runs.append((dag_id, api.trigger(dag_id, {})))
            console.print(f"{now - begun:.0f} s: started {dag_id}")
            active += 1
        if not active and not _count(socket, UNDER_WAY):
            break
        if (count := _count(socket, ENDED)) != ended:
            ended, changed = count, now
        if gone := [server.name for server in servers if not server.is_alive()]:
            raise BenchError(f"{', '.join(gone)} ended while waves were at work")
        if failed := _rows(socket, "SELECT dag_id, run_id FROM dag_run WHERE state = 'failed' LIMIT 1"):
            raise BenchError(f"{failed[0][0]} {failed[0][1]} failed: {_states(socket)}")
        if now - changed > STUCK:
            raise BenchError(f"no task has ended for {STUCK:.0f} s: {_states(socket)}")
        _heed_pools(socket, watched)
        time.sleep(SAMPLE)
    watched.seconds = time.monotonic() - begun
    watched.cpu = {name: value - before.get(name, 0.0) for name, value in _cpu(servers).items()}
    return runs, watched


def _heed_pools(socket: Path, watched: Watched) -> None:
    for pool, slots, taken in _rows(socket, TAKEN):
        if taken > slots:
            raise BenchError(f"pool {pool}: {taken} of its {slots} slots are taken")
        if taken > watched.fullest.get(pool, (0, 0))[0]:
            watched.fullest[pool] = (int(taken), slots)
    watched.samples += 1


def require_success(socket: Path) -> list[tuple[datetime, datetime]]:
    """See that each run and each task is over and well.

    :return: start and end of each task
    :raises BenchError: naming those that are not
    """
    wrong = _rows(socket, "SELECT dag_id, run_id, state FROM dag_run WHERE state <> 'success'")
    wrong += _rows(
        socket,
        "SELECT dag_id, task_id, coalesce(state, 'none') FROM task_instance WHERE coalesce(state, '') <> 'success'",
    )
    if wrong:
        raise BenchError("; ".join(f"{dag} {what} is {state}" for dag, what, state in wrong[:20]))
    return [(start, end) for start, end in _rows(socket, "SELECT start_date, end_date FROM task_instance")]


def require_reports(home: Path, runs: list[tuple[str, str]]) -> None:
    """See that each wave has its report, in which all VMs are migrated."""
    reports = list((home / "hyperflow").glob("wave.*/*/wave-report.json"))
    if len(reports) != len(runs):
        raise BenchError(f"found {len(reports)} wave reports, expected {len(runs)}")
    for path in reports:
        report = json.loads(path.read_text())
        outcomes = Counter(vm["outcome"] for vm in report["vms"])
        if outcomes != {"migrated": VMS_PER_WAVE}:
            raise BenchError(f"{path}: found {dict(outcomes)}, expected {VMS_PER_WAVE} migrated")


def throughput(ends: list[datetime]) -> float:
    """Seconds for each task, over the middle of the run: from when 10 % of the tasks had ended to when 90 % had."""
    ends = sorted(ends)
    first, last = len(ends) // 10, len(ends) * 9 // 10
    return (ends[last] - ends[first]).total_seconds() / (last - first)


def _gaps(api: AirflowApi, socket: Path) -> Iterator[float]:
    """Seconds from the end of the last task that one waited for to its start, in the runs of VMs."""
    (dag_id,) = _rows(socket, "SELECT dag_id FROM dag_run WHERE dag_id LIKE 'migrate.%' LIMIT 1")[0]
    tasks = api.request("GET", f"/api/v2/dags/{dag_id}/tasks")["tasks"]
    upstream: dict[str, list[str]] = {}
    for task in tasks:
        for following in task["downstream_task_ids"]:
            upstream.setdefault(following, []).append(task["task_id"])
    times: dict[str, dict[str, tuple[datetime, datetime]]] = {}
    query = "SELECT dag_id, task_id, start_date, end_date FROM task_instance WHERE dag_id LIKE 'migrate.%'"
    for dag, task_id, start, end in _rows(socket, query):
        times.setdefault(dag, {})[task_id] = (start, end)
    for ran in times.values():
        for task_id, before in upstream.items():
            yield (ran[task_id][0] - max(ran[each][1] for each in before)).total_seconds()


def _at(values: list[float], share: float) -> float:
    return round(values[min(int(len(values) * share), len(values) - 1)], 3)


def _states(socket: Path) -> str:
    query = "SELECT coalesce(state, 'none'), count(*) FROM task_instance GROUP BY 1 ORDER BY 1"
    return ", ".join(f"{count} {state}" for state, count in _rows(socket, query))


def _count(socket: Path, query: str) -> int:
    return int(_rows(socket, query)[0][0])


def _rows(socket: Path, query: str) -> list[tuple[Any, ...]]:
    connection = postgres.connect(socket)
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()
    finally:
        connection.close()


def _cpu(servers: list[processes.Server]) -> dict[str, float]:
    """Sum up the CPU time of each server, and of what it has started: of what is over as well."""
    tick = os.sysconf("SC_CLK_TCK")
    names = {server.pid: server.name for server in servers}
    used: dict[str, float] = defaultdict(float)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parent, session = int(fields[1]), int(fields[3])
        own, of_children = sum(map(int, fields[11:13])) / tick, sum(map(int, fields[13:15])) / tick
        if (leader := int(stat.parent.name)) in names:
            used[names[leader]] += own
            used[f"{names[leader]}'s children"] += of_children
        elif server := names.get(session) or names.get(parent):  # PostgreSQL gives each of its own a session
            used[f"{server}'s children"] += own + of_children
    return used
