"""A wave and its VMs that drift."""

from __future__ import annotations

from pathlib import Path

from tests.workflows import wave_runs

PLAN = """
plan: autumn
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms:
  - {name: over, drift: start-over}
  - {name: twice, drift: start-over}
  - {name: stop}
waves:
  - {name: first, members: ["*"]}
"""


def test_a_vm_that_drifted_starts_over_once_where_its_plan_says_so(tmp_path: Path) -> None:
    ends = {"over": ["drifted", "migrated"], "twice": ["drifted", "drifted"], "stop": ["drifted"]}

    (told,) = wave_runs.run(tmp_path, PLAN, wave_runs.Story([("first", {})], ends))

    assert {slug: len(runs) for slug, runs in told.runs.items()} == {"over": 2, "twice": 2, "stop": 1}
    vms = {vm["slug"]: vm for vm in told.report["vms"]}
    assert told.outcomes() == {"over": "migrated", "twice": "failed", "stop": "failed"}
    assert vms["over"]["run_id"].endswith(".2")
    assert "drifted" not in vms["over"]
    assert vms["twice"]["drifted"] and vms["stop"]["drifted"]
