"""The pages of a run, and what a plan's check asks Airflow, from a real API server."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from hyperflow.audit.anchors import head_file
from hyperflow.audit.chain import append, head
from hyperflow.audit.entry import Entry
from hyperflow.cli.__main__ import main
from hyperflow.manifest.report import BootProof, Hosts, ReportedVm, Run, StagePart
from hyperflow.manifest.report_builder import build_report

from lab import processes
from tests import own_airflow

ROOT = Path(__file__).resolve().parents[2]
DAG, WAVE, RUN = "migrate.p.web01", "wave.p.first", "manual__2026-11-23T21:00:00+00:00"
PATIENCE = 300  # seconds for the start of the server, for each of its answers, and for its end
get = functools.partial(httpx.get, timeout=PATIENCE)
PNG = b"\x89PNG\r\n\x1a\nnot looked into"
HOSTILE = "<script>alert(1)</script>"
EVIDENCE = {
    "failed_units": [],
    "nics": [{"name": "ens192", "addresses": ["192.0.2.10/24", HOSTILE]}],
    "kernel": HOSTILE,
}


def write_records(records: Path) -> None:
    start = datetime(2026, 11, 23, 21, 0, tzinfo=UTC)
    report = build_report(
        run=Run(dag_id=DAG, run_id=RUN, plan="p"),
        vm=ReportedVm(name=f"web01{HOSTILE}", slug="web01", selector="name 'web01'"),
        hosts=Hosts(vcenter="vcenter", kvm="kvm01"),
        stages={"boot": StagePart(success=False, duration=2.5, error=f"it {HOSTILE}", code="HF-BOOT-001")},
        started=start,
        ended=start + timedelta(seconds=60),
        manifest=None,
        boot_proof=BootProof(proven=False, accelerator="tcg", seconds_to_up=44.5, evidence=EVIDENCE),
    )
    folder = records / DAG / "manual__2026-11-23T21_00_00_00_00"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(report.model_dump_json(exclude_none=True, by_alias=True))
    (folder / "console.log").write_text(HOSTILE)
    (folder / "screenshot.png").write_bytes(PNG)
    append(folder / "audit.jsonl", Entry("decision", HOSTILE, by="alice", details={HOSTILE: HOSTILE}))
    damaged = records / DAG / "damaged"
    damaged.mkdir()
    (damaged / "report.json").write_text('{"version": "9"}')
    (damaged / "console.log").symlink_to("/etc/passwd")
    (damaged / "audit.jsonl").write_bytes((folder / "audit.jsonl").read_bytes().replace(b"alice", b"mallory") + b"[]\n")
    wave = records / WAVE / "w1"
    for run in ("w1", "cut", "old", "gone", "held", "elsewhere"):
        for number in range(3):
            append(records / WAVE / run / "audit.jsonl", Entry("run", f"act {number}"))
    (records / WAVE / "cut" / "audit.jsonl").write_bytes(
        (wave / "audit.jsonl").read_bytes().partition(b"\n")[0] + b"\n"
    )
    head_file(records / WAVE / "old" / "audit.jsonl").unlink()
    shutil.rmtree(records / WAVE / "gone")
    last = head(records / WAVE / "held" / "audit.jsonl")
    assert last is not None
    (records / WAVE / "held" / "report.json").write_text(json.dumps({"audit": asdict(last)}))
    (records / WAVE / "elsewhere" / "audit.jsonl").unlink()
    (records / WAVE / "elsewhere" / "audit.jsonl").symlink_to(folder / "audit.jsonl")
    (wave / "wave-report.html").write_text("<h1>Wave</h1>")
    (wave / "wave-report.json").write_text("{}")
    (records / "secret").write_text("secret")


def token(url: str, user: str, home: Path) -> str:
    passwords = json.loads((home / "simple_auth_manager_passwords.json.generated").read_text())
    answer = httpx.post(f"{url}/auth/token", json={"username": user, "password": passwords[user]}, timeout=PATIENCE)
    return str(answer.raise_for_status().json()["access_token"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    home = tmp_path_factory.mktemp("airflow")
    write_records(home / "hyperflow")
    port = processes.free_port()
    environment = own_airflow.make(
        home,
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS="admin:admin,viewer:viewer,other:viewer",
        AIRFLOW__CORE__AUTH_MANAGER="per_dag_auth.PerDagAuthManager",
        AIRFLOW__API__WORKERS="1",
        AIRFLOW_CONN_KVM01="ssh://kvm01",
        AIRFLOW__API_AUTH__JWT_SECRET="only-for-this-test-and-long-enough-for-it-to-be-a-key-0123456789",
        PYTHONPATH=f"{ROOT / 'plugins'}:{Path(__file__).parent}",
    )
    log = (home / "log").open("wb")
    process = subprocess.Popen(
        [own_airflow.AIRFLOW, "api-server", "--host", "127.0.0.1", "--port", str(port)],
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                httpx.get(f"{url}/api/v2/version").raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None and time.monotonic() < until, (home / "log").read_text()[-3000:]
                time.sleep(0.3)
        yield url, home
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)
        log.close()


@pytest.fixture
def viewer(server: tuple[str, Path]) -> Iterator[httpx.Client]:
    url, home = server
    headers = {"Authorization": f"Bearer {token(url, 'viewer', home)}"}
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE) as client:
        yield client


def page(name: str = "", dag: str = DAG, run: str = RUN) -> str:
    return f"/hyperflow/runs/{dag}/{run}/{name}"


def test_a_report_is_a_page_that_runs_no_script(viewer: httpx.Client) -> None:
    answer = viewer.get(page())
    assert answer.status_code == 200
    assert "HF-BOOT-001" in answer.text and "failed" in answer.text and '<img src="screenshot.png"' in answer.text
    assert "<script" not in answer.text and "&lt;script&gt;" in answer.text


def test_what_the_booted_guest_said_is_written_for_people(viewer: httpx.Client) -> None:
    told = " ".join(viewer.get(page()).text.partition("<h2>Proof</h2>")[2].split())
    assert "not proven</span> up after 44.5 s with tcg" in told
    assert "<th>failed units</th><td>none</td>" in told
    assert "<small>name</small> ens192 · <small>addresses</small> 192.0.2.10/24, &lt;script&gt;" in told


@pytest.mark.parametrize("name", ["", "report.json", "console.log", "screenshot.png", "audit"])
def test_every_page_says_what_a_browser_may_do_with_it(viewer: httpx.Client, name: str) -> None:
    answer = viewer.get(page(name))
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; img-src 'self'; ")
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_files_are_served_as_what_they_are(viewer: httpx.Client) -> None:
    assert viewer.get(page("console.log")).headers["content-type"] == "text/plain; charset=utf-8"
    assert viewer.get(page("screenshot.png")).content == PNG
    assert viewer.get(page("report.json")).json()["run"]["dag_id"] == DAG
    assert "&lt;script&gt;" in viewer.get(page("audit")).text


def test_the_audit_page_tells_whether_its_file_is_whole(viewer: httpx.Client) -> None:
    assert '<span class="mark good">1 entries; each follows the one before.</span>' in viewer.get(page("audit")).text
    damaged = viewer.get(page("audit", run="damaged")).text
    assert "This file is not whole" in damaged and "line 1: entry 1 was changed" in damaged
    assert "line 2: is no entry of an audit file" in damaged


def told_of_wave(viewer: httpx.Client, run: str) -> str:
    return viewer.get(page("audit", WAVE, run)).raise_for_status().text


def test_the_audit_page_tells_what_the_file_was_held_to(viewer: httpx.Client) -> None:
    whole, held, old = (told_of_wave(viewer, run) for run in ("w1", "held", "old"))
    assert "mark good" in whole and "Held to its head only, which knows entry 3." in whole
    assert "mark good" in held and "Held to its report, which knows entry 3, and to its head" in held
    for shown in (whole, held):
        assert "Whoever can write the records' folder can write" in shown
    assert "mark doubt" in old and "mark good" not in old and "Held to nothing" in old


def test_the_audit_page_tells_of_entries_that_were_cut_off_and_of_a_file_that_is_gone(viewer: httpx.Client) -> None:
    cut, gone, elsewhere = (told_of_wave(viewer, run) for run in ("cut", "gone", "elsewhere"))
    assert "mark good" not in cut and "head knows of entry 3, which is not here: the end was removed" in cut
    for shown in (gone, elsewhere):
        assert "mark good" not in shown and "audit.jsonl: is not there, and the run&#39;s head knows entry 3" in shown
    assert HOSTILE not in elsewhere and "alice" not in elsewhere
    assert 'href="audit"' in viewer.get(page("", WAVE, "gone")).text


def test_a_wave_has_its_own_page(viewer: httpx.Client) -> None:
    answer = viewer.get(page("wave", WAVE, "w1"))
    assert answer.text == "<h1>Wave</h1>" and "script-src" not in answer.headers["content-security-policy"]
    assert 'href="wave"' in viewer.get(page("", WAVE, "w1")).text
    assert viewer.get(page("wave-report.json", WAVE, "w1")).json() == {}


def test_a_report_that_cannot_be_read_is_said_to_be_so(viewer: httpx.Client) -> None:
    answer = viewer.get(page(run="damaged"))
    assert answer.status_code == 200 and "not a report of this version" in answer.text


def test_nobody_sees_nothing(server: tuple[str, Path]) -> None:
    for name in ("", "report.json", "console.log", "screenshot.png", "audit", "wave", "wave-report.json"):
        assert get(server[0] + page(name)).status_code == 401
    assert get(server[0] + page(dag="no.such")).status_code == 401


def test_whoever_may_not_see_the_dag_sees_no_record_of_it(server: tuple[str, Path]) -> None:
    url, home = server
    headers = {"Authorization": f"Bearer {token(url, 'other', home)}"}
    for name in ("", "report.json", "console.log", "screenshot.png", "audit", "wave", "wave-report.json"):
        assert get(url + page(name), headers=headers).status_code == 403
    assert get(f"{url}{page()}?dag_id={WAVE}", headers=headers).status_code == 403
    assert get(url + page(dag="unknown"), headers=headers).status_code == 403
    assert get(url + page("wave", WAVE, "w1"), headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        page(run="unknown"),
        page(dag="unknown"),
        page("secret"),
        page("console.log", run="damaged"),  # a symbolic link
        page(dag="~"),
        page("report.json", dag="migrate.p+web01"),
        "/hyperflow/runs/%2e%2e/%2e%2e/report.json",
        f"/hyperflow/runs/{DAG}/..%2f..%2fsecret/report.json",
        f"/hyperflow/runs/{DAG}/%2e%2e/secret",
        f"/hyperflow/runs/{DAG}/x%00/report.json",
        "/hyperflow/",
        "/hyperflow/docs",
        "/hyperflow/openapi.json",
    ],
)
def test_what_is_not_there_is_not_found(viewer: httpx.Client, path: str) -> None:
    assert viewer.get(path).status_code == 404


def test_a_browser_that_is_logged_in_sees_the_page(server: tuple[str, Path]) -> None:
    url, home = server
    assert get(url + page(), cookies={"_token": token(url, "viewer", home)}).status_code == 200


def test_nothing_can_be_changed(viewer: httpx.Client) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert viewer.request(method, page()).status_code == 405


PLAN = """
plan: p
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
people: {viewer: {}, alice: {id: "7"}}
vms:
  - {name: a}
  - {name: b, cutover: {strategy: cold, approval: {by: [alice]}, health: {ports: [22]}}}
waves: [{name: saturday, members: ["*"], approval: {by: [viewer, alice]}}]
"""


@pytest.fixture
def endpoint(server: tuple[str, Path], tmp_path: Path) -> Path:
    url, home = server
    passwords = json.loads((home / "simple_auth_manager_passwords.json.generated").read_text())
    file = tmp_path / "airflow.json"
    file.write_text(json.dumps({"url": url, "user": "admin", "password": passwords["admin"]}))
    vcenter = {"connection_id": "vc", "conn_type": "generic"}
    headers = {"Authorization": f"Bearer {token(url, 'admin', home)}"}
    # Once, and refused the other times.
    httpx.post(f"{url}/api/v2/connections", json=vcenter, headers=headers, timeout=PATIENCE)
    return file


def test_what_airflow_lacks_of_a_plan_is_told_at_once_with_all_its_other_faults(
    endpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.yaml").write_text(
        PLAN.replace("plan: p", "plan: other").replace("/srv", "/other").replace("approval: {by: [viewer, alice]}", "")
    )
    bad = PLAN.replace('members: ["*"], ', 'members: ["*"], after: {a: [b], b: [a]}, schedule: {cron: "0 0 30 2 *"}, ')
    (tmp_path / "p.yaml").write_text(bad.replace("vms:", "time_zone: Europe/Berlin\nvms:"))
    assert main(["plan", "check", str(tmp_path / "p.yaml"), "--airflow", str(endpoint)]) == 2
    lines = capsys.readouterr().out.splitlines()
    found = [line.removeprefix(f"{tmp_path / 'p.yaml'}: ").partition(": found")[0] for line in lines]
    assert found == [
        "waves[0].after",
        "waves[0].schedule.cron",
        "waves[0].members",
        "waves[0].members",
        "pool hyperflow_wave_p_saturday",
        "waves[0].approval.by",
        "vms[1].cutover.approval.by",
    ]


def test_of_two_plans_that_share_a_pool_the_smaller_number_is_right_for_both(
    endpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = []
    for name, jobs in (("large", 8), ("small", 4)):
        plans.append(tmp_path / f"{name}.yaml")
        text = PLAN.replace("plan: p", f"plan: {name}\npools: {{jobs_per_host: {jobs}}}").replace("/srv", f"/{name}")
        plans[-1].write_text(text.replace("{name: a}", f"{{name: {name}}}").replace("{name: b,", f"{{name: b-{name},"))
    for plan in plans:
        assert main(["limits", "apply", str(plan), "--airflow", str(endpoint)]) == 0
    assert "ok hyperflow_jobs_kvm01: 4 at once" in capsys.readouterr().out
    for plan in plans:
        assert main(["limits", "check", str(plan), "--airflow", str(endpoint)]) == 0
        main(["wave", "check", str(plan), "saturday", "--airflow", str(endpoint)])
        assert "pool hyperflow_jobs_kvm01" not in capsys.readouterr().out


def test_a_plans_check_finds_approvers_and_pools_that_airflow_has_not(
    endpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "p.yaml"
    plan.write_text(PLAN)
    check = ["plan", "check", str(plan), "--airflow", str(endpoint)]
    assert main(check) == 2
    found = [line.removeprefix(f"{plan}: ") for line in capsys.readouterr().out.splitlines()]
    assert [line.partition(", expected")[0] for line in found] == [
        "pool hyperflow_wave_p_saturday: found no such pool in Airflow",
        "waves[0].approval.by: found 7, whom Airflow does not know",
        "vms[1].cutover.approval.by: found 7, whom Airflow does not know",
    ]

    plan.write_text(PLAN.replace('{id: "7"}', '{id: "other"}'))
    assert main(["limits", "apply", str(plan), "--airflow", str(endpoint)]) == 0
    assert main(check) == 0
    plan.write_text(plan.read_text().replace("name: saturday, ", "name: saturday, max_in_flight: 1, "))
    capsys.readouterr()
    assert main(check) == 2
    assert f"expected 1 slots that count deferred tasks: run ./hyperflow limits apply {plan}" in capsys.readouterr().out


def test_a_plan_is_checked_without_airflow_and_that_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.yaml").write_text(PLAN)
    assert main(["plan", "check", str(tmp_path / "p.yaml"), "--airflow", str(tmp_path / "no.json")]) == 69
    assert "pools, approvers and connections were not looked at" in capsys.readouterr().err


def test_a_connection_that_airflow_has_not_is_a_fault_of_the_plan(
    endpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "p.yaml"
    plan.write_text(PLAN.partition("people:")[0].replace("connection: vc", "connection: cv") + "vms: [{name: a}]\n")
    check = ["plan", "check", str(plan), "--airflow", str(endpoint)]
    assert main(check) == 2
    assert capsys.readouterr().out == f'{plan}: vcenter.connection: found "cv", expected a connection of Airflow\n'
    plan.write_text(plan.read_text().replace("connection: cv", "connection: vc").replace(": kvm01", ": kvm02"))
    assert main(check) == 2
    assert 'host.connection: found "kvm02", expected a connection of Airflow' in capsys.readouterr().out
    plan.write_text(plan.read_text().replace(": kvm02", ": kvm01"))  # one lies in Airflow's database, one elsewhere
    assert main(check) == 0


def test_a_wave_is_not_started_without_the_connections_of_its_own_vms(
    endpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "q.yaml"
    of_its_own = "host: {connection: kvm02, staging_directory: /srv/s, output_directory: /srv/i}"
    vms = f"vms: [{{name: a}}, {{name: b, {of_its_own}}}]\nwaves: [{{name: MEMBER, members: [MEMBER]}}]\n"
    text = PLAN.partition("people:")[0].replace("plan: p", "plan: q") + vms
    for member, missing in (("a", []), ("b", ["vms[1].host.connection"])):
        plan.write_text(text.replace("MEMBER", member))
        assert main(["wave", "start", str(plan), member, "--airflow", str(endpoint)]) == 1
        found = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
        assert found == [*missing, f"pool hyperflow_wave_q_{member}"]


def test_who_may_not_read_connections_is_told_that_they_were_not_looked_at(
    endpoint: Path, server: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passwords = json.loads((server[1] / "simple_auth_manager_passwords.json.generated").read_text())
    endpoint.write_text(json.dumps({"url": server[0], "user": "viewer", "password": passwords["viewer"]}))
    (tmp_path / "p.yaml").write_text(PLAN.partition("people:")[0] + "vms: [{name: a}]\n")
    assert main(["plan", "check", str(tmp_path / "p.yaml"), "--airflow", str(endpoint)]) == 0
    assert "connections were not looked at: this Airflow does not tell" in capsys.readouterr().err


def test_nobody_is_told_who_is_a_user(server: tuple[str, Path], viewer: httpx.Client) -> None:
    path = "/hyperflow/people/unknown"
    assert get(server[0] + path, params={"user": "viewer"}).status_code == 401
    assert viewer.get(path, params={"user": ["viewer", "bob"]}).json() == {"unknown": ["bob"]}
    assert viewer.get(path, params={"user": ["bob"] * 101}).status_code == 422


def test_airflow_shows_the_page_beside_a_run(server: tuple[str, Path]) -> None:
    url, home = server
    headers = {"Authorization": f"Bearer {token(url, 'admin', home)}"}
    (plugin,) = (
        each for each in get(f"{url}/api/v2/plugins", headers=headers).json()["plugins"] if each["name"] == "hyperflow"
    )
    (view,) = plugin["external_views"]
    assert view["href"] == "/hyperflow/runs/{DAG_ID}/{RUN_ID}/" and view["destination"] == "dag_run"
