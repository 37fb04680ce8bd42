"""One run has a VM at a time: whichever way two that begin together meet, one goes on and the other names it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from hyperflow.errors.catalogue import find
from hyperflow.operators import claim as claims
from hyperflow.operators import cutover_record, proven
from hyperflow.operators.claim import PREFIX, claim, release
from hyperflow.operators.preflight import STATE_KEY, PreflightOperator
from hyperflow.vsphere import drift, inventory, mark
from hyperflow.vsphere.facts import SnapshotFacts, VmFacts
from hyperflow.vsphere.snapshot import Ownership

from tests import own_airflow

FIELDS = [each.name for each in dataclasses.fields(VmFacts) if each.default is dataclasses.MISSING]
KNOWN = {"moref": "vm-1", "name": "web01", "instance_uuid": "5010", "power_state": "poweredOff"}
VM = VmFacts(**{**dict.fromkeys(FIELDS), **KNOWN})  # type: ignore[arg-type]
KEY = f"{PREFIX}5010"
CALLS = 16  # more than a run makes until it has its snapshot
SOON = 0.1  # seconds in which a run that nothing keeps waiting gets to its next stop
LIMIT = 30.0  # seconds

HERE = threading.local()  # .run: whose thread it is


@dataclass
class World:
    """What two runs share: Airflow's variables, and the VM at its vCenter."""

    variables: dict[str, str] = field(default_factory=dict)
    vm: VmFacts = VM
    working: set[tuple[str, str]] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)  # of the vCenter
    mark: str | None = None  # of a cutover, at the vCenter

    def get(self, key: str, default: Any = None, deserialize_json: bool = False) -> Any:
        stop_here()
        try:
            value = self.variables[key]
            return json.loads(value) if deserialize_json else value
        except (KeyError, ValueError):  # Airflow, too, takes what is no JSON for nothing
            return default

    def set(self, key: str, value: Any, description: str | None = None, serialize_json: bool = False) -> None:
        stop_here()
        self.variables[key] = json.dumps(value) if serialize_json else value

    def delete(self, key: str) -> None:
        stop_here()
        del self.variables[key]

    def state(self, session: Any, moref: str) -> Any:
        stop_here()
        self.asked.append("state")
        return drift.state_of(self.vm)

    def read_vm(self, session: Any, moref: str) -> VmFacts:
        stop_here()
        self.asked.append("read_vm")
        return self.vm

    def mark_of(self, session: Any, moref: str) -> str | None:
        stop_here()
        return self.mark

    def take_snapshot(self, dag: str, run: str, airflow: str = "") -> None:
        description = Ownership(dag=dag, run=run, created="2026-11-24T01:00:00Z", airflow=airflow).description()
        taken = SnapshotFacts("snapshot-1", f"hyperflow-{run}", description, "2026-11-24T01:00:00Z")
        self.vm = dataclasses.replace(self.vm, snapshots=(*self.vm.snapshots, taken))


class Run(threading.Thread):
    """A run from its preflight to its export, which stops before one of the things that it does.

    :ivar refused: why it does not go on
    """

    def __init__(self, world: World, name: str, plan: Path, stop: int = 0) -> None:
        super().__init__(daemon=True)
        self.world, self.plan, self.stop = world, plan, stop
        self.dag, self.run_id = f"migrate.{name}.web01", f"manual__{name}"
        self.refused = ""
        self.calls = 0
        self.stopped, self.going = threading.Event(), threading.Event()
        self.xcom: dict[str, Any] = {}
        world.working.add((self.dag, self.run_id))

    @property
    def context(self) -> Any:
        def get_dr_count(*, dag_id: str, run_ids: list[str], states: list[str]) -> int:
            stop_here()
            return len({(dag_id, run_id) for run_id in run_ids} & self.world.working)

        ti = SimpleNamespace(xcom_push=lambda key, value: self.xcom.update({key: value}), get_dr_count=get_dr_count)
        return {"dag": SimpleNamespace(dag_id=self.dag), "run_id": self.run_id, "ti": ti}

    def preflight(self, facts: VmFacts = VM, *, begins: bool = True) -> VmFacts:
        operator = PreflightOperator(task_id="preflight", plan_file=str(self.plan), slug="web01")
        session: Any = None
        return operator.take_vm(self.context, session, facts, begins=begins)

    def run(self) -> None:
        HERE.run = self
        try:
            self.preflight()
            claim(self.context, "5010", "web01")  # the task that takes the snapshot
            stop_here()
            self.world.take_snapshot(self.dag, self.run_id)
            claim(self.context, "5010", "web01")  # the export
        except AirflowFailException as fault:
            self.refused = str(fault)
            self.world.working.discard((self.dag, self.run_id))
        finally:
            self.stopped.set()


def stop_here() -> None:
    """Have the run of this thread wait before what it is about to do, when it is to stop there."""
    run = getattr(HERE, "run", None)
    if run is None:
        return
    run.calls += 1
    if run.calls == run.stop:
        run.stopped.set()
        assert run.going.wait(LIMIT)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    made = World()
    for module in (claims, cutover_record, proven):
        monkeypatch.setattr(module, "Variable", made)
    monkeypatch.setattr(drift, "state", made.state)
    monkeypatch.setattr(inventory, "read_vm", made.read_vm)
    monkeypatch.setattr(mark, "mark_of", made.mark_of)
    monkeypatch.setattr(claims, "records_folder", lambda: tmp_path / "records")
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "a.yaml").write_text("plan: a")
    return made


@pytest.fixture
def begin(world: World, tmp_path: Path) -> Callable[..., Run]:
    return lambda name, **more: Run(world, name, tmp_path / "plans" / "a.yaml", **more)


def meet(world: World, begin: Callable[..., Run], first: int, second: int) -> tuple[Run, Run]:
    """Have a run begin and stop, another one begin and stop, then the first one go on to its end, then the other."""
    world.variables.clear()
    world.working.clear()
    world.vm = VM
    a, b = begin("a", stop=first), begin("b", stop=second)
    a.start()
    assert a.stopped.wait(LIMIT)
    b.start()
    b.stopped.wait(SOON)  # it may wait for the lock that the first one has
    a.going.set()
    a.join(SOON)  # as above
    b.going.set()
    for run in (a, b):
        run.join(LIMIT)
        assert not run.is_alive()
    return a, b


@pytest.mark.parametrize("first", range(1, CALLS))
def test_of_two_runs_that_begin_together_one_goes_on_and_the_other_names_it(
    world: World, begin: Callable[..., Run], first: int
) -> None:
    for second in range(1, CALLS):
        runs = meet(world, begin, first, second)
        (winner,) = (run for run in runs if not run.refused)
        (other,) = (run for run in runs if run.refused)
        assert f"run {winner.run_id} of DAG {winner.dag}" in other.refused
        assert json.loads(world.variables[KEY]) == {"dag": winner.dag, "run": winner.run_id}
        assert other.xcom == {"migration": None}, "its report goes nowhere near the other's folders"


def test_the_runs_were_stopped_at_each_of_their_steps(begin: Callable[..., Run]) -> None:
    alone = begin("a")
    alone.start()
    alone.join(LIMIT)
    assert alone.refused == ""
    assert alone.calls < CALLS


def test_a_vm_that_an_unknown_cutover_has_marked_is_refused_and_the_claim_given_back(
    world: World, begin: Callable[..., Run]
) -> None:
    world.mark = "cut over by migrate.z.web01, run manual__z, to web01 on kvm09\x1b[2J"
    with pytest.raises(AirflowFailException, match=r"web01 is marked by a cutover.*to web01 on kvm09\\x1b"):
        begin("a").preflight()
    assert world.variables == {}


def test_what_a_run_left_after_the_vm_was_read_is_seen_and_the_claim_given_back(
    world: World, begin: Callable[..., Run]
) -> None:
    world.take_snapshot("migrate.b.web01", "manual__b")
    run = begin("a")
    with pytest.raises(AirflowFailException, match=r"hyperflow-manual__b of run manual__b of DAG migrate\.b\."):
        run.preflight()
    assert world.variables == {}
    assert run.xcom == {"migration": None}


def test_a_snapshot_of_another_airflow_keeps_a_run_off_although_dag_and_run_are_called_the_same(
    world: World, begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "instance", lambda: "a-1")
    run = begin("a")
    world.take_snapshot(run.dag, run.run_id, airflow="a-1")
    run.preflight()
    world.take_snapshot(run.dag, run.run_id, airflow="a-2")
    with pytest.raises(
        AirflowFailException, match=r"of DAG migrate\.a\.web01 of another Airflow \(a-2\)\. If that run"
    ):
        run.preflight()


def test_a_vm_that_is_still_what_was_read_is_not_read_again(world: World, begin: Callable[..., Run]) -> None:
    run = begin("a")
    assert run.preflight() is VM
    assert world.asked == ["state"]
    assert (run.xcom["vm"], run.xcom[STATE_KEY]) == (VM.to_json(), drift.state_of(VM))


def test_a_vm_that_was_changed_until_the_run_had_it_is_read_again(world: World, begin: Callable[..., Run]) -> None:
    world.vm = dataclasses.replace(VM, power_state="poweredOn")
    run = begin("a")
    assert run.preflight().power_state == "poweredOn"
    assert run.xcom["vm"]["power_state"] == run.xcom[STATE_KEY]["power_state"] == "poweredOn"


def test_a_dry_run_takes_nothing_and_is_kept_from_nothing(world: World, begin: Callable[..., Run]) -> None:
    begin("a").preflight()
    held = dict(world.variables)
    begin("b").preflight(begins=False)
    assert world.variables == held


@pytest.mark.parametrize(
    "held", ['{"dag": "migrate.b.web01", "run": "manual__b"}', "by hand", "[]", '{"dag": 1, "run": 2}']
)
def test_a_claim_of_a_run_that_works_no_more_or_of_none_counts_for_nothing(
    world: World, begin: Callable[..., Run], held: str
) -> None:
    world.variables[KEY] = held
    run = begin("a")
    claim(run.context, "5010", "web01")
    assert json.loads(world.variables[KEY]) == {"dag": run.dag, "run": run.run_id}


def test_only_the_run_that_has_a_vm_gives_it_back(world: World, begin: Callable[..., Run]) -> None:
    a, b = begin("a"), begin("b")
    claim(a.context, "5010", "web01")
    release(b.context, "5010")
    assert KEY in world.variables
    release(a.context, "5010")
    assert KEY not in world.variables


# The janitor's last task, run by Airflow itself with a database of its own, among runs that ended, work, and are gone.
JANITOR = """
import json
import sys
from airflow.sdk import DAG, BaseOperator, Variable, chain
from hyperflow.operators.janitor import ReportLeftoversOperator

ENDED = {"dag": "ended", "run": sys.argv[1]} if len(sys.argv) > 1 else {}

class Nothing(BaseOperator):
    def execute(self, context):
        return None

class Claim(BaseOperator):
    def execute(self, context):
        me = {"dag": "janitor", "run": context["run_id"]}
        for vm, holder in {
            "gone": {"dag": "migrate.a.web01", "run": "manual__1"},
            "busy": {"dag": "migrate.a.web01", "run": "manual__busy"},
            "ended": ENDED,
            "works": me,
        }.items():
            Variable.set(f"hyperflow_vm_{vm}", holder, serialize_json=True)
        Variable.set("hyperflow_vm_by-hand", ["Anna"], serialize_json=True)
        Variable.set("hyperflow_vmotion", "of somebody else")

class Hosts(BaseOperator):
    def execute(self, context):
        return {"findings": [], "busy": ["migrate.a.web01/manual__busy"], "at_source": []}

class Tell(BaseOperator):
    def execute(self, context):
        for look in ("dry", "result"):
            found = context["ti"].xcom_pull(task_ids=look, key="result")
            print("FOUND", json.dumps({one["thing"]: [one["action"], one["why"]] for one in found["findings"]}))
        print("LEFT", json.dumps(sorted(Variable.keys("hyperflow_vm"))))

with DAG("ended", schedule=None) as ended:
    Nothing(task_id="one")

with DAG("janitor", schedule=None) as dag:
    looks = [ReportLeftoversOperator(task_id=name, vcenters=[], only_look=name == "dry", keep_days=7)
             for name in ("dry", "result")]
    chain(Claim(task_id="claim"), Hosts(task_id="hosts"), *looks, Tell(task_id="tell"))

if __name__ == "__main__":
    before = ended.test(run_conf=None)
    ENDED.update(dag="ended", run=before.run_id)
    print("RUN", dag.test(run_conf=None).state)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("airflow")
    (home / "janitor.py").write_text(JANITOR)
    yield own_airflow.run(home / "janitor.py", own_airflow.make(home))


def test_the_janitor_removes_the_claims_of_runs_that_are_gone_or_ended_and_no_others(told: str) -> None:
    assert "RUN success" in told, told[-3000:]
    dry, real = (json.loads(line.partition(" ")[2]) for line in told.splitlines() if line.startswith("FOUND "))
    (left,) = (json.loads(line.partition(" ")[2]) for line in told.splitlines() if line.startswith("LEFT "))
    assert {key: action for key, (action, _) in dry.items()} == {
        "hyperflow_vm_gone": "would remove",
        "hyperflow_vm_ended": "would remove",
        "hyperflow_vm_busy": "kept",
        "hyperflow_vm_by-hand": "kept",
    }
    assert {key: action for key, (action, _) in real.items()} == {
        "hyperflow_vm_gone": "removed",
        "hyperflow_vm_ended": "removed",
        "hyperflow_vm_busy": "kept",
        "hyperflow_vm_by-hand": "kept",
    }
    assert "no such run any more" in real["hyperflow_vm_gone"][1]
    assert "ended as success" in real["hyperflow_vm_ended"][1]
    assert "alive" in real["hyperflow_vm_busy"][1]
    assert left == ["hyperflow_vm_busy", "hyperflow_vm_by-hand", "hyperflow_vm_works", "hyperflow_vmotion"]
    assert "removed: claim hyperflow_vm_gone (migrate.a.web01/manual__1)" in told


HOLDER = """
import fcntl, os, signal, sys
with open(sys.argv[1], "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("has it", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_task_that_was_stopped_with_the_lock_is_not_waited_for_without_end(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LOCK_LIMIT", 1.0)
    run = Run(world, "first", tmp_path)
    faults: list[AirflowException] = []

    def take() -> None:
        try:
            claim(run.context, "5010", "web01")
        except AirflowException as fault:
            faults.append(fault)

    take()  # so that there is a lock
    world.variables.clear()
    (file,) = (claims.records_folder() / claims.LOCKS).iterdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "has it\n"
            waiting = threading.Thread(target=take, daemon=True)
            waiting.start()
            waiting.join(LIMIT)
            assert not waiting.is_alive()
        finally:
            holder.kill()
    (fault,) = faults
    assert not isinstance(fault, AirflowFailException), "it may be tried again"
    found = find(str(fault))
    assert found is not None
    assert found.code == "HF-RUN-009"
    take()
    assert world.variables[KEY], "the lock is free again"
