"""A cutover whose tasks die, whose source comes back, whose record is lost: nobody loses the VM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import kvmhost
from lab.vcenter import start, stop
from tests.operators import cutover_runs

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
USER, PASSWORD = "hyperflow@vsphere.local", "correct horse"
PLAN = """
plan: cutovers
vcenter: {connection: vcenter}
profile: kvm-migration
host: {connection: kvm01, staging_directory: %(folder)s/staging, output_directory: %(folder)s/images}
networks: {"*": default}
cutover: {strategy: cold}
vms: [%(vms)s]
"""
AS_BUILT = [[True, True], [False, False]]
OFF_NETWORK = [[False, False], [False, False]]


def machine(name: str, number: int) -> dict[str, Any]:
    """A VM that runs, with an adapter that is connected and one that is not."""
    nics = [{"mac": f"00:50:56:9a:{number:02x}:{index:02x}", "network": "VM Network"} for index in (1, 2)]
    nics[1]["disconnected"] = True  # type: ignore[assignment]
    return {"name": name, "disks": [{"controller": "pvscsi"}], "powerState": "poweredOn", "nics": nics}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An Airflow with a database of its own, and the connections of a vCenter and of a KVM host that run."""
    folder = tmp_path_factory.mktemp("cutovers")
    inventory = folder / "inventory.json"
    vms = [machine(name, number) for number, name in enumerate(cutover_runs.SCENARIOS, 1)]
    inventory.write_text(json.dumps({"vms": vms}))
    source = start(folder / "vcenter", inventory, user=USER, password=PASSWORD)
    host = kvmhost.start(folder / "kvmhost")
    plan = folder / "plan.yaml"
    plan.write_text(PLAN % {"folder": folder, "vms": ", ".join(f"{{name: {name}}}" for name in cutover_runs.SCENARIOS)})
    dags = folder / "dags"
    dags.mkdir()
    (dags / "cutover_runs.py").write_text(Path(cutover_runs.__file__).read_text())
    connections = {
        "VCENTER": {
            "conn_type": "vsphere",
            "host": source.host,
            "port": source.port,
            "login": USER,
            "password": PASSWORD,
            "extra": {"thumbprint": source.thumbprint},
        },
        "KVM01": {
            "conn_type": "ssh",
            "host": host.ssh_host,
            "port": host.ssh_port,
            "login": host.ssh_user,
            "extra": {"key_file": host.key_file, "host_key": host.host_key},
        },
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW__")}
    made = {
        **kept,
        **{f"AIRFLOW_CONN_{key}": json.dumps(value) for key, value in connections.items()},
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(ROOT / "plugins"),
        "CUTOVER_PLAN": str(plan),
    }
    airflow = Path(sys.executable).parent / "airflow"
    subprocess.run([airflow, "db", "migrate"], check=True, capture_output=True, env=made)
    yield made
    for name in cutover_runs.SCENARIOS:
        for act in ("destroy", "undefine"):
            subprocess.run(["virsh", "-q", "-c", kvmhost.URI, act, f"test-{name}"], check=False, capture_output=True)
    kvmhost.stop(folder / "kvmhost")
    stop(source)


def runs(environment: dict[str, str], scenario: str) -> list[dict[str, Any]]:
    """Run a scenario's DAGs, one after the other; what each came to."""
    program = Path(environment["AIRFLOW__CORE__DAGS_FOLDER"]) / "cutover_runs.py"
    done = subprocess.run(
        [sys.executable, program, scenario], capture_output=True, text=True, check=False, env=environment
    )
    output = done.stdout + done.stderr
    found = [json.loads(line.removeprefix("RUN ")) for line in output.splitlines() if line.startswith("RUN ")]
    assert len(found) == len(cutover_runs.SCENARIOS[scenario]), output[-6000:]
    return found


def test_a_vm_that_is_cut_over_is_not_taken_for_one_that_was_off_and_is_taken_back_once(
    environment: dict[str, str],
) -> None:
    first, again, back, once_more = runs(environment, "well")
    assert (first["phase"], first["source"], first["target"]) == ("cut over", "poweredOff", "running")
    assert (first["nics"], first["states"]["rollback"]) == (OFF_NETWORK, "skipped")
    assert again["states"]["preflight"] == "failed"
    assert (again["phase"], again["source"], again["target"]) == ("cut over", "poweredOff", "running")
    for one in (back, once_more):
        assert (one["states"]["back"], one["phase"], one["source"]) == ("success", "rolled back", "poweredOn")
        assert one["nics"] == AS_BUILT
        assert "failed to get domain" in one["target"]


def test_what_fails_before_the_target_is_well_is_taken_back(environment: dict[str, str]) -> None:
    done, _ = runs(environment, "fails")
    assert (done["states"]["rollback"], done["phase"]) == ("success", "rolled back")
    assert (done["source"], done["nics"]) == ("poweredOn", AS_BUILT)


def test_what_fails_after_the_target_was_well_stops_it_no_more(environment: dict[str, str]) -> None:
    done, final = runs(environment, "after")
    assert (done["states"]["rollback"], done["phase"]) == ("skipped", "cut over")
    assert (done["source"], done["target"]) == ("poweredOff", "running")
    assert (final["phase"], final["name"]) == ("finalized", "after-migrated")


def test_what_is_final_is_not_taken_back(environment: dict[str, str]) -> None:
    _, final, back = runs(environment, "final")
    assert final["phase"] == "finalized"
    assert "that is not taken back" in back["failures"]["back"]
    assert (back["source"], back["target"]) == ("poweredOff", "running")


def test_a_source_stays_off_while_its_target_may_run_on_another_host(environment: dict[str, str]) -> None:
    _, back, off = runs(environment, "moved")
    assert "See that it is off everywhere" in back["failures"]["back"]
    assert (back["source"], back["nics"]) == ("poweredOff", OFF_NETWORK)
    assert (off["source"], off["nics"], off["phase"]) == ("poweredOn", AS_BUILT, "rolled back")


@pytest.mark.parametrize(
    ("scenario", "why"),
    [("back-on", "somebody switched it on"), ("wired", "would be on the network beside the target")],
)
def test_a_target_is_not_started_beside_a_source_that_came_back(
    environment: dict[str, str], scenario: str, why: str
) -> None:
    (done,) = runs(environment, scenario)
    assert why in done["failures"]["start"]
    assert (done["source"], done["nics"], done["phase"]) == ("poweredOn", AS_BUILT, "rolled back")


def test_a_source_that_was_on_for_a_while_is_not_replaced_by_its_older_copy(environment: dict[str, str]) -> None:
    (done,) = runs(environment, "awake")
    assert "did not stay off since its shutdown: it was switched on at" in done["failures"]["disconnect"]
    assert (done["source"], done["nics"], done["phase"]) == ("poweredOn", AS_BUILT, "rolled back")


def test_a_source_that_this_run_has_not_shut_down_is_not_replaced(environment: dict[str, str]) -> None:
    (done,) = runs(environment, "skipped")
    assert "a step before was not done by this run" in done["failures"]["disconnect"]
    assert (done["phase"], done["nics"]) == (None, [[True, False], [False, False]])


def test_a_second_try_of_the_shutdown_takes_over_what_the_first_had_done(environment: dict[str, str]) -> None:
    (done,) = runs(environment, "killed")
    assert done["states"]["shutdown"] == "success"
    assert (done["source"], done["nics"], done["phase"]) == ("poweredOn", AS_BUILT, "rolled back")


@pytest.mark.parametrize("scenario", ["forgotten", "scribbled"])
def test_a_record_that_a_person_has_deleted_or_changed_is_had_from_the_run(
    environment: dict[str, str], scenario: str
) -> None:
    (done,) = runs(environment, scenario)
    assert (done["source"], done["nics"], done["phase"]) == ("poweredOn", AS_BUILT, "rolled back")


def test_a_target_is_left_running_when_its_source_cannot_come_back(environment: dict[str, str]) -> None:
    (done,) = runs(environment, "changed")
    assert "was not begun: the network adapters of" in done["failures"]["rollback"]
    assert done["target"] == "shut off"
    assert (done["phase"], done["source"]) == ("source off the network", "poweredOff")
