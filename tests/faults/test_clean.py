"""The measure of the other tests here: a quick run without a fault succeeds and leaves nothing."""

from __future__ import annotations

import pytest

from lab import leftovers
from lab.running import RunningLab

pytestmark = pytest.mark.lab


def test_a_quick_run_succeeds_and_leaves_only_its_files(running_lab: RunningLab) -> None:
    dag_id, run_id = running_lab.quick_run("clean", "small01")
    assert running_lab.wait(dag_id, run_id) == "success"
    report = running_lab.report(dag_id, run_id)
    assert report["errors"] == []
    assert leftovers.of_run(running_lab, "clean", "small01", failed=False) == []
    folder = running_lab.folders.images / "clean" / "small01"
    assert (folder / "disk-0.qcow2").exists()
