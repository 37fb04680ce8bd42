"""What forks tasks has imported Hyperflow before; a task that starts by itself imports only what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hyperflow.workflows.ahead import modules

ROOT = Path(__file__).resolve().parents[2]
# As Airflow's components do when they start: a job tells listeners, for which all plugins are loaded.
LOAD = """
import json, sys
if sys.argv[1] == "component":
    import airflow.jobs.job
from airflow.plugins_manager import _get_plugins
_, faults = _get_plugins()
print(json.dumps({"faults": faults, "modules": [name for name in sys.modules if name.startswith("hyperflow.")]}))
"""


def imported(tmp_path: Path, what: str) -> set[str]:
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, what], env=environment, capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["faults"] == {}
    return set(answer["modules"])


def test_a_component_that_forks_tasks_imports_everything_that_they_may_need(tmp_path: Path) -> None:
    assert set(modules()) <= imported(tmp_path, "component")


def test_what_is_imported_ahead_holds_all_operators_triggers_and_libraries() -> None:
    files = {
        f"hyperflow.{path.parent.name}.{path.stem}"
        for folder in ("operators", "triggers", "hooks", "vsphere", "plans", "manifest", "workflows", "errors")
        for path in (ROOT / "plugins" / "hyperflow" / folder).glob("*.py")
        if path.stem != "__init__"
    }
    assert files <= set(modules())
    assert not [name for name in modules() if name.startswith(("hyperflow.kvmhost", "hyperflow.cli"))]


def test_a_task_that_loads_plugins_by_itself_imports_no_operator_for_it(tmp_path: Path) -> None:
    assert "hyperflow.operators.export" not in imported(tmp_path, "task")
