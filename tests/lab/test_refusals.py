"""What cannot be migrated is refused by the first task, in words that help, with nothing created anywhere."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hyperflow.cli.migrate import migrate

from lab import inventory, lab, processes
from lab.running import RunningLab

pytestmark = pytest.mark.lab

PLAN = "refusals"


@dataclass(frozen=True)
class Refusal:
    """A run that must be refused.

    :param vm: as the plan names it
    :param words: what the error must say
    :param conf: the run's settings
    :param settings: of the plan
    """

    vm: dict[str, str]
    words: tuple[str, ...]
    conf: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def small(number: int) -> dict[str, str]:
    """A VM of its own, for a refusal that comes after preflight has taken the VM: one run at a time may have one."""
    return {"inventory_path": f"{inventory.SMALL_FOLDER}/small{number:02d}"}


WEB = {"inventory_path": "/DC0/vm/Production/web01"}
REFUSALS = {
    "unknown": Refusal({"name": "web0l"}, ("no virtual machine 'web0l'", "'web01'")),
    "two-of-one-name": Refusal({"name": "app01"}, ("2 virtual machines", "Blue/app01", "Green/app01")),
    "independent-disk": Refusal({"name": "independent01"}, ("independent",)),
    "raw-device": Refusal({"name": "rdm01"}, ("raw device", "rdm-physical")),
    "shared-disk": Refusal({"name": "shared01"}, ("shared",)),
    "earlier-snapshot": Refusal({"name": "snap01"}, ("before-upgrade",)),
    "no-disk": Refusal({"name": "diskless01"}, ("disk",)),
    "unknown-setting": Refusal(WEB, ("skip_boots", "skip_boot (did you mean that?)"), conf={"skip_boots": True}),
    "wrong-setting": Refusal(WEB, ("output_directory", "../images"), conf={"output_directory": "../images"}),
    "wrong-password": Refusal(
        WEB, ("refuses the user", "tried once"), settings={"vcenter": {"connection": "vc_login"}}
    ),
    "untrusted": Refusal(WEB, ("certificate", "thumbprint"), settings={"vcenter": {"connection": "vc_untrusted"}}),
    "other-certificate": Refusal(WEB, ("thumbprint",), settings={"vcenter": {"connection": "vc_other"}}),
    "wrong-host-key": Refusal(small(36), ("host key",), settings={"host": "kvm_other_key"}),
    "no-libguestfs": Refusal(small(37), ("guestfs", "python3-guestfs"), settings={"host": "kvm_bare"}),
    "unmapped-network": Refusal(small(38), ("VM Network", "networks"), settings={"networks": {"Elsewhere": "default"}}),
    "unknown-network": Refusal(small(39), ("no-such-network",), settings={"networks": {"*": "no-such-network"}}),
}


@pytest.fixture(scope="module")
def bare_host(running_lab: RunningLab) -> Iterator[int]:
    """An sshd whose sessions see no python3-guestfs: a mount namespace in which its module is empty. Its port."""
    state = running_lab.folders.host
    port = processes.free_port()
    settings = (state / "sshd_config").read_text().replace(f"Port {running_lab.host.ssh_port}", f"Port {port}")
    (state / "sshd_bare").write_text(settings.replace("sshd.pid", "sshd_bare.pid"))
    module = subprocess.run(
        ["/usr/bin/python3", "-c", "import guestfs; print(guestfs.__file__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    script = (
        f"mount --make-rprivate / && mount --bind /dev/null {module} && exec /usr/sbin/sshd -D -e -f {state}/sshd_bare"
    )
    server = processes.start("sshd_bare", ["unshare", "--mount", "sh", "-c", script], state / "sshd_bare.log", {})
    yield port
    processes.end([server])


@pytest.fixture(scope="module")
def runs(running_lab: RunningLab, bare_host: int) -> dict[str, tuple[str, str]]:
    """Every refused run, all started together: DAG id and run id by name."""
    add_connections(running_lab, bare_host)
    started = {}
    base = lab.HOST_CONNECTION
    for name, refusal in REFUSALS.items():
        host = {
            "connection": refusal.settings.get("host", base),
            "staging_directory": str(running_lab.folders.staging / name),
            "output_directory": str(running_lab.folders.images / name),
        }
        running_lab.write_plan(f"{PLAN}-{name}", [refusal.vm], **{**refusal.settings, "host": host})
    for name, refusal in REFUSALS.items():
        slug = next(iter(refusal.vm.values())).rpartition("/")[2]
        dag_id = f"migrate.{PLAN}-{name}.{slug}"
        started[name] = (dag_id, running_lab.start(dag_id, refusal.conf))
    return started


def add_connections(running_lab: RunningLab, bare_port: int) -> None:
    """Make connections that are wrong in one thing each."""
    good = {
        each["connection_id"]: each
        for each in lab.connections(running_lab.folders, running_lab.vcenter, running_lab.host)
    }
    source, host = good[lab.VCENTER_CONNECTION], good[lab.HOST_CONNECTION]
    keys = json.loads(host["extra"])
    other_key = (running_lab.folders.host / "user_key.pub").read_text().split()
    wrong = [
        {**source, "connection_id": "vc_login", "password": "not-the-password"},
        {**source, "connection_id": "vc_untrusted", "extra": "{}"},
        {**source, "connection_id": "vc_other", "extra": json.dumps({"thumbprint": "AB" * 32})},
        {**host, "connection_id": "kvm_other_key", "extra": json.dumps({**keys, "host_key": " ".join(other_key[:2])})},
        {**host, "connection_id": "kvm_bare", "port": bare_port},
    ]
    for connection in wrong:
        running_lab.api.request("POST", "/api/v2/connections", json=connection)


@pytest.mark.parametrize("name", REFUSALS)
def test_preflight_refuses_and_says_what_to_do(
    name: str, running_lab: RunningLab, runs: dict[str, tuple[str, str]]
) -> None:
    dag_id, run_id = runs[name]
    assert running_lab.wait(dag_id, run_id) == "failed"
    message = running_lab.failure(dag_id, run_id, "preflight")
    for word in REFUSALS[name].words:
        assert word in message
    report = running_lab.report(dag_id, run_id)
    assert report["summary"]["outcome"] == "failed"
    assert [error["stage"] for error in report["errors"]] == ["preflight"]
    assert REFUSALS[name].words[0] in report["errors"][0]["message"]
    assert not list((running_lab.folders.staging / name).rglob("*.vmdk"))


def test_a_refusal_leaves_nothing_at_the_source(running_lab: RunningLab, runs: dict[str, tuple[str, str]]) -> None:
    for dag_id, run_id in runs.values():
        running_lab.wait(dag_id, run_id)
    truth = running_lab.vcenter.admin("GET", "/state")
    assert running_lab.snapshots() == ["snap01"]
    assert (truth["leases"]["live"], truth["sessions"]) == ([], [])


def test_a_bad_plan_is_shown_among_airflows_import_errors(running_lab: RunningLab) -> None:
    path = running_lab.folders.plans / "bad.yaml"
    path.write_text((running_lab.folders.plans / "lab.yaml").read_text().replace("plan: lab", "plan: bad\nwaev: 1"))
    try:
        running_lab.until(lambda: any("waev" in error for error in running_lab.api.import_errors()))
        assert running_lab.api.has_dag(f"migrate.{lab.PLAN}.{lab.VM}")
    finally:
        path.unlink()
    running_lab.until(lambda: not running_lab.api.import_errors())


def test_a_dry_run_of_a_vm_with_a_hostile_name_checks_everything_and_creates_nothing(running_lab: RunningLab) -> None:
    name = inventory.HOSTILE_NAME.replace("/", "%2f")
    running_lab.write_plan("hostile", [{"name": name}])
    (dag_id,) = running_lab.dags_of("hostile")
    run_id = running_lab.start(dag_id, {"dry_run": True})
    assert running_lab.wait(dag_id, run_id) == "success"
    report = running_lab.report(dag_id, run_id)
    assert report["vm"]["name"] == inventory.HOSTILE_NAME
    assert report["errors"] == []
    assert not list(running_lab.folders.staging.glob("hostile*"))
    assert not list(running_lab.folders.images.glob("hostile*"))


def test_a_guest_that_cannot_be_fixed_fails_with_a_report_and_leaves_nothing_behind(running_lab: RunningLab) -> None:
    """The whole way through a hostile name and an empty disk: export and manifest work, inspect finds no system."""
    (dag_id,) = running_lab.dags_of("hostile")
    run_id = running_lab.start(dag_id)
    assert running_lab.wait(dag_id, run_id) == "failed"
    report = running_lab.report(dag_id, run_id)
    assert [error["stage"] for error in report["errors"]] == ["inspect"]
    assert report["source_cleanup"]["clean"] is True
    truth = running_lab.vcenter.admin("GET", "/state")
    assert running_lab.snapshots() == ["snap01"]
    assert truth["leases"]["live"] == []
    (manifest,) = running_lab.folders.staging.glob("hostile*/artifact-manifest.json")
    assert json.loads(manifest.read_text())["source"]["vm_name"] == inventory.HOSTILE_NAME
    assert (
        Path(running_lab.folders.images).resolve() in Path(report_path(running_lab, dag_id, run_id)).resolve().parents
    )


def report_path(running_lab: RunningLab, dag_id: str, run_id: str) -> str:
    return str(running_lab.api.xcom(dag_id, run_id, "report", "report")["path"])


def test_a_plan_that_airflow_does_not_know_is_said_to_be_waited_for_and_refused(
    running_lab: RunningLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hyperflow.cli.migrate.DAG_LIMIT", 2.0)
    endpoint = running_lab.folders.state / "airflow.json"

    assert migrate("mistyped", "demo01", overrides=[], wait=False, endpoint=endpoint) == 2

    said = capsys.readouterr()
    assert said.out.count("Airflow has no DAG migrate.mistyped.demo01 yet; waiting up to 2 s") == 1
    assert "Airflow has no DAG migrate.mistyped.demo01; is the plan in its plans folder?" in said.err
