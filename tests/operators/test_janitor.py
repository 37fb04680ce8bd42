"""The janitor's decisions: which hosts it looks at, and that what it was told of a run is not old when it acts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException
from hyperflow.operators import base, convert_manifest, verdict
from hyperflow.operators import janitor as module
from hyperflow.operators.convert_manifest import CleanUpConversionOperator, ReadManifestOperator
from hyperflow.operators.janitor import (
    CleanHostOperator,
    CleanSourceOperator,
    FoundSnapshot,
    ListHostsOperator,
    ReportLeftoversOperator,
)
from hyperflow.operators.verdict import Judge
from hyperflow.vsphere.facts import SnapshotFacts
from hyperflow.vsphere.snapshot import Ownership, snapshot_name

STAGING = "/srv/staging"
OWNER = {"airflow": "a-1", "dag": "migrate.a.web01", "run": "manual__1"}
RUN = "migrate.a.web01/manual__1"


class Variables:
    """Airflow's variables."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    def get(self, key: str, default: Any = None, deserialize_json: bool = False) -> Any:
        return self.held.get(key, default)

    def set(self, key: str, value: Any, description: str | None = None, serialize_json: bool = False) -> None:
        self.held[key] = value

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.held if key.startswith(prefix)]

    def delete(self, key: str) -> None:
        del self.held[key]


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Variables:
    made = Variables()
    monkeypatch.setattr(module, "Variable", made)
    return made


class Host:
    """A host's hook: what it was asked, in order."""

    directory = f"{STAGING}/.hyperflow"

    def __init__(self, books: list[dict[str, Any]] | None = None) -> None:
        self.books = books or []
        self.asked: list[Any] = []

    def connected(self) -> Any:
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def ensure_program(self, client: object) -> None:
        self.asked.append("program")

    def ledger(self, client: object, *arguments: str, request: Any = None) -> dict[str, Any]:
        self.asked.append((*arguments, request))
        return {"runs": self.books}

    def job(self, client: object, *arguments: str) -> dict[str, Any]:
        return {"removed": 0}

    def run_stage(self, stage: str, options: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((stage, options))
        observed = {"findings": [], "busy": [], "path": "/m", "sha256": "0" * 64}
        return {"succeeded": True, "observed": observed, "warnings": []}


class Runs:
    """Airflow's runs, as a judge asks for them: ``states`` in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *states: str) -> None:
        self.states = list(states)
        monkeypatch.setattr(verdict, "instance", lambda: "a-1")
        monkeypatch.setattr(verdict, "_dag_run", self.dag_run)

    def dag_run(self, dag_id: str, run_id: str) -> Any:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        ended = datetime.now(UTC) - timedelta(days=30)
        return SimpleNamespace(state=SimpleNamespace(value=state), end_date=ended)

    def judge(self) -> Judge:
        context: Any = {"ti": SimpleNamespace(get_dr_count=lambda **_: 1)}
        return Judge(context, 7)


def test_hosts_of_conversions_are_looked_at_beside_those_of_plans_while_their_connection_is_there(
    variables: Variables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_connection(connection: str) -> None:
        if connection == "gone":
            raise AirflowNotFoundException(connection)

    monkeypatch.setattr(module.BaseHook, "get_connection", get_connection)
    planned = {"connection": "kvm01", "staging_directory": STAGING}
    for connection in ("kvm02", "gone", "kvm01", "kvm02"):
        module.remember_host(connection, STAGING)
    variables.held[f"{module.CONVERTED}by-hand"] = ["Anna"]
    started: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(module, "audit_start", lambda context, what, details: started.append((what, details)))
    context: Any = {"dag_run": SimpleNamespace(conf={"dry_run": True})}
    found = ListHostsOperator(task_id="places", hosts=[planned]).execute(context)
    assert found == [planned, {"connection": "kvm02", "staging_directory": STAGING}]
    kept = [held["connection"] for held in variables.held.values() if isinstance(held, dict)]
    assert sorted(kept) == ["gone", "kvm01", "kvm02"], "Airflow says the same while its API server is away"
    assert started == [("janitor", {"dry_run": True})]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says which of the questions about the run :data:`OWNER` Airflow's variables answer with yes."""

    def tell(*yes: str) -> None:
        for name in ("is_result", "is_in_its_middle", "was_proven_by"):
            answer = name in yes
            monkeypatch.setattr(
                module, name, lambda dag_id, run_id, a=answer: a and (dag_id, run_id) == (OWNER["dag"], OWNER["run"])
            )

    return tell


def test_a_host_is_told_how_long_a_ledger_was_before_airflow_was_asked_about_its_run(
    monkeypatch: pytest.MonkeyPatch, known: Callable[..., None]
) -> None:
    known()
    (ended,), _ = clean_host(monkeypatch)
    assert (ended["run"], ended["dead"], ended["ledger_bytes"]) == (RUN, True, 4711)
    assert ended["succeeded"] is False


@pytest.mark.parametrize("why", ["is_result", "was_proven_by"])
def test_the_domain_of_a_cutover_or_of_a_proven_vm_is_a_result_though_its_run_failed(
    why: str, monkeypatch: pytest.MonkeyPatch, known: Callable[..., None]
) -> None:
    known(why)
    (ended,), _ = clean_host(monkeypatch)
    assert (ended["dead"], ended["succeeded"]) == (True, True)


def test_a_run_whose_cutover_is_in_its_middle_is_not_over(
    monkeypatch: pytest.MonkeyPatch, known: Callable[..., None]
) -> None:
    known("is_in_its_middle")
    ended, (finding,) = clean_host(monkeypatch)
    assert ended == []
    assert (finding["thing"], finding["action"], finding["why"]) == ("5010", "kept", module.IN_ITS_MIDDLE)


def clean_host(monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Have the janitor clean a host with the ledger of a run that failed long ago and has left a domain.

    :return: the runs that are over, as the host is told, and the findings
    """
    domain = {"kind": "domain", "thing": "5010"}
    host = Host([{"run": RUN, "owners": [OWNER], "open": [domain], "damaged": 0, "bytes": 4711}])
    monkeypatch.setattr(module, "host_hook", lambda where: host)
    place = {"connection": "kvm01", "staging_directory": STAGING}
    operator = CleanHostOperator(task_id="hosts", host=place, only_look=False, keep_days=7)
    context: Any = {}
    found = operator.perform(context, Runs(monkeypatch, "failed").judge())
    return host.asked[-1][1]["runs"], found["findings"]


def test_a_run_that_was_cleared_while_a_snapshot_of_it_was_removed_keeps_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = Runs(monkeypatch, "failed", "running").judge()
    operator = CleanSourceOperator(task_id="sources", vcenter="vc", only_look=True, keep_days=7)
    description = Ownership(**OWNER, created="2026-11-24T01:00:00Z").description()
    taken = SnapshotFacts("snapshot-1", snapshot_name("manual__1"), description, "2026-11-24T01:00:00Z")
    session: Any = None
    first, second = (operator._handle(session, judge, set(), FoundSnapshot(vm, vm, taken)) for vm in ("vm-1", "vm-2"))
    assert first is not None
    assert first["action"] == "would remove"
    assert second is None


def settings() -> Any:
    """The settings of a conversion, as far as these tasks look at them."""
    return SimpleNamespace(
        host_connection="kvm02",
        staging_directory=f"{STAGING}/convert-1",
        output_directory="/srv/images",
        work_directory=f"{STAGING}/convert-1/work",
        dry_run=False,
        output=SimpleNamespace(format="qcow2"),
        image=lambda disk_id: f"/srv/images/{disk_id}.qcow2",
    )


@pytest.fixture(autouse=True)
def _results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what the host here answers for a stage's whole result."""
    monkeypatch.setattr(convert_manifest, "accept_result", lambda context, result, *_: result["observed"])


CONTEXT: Any = {"dag": SimpleNamespace(dag_id="convert_manifest"), "run_id": "manual__1"}


def test_a_conversion_signs_its_ledger_before_there_is_anything_in_it(
    variables: Variables, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host()
    owner = {"airflow": "a-1", "dag": "convert_manifest", "run": "manual__1"}
    monkeypatch.setattr(base, "owner_of", lambda context: owner)
    operator = ReadManifestOperator(task_id="preflight")
    operator.__dict__.update(settings=settings(), host=host)
    pushed: dict[str, Any] = {}
    context = {**CONTEXT, "ti": SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))}
    manifest: Any = SimpleNamespace(disks=[], to_document=dict)
    conversion: Any = SimpleNamespace(
        **{**vars(settings()), "images": {}, "warnings": [], "manifest_path": "/m", "source": "/s"}
    )
    operator.prepare(context, manifest, conversion)
    signed = ("add", "--run", "convert_manifest/manual__1", {"owner": owner, "entries": []})
    names = [one if isinstance(one, str) else one[0] for one in host.asked]
    assert names == ["check", "program", "add", "manifest"]
    assert signed in host.asked
    assert list(variables.held.values()) == [{"connection": "kvm02", "staging_directory": STAGING}]


def test_what_a_killed_stage_of_a_conversion_left_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    monkeypatch.setattr(convert_manifest, "created_anything", lambda context: True)
    monkeypatch.setattr(convert_manifest, "undone_tasks", lambda context, settings: ["fix"])
    monkeypatch.setattr(base, "owner_of", lambda context: {"airflow": "a-1", "dag": "d", "run": "r"})
    operator = CleanUpConversionOperator(task_id="cleanup")
    operator.migration = {"images": {"disk-0": "disk-0.qcow2"}}
    operator.__dict__.update(settings=settings(), host=host)
    operator.perform(CONTEXT)
    assert [one if isinstance(one, str) else one[0] for one in host.asked] == ["program", "add", "cleanup"]
    _, options = host.asked[-1]
    assert options["work_directory"] is None, "the fix's overlays are kept to go on from"
    assert options["partials"] == [
        "/srv/images/.disk-0.qcow2.partial",
        f"{STAGING}/convert-1/work/.inspect.partial",
        f"{STAGING}/convert-1/work/.fix.partial",
    ]


def test_a_claim_that_another_task_does_not_let_go_is_told_of_and_the_others_are_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = {f"hyperflow_vm_{number}": {key: OWNER[key] for key in ("dag", "run")} for number in (1, 2)}

    def release_of(key: str, _holder: Any) -> None:
        if key == "hyperflow_vm_1":
            raise AirflowException("another task has been at work on this claim for 600 s")

    monkeypatch.setattr(module, "claims", lambda: held)
    monkeypatch.setattr(module, "release_of", release_of)
    monkeypatch.setattr(module, "instance", lambda: "a-1")
    over = verdict.Verdict(True, True, False, True, "Airflow has no such run any more")
    judge: Any = SimpleNamespace(of=lambda _owner: over)
    janitor = ReportLeftoversOperator(task_id="report", vcenters=[], only_look=False, keep_days=30)

    found = janitor._clean_claims(judge, set())

    assert [(one["thing"], one["action"]) for one in found] == [
        ("hyperflow_vm_1", "failed"),
        ("hyperflow_vm_2", "removed"),
    ]
    assert "another task has been at work" in found[0]["why"]
