"""Notifiers in a plan: what may stand there, and every fault at once with its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from hyperflow.cli.notifiers import Judging
from hyperflow.plans.check import check_plans
from hyperflow.plans.load import load_plan
from hyperflow.plans.notices import Judge, by_list, is_allowed

PROFILES = Path(__file__).parents[2] / "include" / "profiles"
MAIL = "airflow.providers.smtp.notifications.smtp.SmtpNotifier"


def write(tmp_path, *notices, vm=(), wave=(), **top):
    document = {
        "plan": "move",
        "vcenter": {"connection": "vcenter"},
        "profile": "kvm-migration",
        "host": {"connection": "kvm01", "staging_directory": "/staging", "output_directory": "/images"},
        "notify": list(notices),
        "vms": [{"name": "web01", **({"notify": list(vm)} if vm else {})}],
        "waves": [{"name": "one", "members": ["web01"], **({"notify": list(wave)} if wave else {})}],
        **top,
    }
    path = tmp_path / "move.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def faults(path: Path, judge: Judge | None = None) -> list[str]:
    (checked,) = check_plans([path], PROFILES, judge)
    return [str(fault) for fault in checked.faults]


def notice(notifier=MAIL, on=("failed",), **arguments):
    return {"on": list(on), "notifier": notifier, "arguments": arguments}


@pytest.fixture(scope="module")
def airflow() -> Judging:
    return Judging()


def test_a_vm_and_a_wave_may_be_told_otherwise_than_the_plan_says(tmp_path):
    mine, theirs = notice(to="a@example.org"), notice(on=["wave_done"], to="b@example.org")
    plan = load_plan(write(tmp_path, mine, notice(on=["wave_done"], to="c"), vm=[notice(to="d")], wave=[theirs]))
    assert [one.arguments["to"] for one in plan.notify] == ["a@example.org", "c"]
    assert [one.arguments["to"] for one in plan.vms[0].settings.notify] == ["d"]
    assert [one.arguments["to"] for one in plan.waves[0].entry.notify] == ["b@example.org"]


def test_an_event_is_refused_where_it_never_happens(tmp_path):
    said = faults(write(tmp_path, vm=[notice(on=["failed", "wave_done"])], wave=[notice(on=["proven"])]))
    assert [line.partition(" (line")[0] for line in said] == [
        "vms[0].notify[0].on[1]: found wave_done, which a VM has not, "
        "expected one of proven, unproven, failed, approval",
        "waves[0].notify[0].on[0]: found proven, which a wave has not, expected one of approval, wave_done",
    ]


@pytest.mark.parametrize("name", ["password", "smtp_password", "apiToken", "integration_key", "client_secret"])
def test_a_secret_is_refused_and_not_shown(tmp_path, name):
    (said,) = faults(write(tmp_path, notice(to="x", **{name: "hunter2"})))
    assert f"notify[0].arguments.{name}: found an argument that looks like a secret" in said
    assert "hunter2" not in said


def test_the_id_of_a_connection_is_no_secret(tmp_path):
    assert faults(write(tmp_path, notice(token_conn_id="telegram"))) == []


def test_what_is_allowed_is_a_class_or_a_package_with_a_dot_at_its_end():
    assert is_allowed(MAIL, ["airflow.providers."])
    assert is_allowed("ours.Notifier", ["airflow.providers.", "ours.Notifier"])
    for path in ("ours.Notifier", "airflow.providersx.Notifier", "subprocess.Popen"):
        assert not is_allowed(path, ["airflow.providers.", "ours", "ours.Not"])


def test_reading_plans_for_airflow_refuses_what_is_not_allowed_and_imports_nothing(tmp_path):
    path = write(tmp_path, notice("no.such.Notifier"), notice("airflow.providers.nothing.Here"))
    (said,) = faults(path, by_list(["airflow.providers."]))
    assert 'notify[0].notifier: found "no.such.Notifier", expected a class that [hyperflow] notifiers' in said


def test_plan_check_finds_every_fault_of_a_notifier_with_those_of_the_plan(tmp_path, airflow):
    path = write(
        tmp_path,
        notice("airflow.providers.smtp.notifications.smtp.SmtpNotifer", to="x"),
        notice("airflow.providers.nothing.Notifier"),
        notice("airflow.providers.smtp.hooks.smtp.SmtpHook"),
        notice("os.system", command="touch /tmp/x"),
        notice(tto="x"),
        notice(to="{{ hyperflow.nothing }}", subject="{{ ti.task_id", cc="{{ conn.kvm01.password }}"),
        notice(to="x", template="/no/such/file"),
        vm=[notice(smtp_conn_id="mail")],
        wave=[notice(on=["proven"], to="x")],
        snapshots="perhaps",
    )
    said = faults(path, airflow)
    for expected in (
        'notify[0].notifier: found "airflow.providers.smtp.notifications.smtp.SmtpNotifer": '
        "airflow.providers.smtp.notifications.smtp has no class SmtpNotifer",
        'notify[1].notifier: found "airflow.providers.nothing.Notifier": Airflow has no module',
        "it is no subclass of Airflow's BaseNotifier",
        'notify[3].notifier: found "os.system", expected a class that [hyperflow] notifiers',
        "notify[4].arguments: found no to, expected a value for it, which SmtpNotifier needs",
        "notify[4].arguments.tto: found an argument that SmtpNotifier has not, expected to (did you mean",
        "notify[5].arguments.to: found a template that cannot be rendered (",
        "notify[5].arguments.subject: found a template that cannot be rendered (",
        "notify[5].arguments.cc: found a template that cannot be rendered ('conn' is undefined)",
        "notify[6].arguments: found what SmtpNotifier refuses ([Errno 2]",
        "vms[0].notify[0].arguments: found no to",
        "waves[0].notify[0].on[0]: found proven",
        'snapshots: found "perhaps"',
    ):
        assert [line for line in said if expected in line], (expected, said)
    assert len(said) == 13
    assert all("(line " in line for line in said)


def test_a_mail_needs_only_who_gets_it_since_the_message_is_filled_in(tmp_path, airflow):
    assert faults(write(tmp_path, notice(to=["a@example.org"], on=["failed", "wave_done", "approval"])), airflow) == []


def test_when_airflow_cannot_be_asked_the_plan_is_not_called_good(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (said,) = faults(write(tmp_path, notice(to="x")), Judging())
    assert "which could not be looked at (" in said
