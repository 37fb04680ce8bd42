"""Whom a plan names is told: by Airflow's own notifier, in real runs of the real DAGs, by a real mail server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from airflow.configuration import conf
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import BaseNotifier
from airflow.serialization.serialized_objects import DagSerialization
from hyperflow.notifications import planned
from hyperflow.notifications.classes import UnusableNotifier, make_notifier
from hyperflow.notifications.planned import PlannedNotifier
from hyperflow.operators.approval import tell_who_is_asked
from hyperflow.plans.load import load_plan
from hyperflow.plans.notices import Notice
from hyperflow.workflows.migration import build_dag
from hyperflow.workflows.wave import build_wave

from tests import own_airflow
from tests.notifications.mailbox import Mailbox

ROOT = Path(__file__).resolve().parents[2]
PLAN = """
plan: autumn
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
notify:
  - on: [failed, wave_done, approval]
    notifier: airflow.providers.smtp.notifications.smtp.SmtpNotifier
    arguments: {smtp_conn_id: mail, to: "{{ hyperflow.plan }}@example.org"}
vms:
  - name: web01
  - name: db01
waves:
  - {name: first, members: [web01]}
  - {name: asked, members: [db01], approval: {timeout_minutes: 5}}
"""
# The DAGs of the plan, run by Airflow with a database of its own.
RUN = """
import sys
from hyperflow.workflows.migration import build_dag
from hyperflow.workflows.plan_folder import read_plan_folder
from hyperflow.workflows.wave import build_wave

(plan,) = read_plan_folder().plans
dags = [build_dag(plan, vm) for vm in plan.vms] + [build_wave(plan, wave) for wave in plan.waves]
(dag,) = (dag for dag in dags if dag.dag_id == sys.argv[1])
print("STATE", dag.test(run_conf={"nonsense": 1} if sys.argv[1].startswith("migrate.") else {}).state)
"""
PROVEN = {"run_id": "r", "summary": {"outcome": "migrated", "dag_id": "migrate.autumn.web01", "slug": "web01"}}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("home")
    (home / "plans").mkdir()
    (home / "plans" / "autumn.yaml").write_text(PLAN)
    (home / "run.py").write_text(RUN)
    made = own_airflow.make(
        home,
        AIRFLOW__CORE__DAGS_FOLDER=str(ROOT / "dags"),
        AIRFLOW__HYPERFLOW__PLANS_FOLDER=str(home / "plans"),
        AIRFLOW__API__BASE_URL="https://airflow.example.org/prod",
        **{"AIRFLOW_VAR_HYPERFLOW_PROVEN_MIGRATE.AUTUMN.WEB01": json.dumps(PROVEN)},
    )
    subprocess.run([own_airflow.AIRFLOW, "dags", "reserialize"], check=True, capture_output=True, env=made)
    return made


def started(environment: dict[str, str], dag_id: str, port: int) -> subprocess.Popen[str]:
    mail = {"conn_type": "smtp", "host": "127.0.0.1", "port": port}
    mail["extra"] = {"from_email": "hyperflow@example.org", "disable_ssl": True, "disable_tls": True, "retry_limit": 1}
    return subprocess.Popen(
        [sys.executable, Path(environment["AIRFLOW_HOME"]) / "run.py", dag_id],
        env={**environment, "AIRFLOW_CONN_MAIL": json.dumps(mail)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def body_of(mail: EmailMessage) -> str:
    part = mail.get_body(("html", "plain"))
    assert part is not None
    return str(part.get_content())


def test_a_vm_that_failed_is_told_by_mail_with_outcome_code_and_the_address_of_its_report(
    environment: dict[str, str],
) -> None:
    with Mailbox() as box:
        output, _ = started(environment, "migrate.autumn.web01", box.port).communicate(timeout=300)
        assert "STATE failed" in output, output[-3000:]
        mail = box.mails.get(timeout=5)
        assert box.mails.empty()
    assert (mail["to"], mail["from"]) == ("autumn@example.org", "hyperflow@example.org")
    assert str(mail["subject"]).startswith("Hyperflow: web01 of plan autumn: failed (HF-")
    assert "preflight: HF-" in body_of(mail)
    assert "nonsense" in body_of(mail)
    assert "https://airflow.example.org/prod/hyperflow/runs/migrate.autumn.web01/" in body_of(mail)


def test_a_wave_that_is_done_is_told_by_mail_with_its_counts(environment: dict[str, str]) -> None:
    with Mailbox() as box:
        output, _ = started(environment, "wave.autumn.first", box.port).communicate(timeout=300)
        assert "STATE success" in output, output[-3000:]
        mail = box.mails.get(timeout=5)
    assert str(mail["subject"]) == "Hyperflow: wave first of plan autumn: complete"
    assert "1 already done" in body_of(mail)
    assert "/hyperflow/runs/wave.autumn.first/" in body_of(mail)


def test_a_mail_server_that_is_down_fails_no_run_and_the_log_says_who_was_not_told(environment: dict[str, str]) -> None:
    with Mailbox() as box:
        closed = box.port
    output, _ = started(environment, "wave.autumn.first", closed).communicate(timeout=300)
    assert "STATE success" in output, output[-3000:]
    assert "SmtpNotifier could not tell of wave first: " in output


def test_who_is_asked_gets_a_mail_with_the_question_and_the_page_to_answer_on(environment: dict[str, str]) -> None:
    with Mailbox() as box:
        run = started(environment, "wave.autumn.asked", box.port)
        try:
            mail = box.mails.get(timeout=300)
        finally:
            os.killpg(run.pid, signal.SIGKILL)  # it would wait for an answer
            run.communicate()
    assert str(mail["subject"]) == ("Hyperflow: wave asked of plan autumn: May wave asked of plan autumn begin?")
    assert "1 VM(s)" in body_of(mail)
    assert "https://airflow.example.org/prod/dags/wave.autumn.asked/runs/" in body_of(mail)
    assert "/tasks/approve/required_actions" in body_of(mail)


def test_reading_the_plans_imports_no_notifier(environment: dict[str, str]) -> None:
    look = (
        "import sys; from airflow.dag_processing.dagbag import DagBag\n"
        f"bag = DagBag({str(ROOT / 'dags')!r}, bundle_path=__import__('pathlib').Path({str(ROOT / 'dags')!r}),"
        " bundle_name='dags-folder')\n"
        "assert 'migrate.autumn.web01' in bag.dags, bag.import_errors\n"
        "assert bag.dags['migrate.autumn.web01'].get_task('report').on_failure_callback\n"
        "print('IMPORTED', [name for name in sys.modules if name.startswith('airflow.providers.smtp.notif')])"
    )
    done = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=False)
    assert "IMPORTED []" in done.stdout, done.stdout[-1000:] + done.stderr[-2000:]


def test_the_same_notices_give_the_same_dags_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "autumn.yaml").write_text(PLAN)
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__PLANS_FOLDER", str(tmp_path))
    first, second = (DagBag(str(ROOT / "dags"), bundle_path=ROOT / "dags", bundle_name="dags-folder") for _ in "ab")
    assert {name: DagSerialization.to_dict(dag) for name, dag in first.dags.items()} == {
        name: DagSerialization.to_dict(dag) for name, dag in second.dags.items()
    }


# Notifiers of this test, as somebody's own: allowed by their path.

TOLD: list[Any] = []


class Remembers(BaseNotifier):
    template_fields = ("text", "extra")

    def __init__(self, text: str, extra: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.text = text
        self.extra = extra

    def notify(self, context: Any) -> None:
        TOLD.append((self.text, self.extra, context["hyperflow"].event))


class Breaks(Remembers):
    def notify(self, context: Any) -> None:
        raise RuntimeError("no")


class Exits(Remembers):
    def notify(self, context: Any) -> None:
        sys.exit(1)


class Hangs(Remembers):
    def notify(self, context: Any) -> None:
        signal.pause()


class Xcoms:
    """What a report's task has left."""

    dag_id, run_id, task_id = "migrate.autumn.web01", "r", "report"

    def __init__(self, summary: dict[str, Any] | None) -> None:
        self.left = {"summary": summary}

    def xcom_pull(self, *, task_ids: str, key: str, map_indexes: int) -> Any:
        assert (task_ids, map_indexes) == ("report", -1)
        return self.left.get(key)


class Dag:
    dag_id = "migrate.autumn.web01"


@pytest.fixture
def own_notifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    TOLD.clear()
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__NOTIFIERS", f"{__name__}., airflow.providers.")


def tell(kind: type[BaseNotifier], summary: dict[str, Any] | None, *on: str, **arguments: Any) -> None:
    notice = Notice.model_validate(
        {"on": list(on or ("failed",)), "notifier": f"{__name__}.{kind.__name__}", "arguments": arguments}
    )
    context = {"ti": Xcoms(summary), "dag": Dag(), "run_id": "r", "conn": "a secret", "exception": ValueError("why")}
    PlannedNotifier(notice, about="vm", plan="autumn", name="web01")(context)


@pytest.mark.usefixtures("own_notifiers")
@pytest.mark.parametrize(
    ("outcome", "event"),
    [("migrated", "proven"), ("unproven", "unproven"), ("failed", "failed"), ("rolled back", "failed")],
)
def test_only_the_event_that_happened_is_told(outcome: str, event: str) -> None:
    tell(Remembers, {"outcome": outcome}, "proven", "unproven", "failed")
    tell(Remembers, {"outcome": outcome}, "approval")
    assert [told[2] for told in TOLD] == [event]


COLD = """
plan: cold
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
notify: [{on: [approval], notifier: ours.All}, {on: [failed], notifier: ours.Failed}]
cutover: {strategy: cold, approval: {}, on_shutdown_timeout: ask}
vms: [{name: web01}, {name: db01, notify: []}]
waves: [{name: first, members: ["*"], on_failure: ask, notify: [{on: [approval, wave_done], notifier: ours.Wave}]}]
"""


def test_every_task_that_asks_or_reports_has_the_notifiers_of_its_own_events(tmp_path: Path) -> None:
    (tmp_path / "cold.yaml").write_text(COLD)
    plan = load_plan(tmp_path / "cold.yaml")
    web, db = (build_dag(plan, vm) for vm in plan.vms)
    wave = build_wave(plan, plan.waves[0])

    def asking(dag: Any, *tasks: str) -> list[list[str]]:
        return [[one.notice.notifier for one in dag.get_task(task).notifiers] for task in tasks]

    assert asking(web, "approve_shutdown", "shutdown", "approve_start") == [["ours.All"]] * 3
    assert [one.notice.notifier for one in web.get_task("report").on_failure_callback] == ["ours.Failed"]
    assert asking(db, "approve_shutdown", "shutdown", "approve_start") == [[]] * 3
    assert not db.get_task("report").on_failure_callback
    assert asking(wave, "vms.web01") == [["ours.Wave"]]
    for callbacks in (wave.get_task("report").on_failure_callback, wave.get_task("report").on_success_callback):
        assert [one.notice.notifier for one in callbacks] == ["ours.Wave"]


@pytest.mark.usefixtures("own_notifiers")
def test_a_question_that_our_own_tasks_ask_is_told_as_one() -> None:
    notice = Notice.model_validate(
        {"on": ["approval"], "notifier": f"{__name__}.Remembers", "arguments": {"extra": "{{ hyperflow.link }}"}}
    )
    context: Any = {"ti": Xcoms(None), "dag": Dag(), "run_id": "r", "task": None}
    teller = PlannedNotifier(notice, about="question", plan="autumn", name="web01")
    tell_who_is_asked(context, [teller], "web01 does not shut down. What now?", "**Power off** is a power cut.")
    ((text, link, event),) = TOLD
    assert event == "approval"
    assert "web01 does not shut down. What now?" in text
    assert "power cut" in text
    assert link.endswith("/dags/migrate.autumn.web01/runs/r/tasks/report/required_actions")


@pytest.mark.usefixtures("own_notifiers")
def test_a_rehearsal_that_went_well_is_told_to_nobody() -> None:
    tell(Remembers, {"outcome": "rehearsed"}, "proven", "unproven", "failed")
    assert TOLD == []


@pytest.mark.usefixtures("own_notifiers")
def test_a_report_that_could_not_be_made_is_told_as_a_failure_with_its_reason() -> None:
    tell(Remembers, None)
    ((text, _, event),) = TOLD
    assert event == "failed"
    assert "report: why" in text


@pytest.mark.usefixtures("own_notifiers")
@pytest.mark.parametrize("kind", [Breaks, Exits, Hangs])
def test_a_notifier_that_breaks_exits_or_hangs_is_only_a_warning(
    kind: type[BaseNotifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planned, "SECONDS", 1)
    tell(kind, {"outcome": "failed"})
    assert TOLD == []


@pytest.mark.usefixtures("own_notifiers")
def test_templates_know_the_message_and_no_connection_variable_task_or_module() -> None:
    hidden = ["conn", "var", "ti", "task", "dag", "macros", "conf"]
    tell(Remembers, {"outcome": "failed"}, extra=[f"{{{{ {name} }}}}" for name in hidden], text="{{ hyperflow.codes }}")
    assert [("()", [""] * len(hidden), "failed")] == TOLD


@pytest.mark.usefixtures("own_notifiers")
def test_what_a_guest_has_written_is_not_rendered_again_and_is_no_html() -> None:
    hostile = {"stage": "boot", "message": "{{ 7 * 6 }} <script> \u202e", "code": "HF-BOOT-002"}
    tell(Remembers, {"outcome": "failed", "errors": [hostile]}, extra="{{ hyperflow.html }}")
    ((text, page, _),) = TOLD
    assert "boot: HF-BOOT-002: {{ 7 * 6 }} <script> \\u202e" in text
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_a_class_that_the_list_does_not_name_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'was-here')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert conf.get("hyperflow", "notifiers", fallback="") == ""
    with pytest.raises(UnusableNotifier, match=r"expected a class that \[hyperflow\] notifiers"):
        make_notifier("evil.Notifier", {})
    assert not (tmp_path / "was-here").exists()
