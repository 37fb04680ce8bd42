"""A cutover whose tasks die, whose source comes back, whose record is lost: nobody loses the VM."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import kvmhost
from lab.vcenter import start, stop
from tests import own_airflow
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
Runs = dict[str, list[dict[str, Any]]]
OFF_NETWORK = [[False, False], [False, False]]


def machine(name: str, number: int) -> dict[str, Any]:
    """A VM that runs, with an adapter that is connected and one that is not."""
    nics = [{"mac": f"00:50:56:9a:{number:02x}:{index:02x}", "network": "VM Network"} for index in (1, 2)]
    nics[1]["disconnected"] = True  # type: ignore[assignment]
    guest = {"net": [{"mac": nics[0]["mac"], "ipAddresses": [f"192.0.2.{number}/24"]}]}  # VMware Tools run
    return {"name": name, "disks": [{"controller": "pvscsi"}], "powerState": "poweredOn", "nics": nics, "guest": guest}


def planned(name: str) -> str:
    """A VM as the plan has it."""
    return f"{{name: {name}, drift: warn}}" if name == "woken" else f"{{name: {name}}}"


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
    plan.write_text(PLAN % {"folder": folder, "vms": ", ".join(map(planned, cutover_runs.SCENARIOS))})
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
    # A port of this machine where nobody listens.
    connections["AWAY"] = {**connections["KVM01"], "port": 9}
    yield own_airflow.make(
        folder,
        **{f"AIRFLOW_CONN_{key}": json.dumps(value) for key, value in connections.items()},
        AIRFLOW__CORE__DAGS_FOLDER=str(dags),
        AIRFLOW__LOGGING__LOGGING_LEVEL="WARNING",
        CUTOVER_PLAN=str(plan),
    )
    for name in cutover_runs.SCENARIOS:
        for act in ("destroy", "undefine"):
            subprocess.run(["virsh", "-q", "-c", kvmhost.URI, act, f"test-{name}"], check=False, capture_output=True)
    kvmhost.stop(folder / "kvmhost")
    stop(source)


@pytest.fixture(scope="module")
def runs(environment: dict[str, str]) -> Runs:
    """What the runs of each scenario came to, in their order; all made by one process, as its start takes longest."""
    program = Path(environment["AIRFLOW__CORE__DAGS_FOLDER"]) / "cutover_runs.py"
    output = own_airflow.run(program, environment)
    found: Runs = {}
    for line in output.splitlines():
        if line.startswith("RUN "):
            told = json.loads(line.removeprefix("RUN "))
            found.setdefault(told["scenario"], []).append(told)
    counts = {name: len(dags) for name, dags in cutover_runs.SCENARIOS.items()}
    assert {name: len(each) for name, each in found.items()} == counts, output[-6000:]
    return found


def test_a_vm_that_is_cut_over_is_not_taken_for_one_that_was_off_and_is_taken_back_once(
    runs: Runs,
) -> None:
    first, again, back, once_more = runs["well"]
    assert (first["phase"], first["source"], first["target"]) == ("cut over", "poweredOff", "running")
    assert (first["nics"], first["states"]["rollback"]) == (OFF_NETWORK, "skipped")
    assert first["mark"].startswith("cut over by migrate.cutovers.well, run ")
    assert first["mark"].endswith(", to well on kvm01")
    assert "its target on kvm01 is the machine now" in again["failures"]["preflight"]
    assert (again["phase"], again["source"], again["target"]) == ("cut over", "poweredOff", "running")
    for one in (back, once_more):
        assert (one["states"]["back"], one["phase"], one["source"]) == ("success", "rolled back", "poweredOn")
        assert (one["nics"], one["mark"]) == (AS_BUILT, None)
        assert "failed to get domain" in one["target"]


def test_what_fails_before_the_target_is_well_is_taken_back(runs: Runs) -> None:
    done, _ = runs["fails"]
    assert (done["states"]["rollback"], done["phase"]) == ("success", "rolled back")
    assert (done["source"], done["nics"]) == ("poweredOn", AS_BUILT)
    assert (done["taken_back"]["guest"], done["taken_back"]["warnings"]) == (True, []), "its guest answers again"


def test_what_fails_after_the_target_was_well_stops_it_no_more(runs: Runs) -> None:
    done, final = runs["after"]
    assert (done["states"]["rollback"], done["phase"]) == ("skipped", "cut over")
    assert (done["source"], done["target"]) == ("poweredOff", "running")
    assert (final["phase"], final["name"]) == ("finalized", "after-migrated")


def test_a_target_that_was_well_is_not_cleaned_up_though_its_run_failed_and_it_is_off(runs: Runs) -> None:
    (done,) = runs["kept"]
    assert (done["states"]["rollback"], done["states"]["cleanup"], done["phase"]) == ("skipped", "success", "cut over")
    assert (done["target"], done["noted"]) == ("shut off", []), "the janitor does not undefine it either"


def test_a_target_that_never_was_well_is_undefined(runs: Runs) -> None:
    (done,) = runs["undone"]
    assert (done["states"]["cleanup"], done["phase"], done["noted"]) == ("success", "rolled back", [])
    assert "failed to get domain" in done["target"]


def test_what_is_final_is_not_taken_back(runs: Runs) -> None:
    _, final, back = runs["final"]
    assert final["phase"] == "finalized"
    assert "that is not taken back" in back["failures"]["back"]
    assert (back["source"], back["target"]) == ("poweredOff", "running")


def test_a_finalize_that_died_is_gone_on_with_and_not_taken_back(runs: Runs) -> None:
    _, back, final = runs["dying"]
    assert "a finalize was begun" in back["failures"]["back"]
    assert (back["phase"], back["source"], back["target"]) == ("finalizing", "poweredOff", "running")
    assert (final["phase"], final["name"]) == ("finalized", "dying-migrated")


def test_a_finalize_that_changed_nothing_takes_no_way_back(runs: Runs) -> None:
    _, final, back = runs["taken"]
    assert "the name is taken" in final["failures"]["finalize"]
    assert (final["phase"], final["name"], final["target"]) == ("finalizing", "taken", "running")
    assert (back["phase"], back["source"], back["nics"]) == ("rolled back", "poweredOn", AS_BUILT)


@pytest.mark.parametrize(
    ("scenario", "found", "left"),
    [("moved", "no such domain", "failed to get domain"), ("elsewhere", "shut off", "shut off")],
)
def test_a_source_stays_off_while_its_target_may_run_on_another_host(
    runs: Runs, scenario: str, found: str, left: str
) -> None:
    _, back, off = runs[scenario]
    assert f"where it was well (found {found})" in back["failures"]["back"]
    assert "See that it is off everywhere" in back["failures"]["back"]
    assert (back["source"], back["nics"], back["phase"]) == ("poweredOff", OFF_NETWORK, "cut over")
    assert left in back["target"]
    assert "failed to get domain" in off["target"]
    assert (off["source"], off["nics"], off["phase"]) == ("poweredOn", AS_BUILT, "rolled back")


@pytest.mark.parametrize(
    ("scenario", "why"),
    [("back-on", "somebody switched it on"), ("wired", "would be on the network beside the target")],
)
def test_a_target_is_not_started_beside_a_source_that_came_back(runs: Runs, scenario: str, why: str) -> None:
    (done,) = runs[scenario]
    assert why in done["failures"]["start"]
    assert (done["source"], done["nics"], done["phase"]) == ("poweredOn", AS_BUILT, "rolled back")


def test_a_target_that_is_well_is_not_taken_back_where_only_its_host_could_tell(runs: Runs) -> None:
    done, stranger = runs["unheard"]
    assert (done["states"]["rollback"], done["target"], done["source"]) == ("skipped", "running", "poweredOff")
    assert (done["phase"], done["nics"]) == ("cut over", OFF_NETWORK)
    assert "is marked by a cutover that this Airflow does not know" in stranger["failures"]["preflight"]
    assert (stranger["target"], stranger["source"], stranger["nics"]) == ("running", "poweredOff", OFF_NETWORK)
    (beside,) = runs["unheard-on"]  # the same, and somebody has switched its source on
    assert (beside["phase"], beside["source"], beside["nics"]) == ("rolled back", "poweredOn", AS_BUILT)
    assert "failed to get domain" in beside["target"]


def test_a_source_that_was_on_for_a_while_is_not_replaced_by_its_older_copy(runs: Runs) -> None:
    (done,) = runs["awake"]
    assert "did not stay off since its shutdown: it was switched on at" in done["failures"]["disconnect"]
    assert (done["source"], done["nics"], done["phase"]) == ("poweredOn", AS_BUILT, "rolled back")


def test_a_source_that_this_run_has_not_shut_down_is_not_replaced(runs: Runs) -> None:
    (done,) = runs["skipped"]
    assert "a step before was not done by this run" in done["failures"]["disconnect"]
    assert (done["phase"], done["nics"]) == (None, [[True, False], [False, False]])


def test_a_second_try_of_the_shutdown_takes_over_what_the_first_had_done(runs: Runs) -> None:
    (done,) = runs["killed"]
    assert done["states"]["shutdown"] == "success"
    assert (done["source"], done["nics"], done["phase"]) == ("poweredOn", AS_BUILT, "rolled back")


def test_a_run_that_is_cleared_as_a_whole_in_its_middle_gives_the_source_back(runs: Runs) -> None:
    (done,) = runs["cleared"]
    assert (done["states"]["preflight"], done["states"]["rollback"]) == ("failed", "success")
    assert (done["source"], done["nics"], done["phase"]) == ("poweredOn", AS_BUILT, "rolled back")


@pytest.mark.parametrize("scenario", ["forgotten", "scribbled"])
def test_a_record_that_a_person_has_deleted_or_changed_is_had_from_the_run(runs: Runs, scenario: str) -> None:
    (done,) = runs[scenario]
    assert (done["source"], done["nics"], done["phase"]) == ("poweredOn", AS_BUILT, "rolled back")


def test_a_target_is_left_running_when_its_source_cannot_come_back(runs: Runs) -> None:
    (done,) = runs["changed"]
    assert "was not begun: the network adapters of" in done["failures"]["rollback"]
    assert (done["target"], done["noted"]) == ("shut off", ["domain"]), "the cleanup undefines it as little"
    assert (done["phase"], done["source"]) == ("source off the network", "poweredOff")


def test_a_rollback_whose_host_is_away_changes_nothing_unless_a_person_answers_for_the_target(runs: Runs) -> None:
    _, back, off = runs["dark"]
    assert "connection away" in back["failures"]["back"]
    assert (back["phase"], back["source"], back["target"]) == ("cut over", "poweredOff", "running")
    assert (off["phase"], off["source"], off["nics"]) == ("rolled back", "poweredOn", AS_BUILT)
    (warning,) = off["taken_back"]["warnings"]
    assert "dark may still be defined there: undefine it" in warning


def test_a_host_that_is_lost_before_the_target_was_started_keeps_no_source_off(runs: Runs) -> None:
    (done,) = runs["early"]
    assert (done["states"]["rollback"], done["phase"]) == ("success", "rolled back")
    assert (done["source"], done["nics"]) == ("poweredOn", AS_BUILT)
    assert "early may still be defined there" in done["taken_back"]["warnings"][0]


def test_a_target_that_an_earlier_try_has_stopped_is_not_taken_for_one_that_was_moved(runs: Runs) -> None:
    _, back = runs["untold"]
    assert (back["phase"], back["source"], back["nics"]) == ("rolled back", "poweredOn", AS_BUILT)
    _, moved = runs["slipped"]  # the same, but its stop had failed, and somebody has moved it since
    assert "where it was well (found no such domain)" in moved["failures"]["back"]
    assert (moved["phase"], moved["source"], moved["nics"]) == ("rolling back", "poweredOff", OFF_NETWORK)


def test_what_alone_can_tell_that_a_target_was_well_is_kept(runs: Runs) -> None:
    (done,) = runs["unasked"]
    assert (done["states"]["rollback"], done["states"]["cleanup"]) == ("failed", "success")
    assert (done["phase"], done["target"], done["source"]) == ("target started", "running", "poweredOff")
    assert done["jobs"] == ["start"]


def test_a_source_that_came_on_since_preflight_is_brought_back_on(runs: Runs) -> None:
    (done,) = runs["woken"]
    assert (done["states"]["shutdown"], done["failures"].get("shutdown")) == ("success", None)
    assert (done["source"], done["nics"], done["phase"]) == ("poweredOn", AS_BUILT, "rolled back")


def test_a_power_cut_is_told_also_by_a_try_that_finds_the_source_off(runs: Runs) -> None:
    (done,) = runs["cut"]
    assert done["shutdown"]["forced"] is True
    assert "the source was powered off hard: its file systems are as after a power cut" in done["shutdown"]["warnings"]
    (shut_down,) = runs["killed"]
    assert shut_down["shutdown"]["forced"] is False


def test_the_domain_of_a_run_that_proved_its_vm_before_it_was_cleared_stays(runs: Runs) -> None:
    (done,) = runs["proven"]
    assert (done["states"]["cleanup"], done["target"], done["noted"]) == ("success", "shut off", [])


def test_a_source_is_not_shut_down_when_the_window_has_closed(runs: Runs) -> None:
    late, asked = runs["late"]
    assert "the run's window closed at 2026-11-01 04:00" in late["failures"]["shutdown"]
    assert "Shut it down?: the run's window closed at 2026-11-01 04:00" in asked["failures"]["approve"]
    assert asked["states"]["shutdown"] == "upstream_failed"
    for one in (late, asked):
        assert (one["phase"], one["source"], one["nics"]) == (None, "poweredOn", AS_BUILT)
