"""Which VMs are migrated and proven: remembered by their runs, so that a wave that is run again leaves them alone."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Variable

from hyperflow.hooks.records import safe

SUMMARY_KEY = "summary"  # XCom: VmSummary as JSON, of a VM's run and of a wave's task
PROVEN = "proven"  # outcome of a run whose guest was booted


def remember_proven(dag_id: str, run_id: str, summary: dict[str, Any]) -> None:
    """Remember that a run proved its VM.

    :param summary: of the run (``VmSummary`` as JSON)
    """
    Variable.set(
        _key(dag_id),
        {"run_id": run_id, "summary": summary},
        description=f"Hyperflow: run {run_id} of {dag_id} proved its VM",
        serialize_json=True,
    )


def forget_proven(dag_id: str) -> None:
    """Forget it: the VM is being migrated once more, or was rolled back."""
    if proven_run(dag_id) is not None:
        Variable.delete(_key(dag_id))


def proven_run(dag_id: str) -> dict[str, Any] | None:
    """The last run that proved the VM, ``{"run_id", "summary"}``; None when there is none."""
    found = Variable.get(_key(dag_id), default=None, deserialize_json=True)
    sound = isinstance(found, dict) and isinstance(found.get("run_id"), str) and isinstance(found.get("summary"), dict)
    return found if sound else None


def _key(dag_id: str) -> str:
    return f"hyperflow_proven_{safe(dag_id)}"
