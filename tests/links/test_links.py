"""Tasks link to the pages of their run, also when Airflow knows the DAG only as it was serialized."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.execution_time.xcom import XCom
from airflow.serialization.serialized_objects import DagSerialization
from hyperflow.links.run import (
    ConsoleLogLink,
    ReportLink,
    RunLink,
    ScreenshotLink,
    VmReportLink,
    VmRunLink,
    WaveReportLink,
)
from hyperflow.plans.load import load_plan
from hyperflow.workflows.convert_manifest import build_conversion
from hyperflow.workflows.migration import build_dag
from hyperflow.workflows.wave import build_wave

PLAN = """
plan: p
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
people: {alice: {}}
vms:
  - {name: web01}
  - {name: cold, cutover: {strategy: cold, approval: {by: [alice]}, health: {ports: [22]}}}
waves: [{name: first, members: ["*"], approval: {by: [alice]}}]
"""
FOLDER = "manual__2026-11-23T21_00_00_00_00"  # of KEY's run
KEY = SimpleNamespace(dag_id="migrate.p.web01", run_id="manual__2026-11-23T21:00:00+00:00")
RUN = "/hyperflow/runs/migrate.p.web01/manual__2026-11-23T21%3A00%3A00%2B00%3A00/"


@pytest.mark.parametrize(
    ("link", "page"),
    [
        (ReportLink(), ""),
        (WaveReportLink(), "wave"),
        (ConsoleLogLink(), "console.log"),
        (ScreenshotLink(), "screenshot.png"),
    ],
)
def test_a_link_leads_to_a_page_of_the_tasks_own_run(link: RunLink, page: str) -> None:
    assert link.get_link(None, ti_key=KEY) == RUN + page  # type: ignore[arg-type]


def test_a_link_stays_below_the_path_that_airflow_is_served_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://example.org/airflow/")
    assert ReportLink().get_link(None, ti_key=KEY) == f"/airflow{RUN}"  # type: ignore[arg-type]


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__RECORDS_FOLDER", str(tmp_path / "records"))
    return tmp_path / "records"


def served(folder: Path, what: str) -> Any:
    """A DAG as the API server has it: made of what the DAG processor has written, and the plugin."""
    (folder / "p.yaml").write_text(PLAN)
    plan = load_plan(folder / "p.yaml")
    dags: dict[str, DAG] = {vm.slug: build_dag(plan, vm) for vm in plan.vms}
    dags |= {"wave": build_wave(plan, plan.wave("first")), "conversion": build_conversion()}
    return DagSerialization.from_dict(DagSerialization.to_dict(dags[what]))


def links(task: Any, key: Any = KEY) -> dict[str, str]:
    """What Airflow shows of a task's links: those that lead somewhere."""
    found = {name: task.get_extra_links(SimpleNamespace(key=key), name) for name in task.extra_links}
    return {name: link for name, link in found.items() if link}


@pytest.mark.parametrize("vm", ["web01", "cold"])
def test_every_task_of_a_vm_links_to_report_console_and_screen_when_they_are_there(
    tmp_path: Path, records: Path, vm: str
) -> None:
    tasks = served(tmp_path, vm).task_dict
    assert {"preflight", "export", "boot", "report"} <= set(tasks) and ("approve_start" in tasks) == (vm == "cold")
    assert [links(task) for task in tasks.values()] == [{}] * len(tasks)

    folder = records / KEY.dag_id / FOLDER
    folder.mkdir(parents=True)
    for name in ("report.json", "console.log", "screenshot.png"):
        (folder / name).write_bytes(b"")
    there = {"Report": RUN, "Console log": f"{RUN}console.log", "Boot screenshot": f"{RUN}screenshot.png"}
    for name, task in tasks.items():
        assert links(task) == there, name


def test_tasks_of_a_vm_keep_no_links_themselves(tmp_path: Path) -> None:
    """Each would be an XCom of each try."""
    (tmp_path / "p.yaml").write_text(PLAN)
    plan = load_plan(tmp_path / "p.yaml")
    assert [task.task_id for vm in plan.vms for task in build_dag(plan, vm).tasks if task.operator_extra_links] == []


def test_every_task_of_a_conversion_links_to_its_report(tmp_path: Path, records: Path) -> None:
    (records / KEY.dag_id / FOLDER).mkdir(parents=True)
    (records / KEY.dag_id / FOLDER / "report.json").write_bytes(b"")
    tasks = served(tmp_path, "conversion").task_dict
    for name, task in tasks.items():
        assert links(task) == {"Report": RUN}, name


def test_every_task_of_a_wave_links_to_its_report_and_those_of_vms_to_that_of_the_vms_run(
    tmp_path: Path, records: Path
) -> None:
    tasks = served(tmp_path, "wave").task_dict
    named = {name: set(task.extra_links) for name, task in tasks.items()}
    of_vms = {"Wave report", "Run of the VM", "Report of the VM"}
    assert named == {name: of_vms if name.startswith("vms.") else {"Wave report"} for name in tasks}
    folder = records / KEY.dag_id / FOLDER
    folder.mkdir(parents=True)
    (folder / "wave-report.html").write_bytes(b"")
    assert links(tasks["check"]) == links(tasks["report"]) == {"Wave report": f"{RUN}wave"}


@pytest.mark.parametrize(
    ("started", "state", "xcoms", "run"),
    [
        ("r.1", "deferred", {}, "r.1"),
        (None, "success", {"summary": {"run_id": "r.1"}, "trigger_run_id": "r.1"}, "r.1"),
        (None, "success", {"summary": {"run_id": "of:another wave"}}, "of%3Aanother%20wave"),
        (None, "failed", {"trigger_run_id": "r.2"}, "r.2"),
        (None, "failed", {}, None),
        (None, "skipped", {"trigger_run_id": "asked for in vain"}, None),
    ],
    ids=["begins-to-wait", "over", "done-already", "left-no-summary", "not-begun", "skipped"],
)
def test_a_waves_task_links_to_the_run_that_it_started_or_found(
    monkeypatch: pytest.MonkeyPatch, started: str | None, state: str, xcoms: dict[str, Any], run: str | None
) -> None:
    monkeypatch.setattr(XCom, "get_value", lambda *, ti_key, key: xcoms.get(key))
    operator: Any = SimpleNamespace(trigger_dag_id="migrate.p.web01", trigger_run_id=started)
    task: Any = SimpleNamespace(dag_id="wave.p.first", run_id="w", task_id="vms.web01", map_index=-1, state=state)
    found = [link.get_link(operator, ti_key=task) for link in (VmReportLink(), VmRunLink())]
    assert found == (
        [f"/hyperflow/runs/migrate.p.web01/{run}/", f"/dags/migrate.p.web01/runs/{run}"] if run else ["", ""]
    )


def test_loading_the_plugin_imports_neither_the_api_server_nor_jinja_templates_of_ours() -> None:
    code = (
        "import sys, airflow.plugins_manager; known = set(sys.modules); import hyperflow_plugin; "
        "new = set(sys.modules) - known; "
        "print([name for name in new if name.startswith(('fastapi', 'hyperflow.ui.app', 'hyperflow.operators', "
        "'airflow.api_fastapi'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
