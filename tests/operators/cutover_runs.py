"""Runs of the cutover's own tasks, for test_cutover.py: run by Airflow itself with a database of its own, at the lab's
vCenter and on the lab's KVM host. What people and crashes do between two tasks are tasks here as well.

Run as a script, with names of scenarios or for all; a line ``RUN {...}`` says what each of their runs came to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from airflow.models import Variable as StoredVariable
from airflow.sdk import DAG, BaseOperator, TriggerRule, Variable, chain
from airflow.sdk.exceptions import AirflowException
from hyperflow.hooks.kvmhost import KvmHostHook
from hyperflow.hooks.records import safe
from hyperflow.hooks.vsphere import VsphereHook
from hyperflow.operators import rollback
from hyperflow.operators.aftermath import FinalizeOperator, RollBackLaterOperator
from hyperflow.operators.approval import AskOperator
from hyperflow.operators.base import PREFLIGHT, SHUTDOWN, domain_uuid, job_root, keep_failure, run_key, vm_key
from hyperflow.operators.cleanup import CleanUpOperator
from hyperflow.operators.cutover import DisconnectSourceOperator, ShutDownSourceOperator, StartTargetOperator
from hyperflow.operators.cutover_record import (
    begin,
    cutover_of,
    key_of,
    note,
    put,
    record_of_this_run,
    refuse_marked,
    refuse_moved,
)
from hyperflow.operators.ownership import owner_of
from hyperflow.operators.preflight import STATE_KEY
from hyperflow.operators.proven import remember_proven
from hyperflow.operators.rollback import RollBackOperator
from hyperflow.plans.load import load_plan
from hyperflow.plans.migration import effective
from hyperflow.plans.overrides import Overrides
from hyperflow.vsphere.drift import state
from hyperflow.vsphere.facts import VmFacts
from hyperflow.vsphere.finalize import finalize
from hyperflow.vsphere.inventory import find_vm, read_vm
from hyperflow.vsphere.mark import mark_of
from hyperflow.vsphere.nics import connections, restore
from hyperflow.vsphere.power import power_off, power_on, power_state, wait_for_guest
from hyperflow.vsphere.snapshot import wait_for_task
from pyVmomi import vim

VCENTER, HOST, AWAY, URI = "vcenter", "kvm01", "away", "qemu:///system"
PLAN_FILE = Path(os.environ.get("CUTOVER_PLAN", "plan.yaml"))
SOURCE = {"migration": "{{ ti.xcom_pull(task_ids='preflight', key='migration') }}"}
SOURCE["vm"] = "{{ ti.xcom_pull(task_ids='preflight', key='vm') }}"
COMMON: dict[str, Any] = {"schedule": None, "default_args": {"retries": 0}, "render_template_as_native_obj": True}
Act = Callable[[Any], Any]

rollback.STOP_LIMIT = 2.0  # seconds: a target without a disk goes down for nobody


class Look(BaseOperator):
    """In place of preflight: reads the VM and leaves what the cutover's tasks take; defines the target's domain."""

    def __init__(self, *, slug: str, before: Act | None, run: Overrides | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slug = slug
        self.run = run
        self.before = before

    def execute(self, context: Any) -> None:
        plan = load_plan(PLAN_FILE)
        migration = effective(plan, plan.vm(self.slug), self.run)
        with VsphereHook(VCENTER).session() as session:
            moref = find_vm(session, self.slug)
            facts, seen = read_vm(session, moref), state(session, moref)
        ti = context["ti"]
        ti.xcom_push(key="vm", value=facts.to_json())
        if self.before is not None:
            self.before(context)
        try:
            refuse_moved(context, facts, begins=True)
            with VsphereHook(VCENTER).session() as session:
                refuse_marked(session, facts)
        except AirflowException as fault:
            keep_failure(context, PREFLIGHT, fault)
            raise
        ti.xcom_push(key="migration", value=migration.model_dump(mode="json", by_alias=True))
        ti.xcom_push(key=STATE_KEY, value=seen)
        ti.xcom_push(key="found", value=connections_of(self.slug))
        define(facts, run_key(context))


class Do(BaseOperator):
    """What somebody does in the middle."""

    def __init__(self, *, act: Act, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.act = act

    def execute(self, context: Any) -> Any:
        return self.act(context)


def define(facts: VmFacts, run: str) -> None:
    """Define a domain without disks, as the stage define signs it."""
    xml = (
        f"<domain type='qemu'><name>test-{facts.name}</name><uuid>{domain_uuid(facts)}</uuid>"
        "<memory unit='MiB'>32</memory><os><type arch='x86_64' machine='q35'>hvm</type></os><metadata>"
        f"<h:migration xmlns:h='urn:hyperflow:migration:1' vm='{vm_key(facts)}' run='{run}'/></metadata></domain>"
    )
    file = PLAN_FILE.with_name(f"{facts.name}.xml")
    file.write_text(xml)
    virsh("define", str(file))


def virsh(*arguments: str) -> str:
    done = subprocess.run(["virsh", "-q", "-c", URI, *arguments], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()


def connections_of(name: str) -> list[Any]:
    with VsphereHook(VCENTER).session() as session:
        return list(connections(session, find_vm(session, name)))


def at_vcenter(*acts: Callable[[Any, str], Any]) -> Callable[[str], Act]:
    """Somebody does things with a VM in vCenter."""

    def somebody(name: str) -> Act:
        def act(context: Any) -> None:
            with VsphereHook(VCENTER).session() as session:
                for one in acts:
                    one(session, find_vm(session, name))

        return act

    return somebody


def reconnect(session: Any, moref: str) -> None:
    nics: list[Any] = [{**nic, "connected": True, "start_connected": True} for nic in connections(session, moref)]
    restore(session, moref, nics)


def awake(session: Any, moref: str) -> None:
    assert wait_for_guest(session, moref, 60)


def remove_adapter(session: Any, moref: str) -> None:
    devices = session.object(vim.VirtualMachine, moref).config.hardware.device
    card = next(each for each in devices if isinstance(each, vim.vm.device.VirtualEthernetCard))
    spec: Any = vim.vm.ConfigSpec
    change: Any = vim.vm.device.VirtualDeviceSpec
    task = session.object(vim.VirtualMachine, moref).ReconfigVM_Task(
        spec(deviceChange=[change(operation="remove", device=card)])
    )
    wait_for_task(session, task, "the removal", 30)


def fail(context: Any) -> None:
    raise RuntimeError("something after it fails")


def forget(context: Any) -> None:
    Variable.delete(key_of(context["dag"].dag_id))


def forget_all(context: Any) -> None:
    """What an Airflow knows that has not made the cutover."""
    facts = VmFacts.from_json(context["ti"].xcom_pull(task_ids=PREFLIGHT, key="vm"))
    for key in (key_of(context["dag"].dag_id), f"hyperflow_moved_{safe(vm_key(facts))}"):
        Variable.delete(key)


def scribble(context: Any) -> None:
    Variable.set(key_of(context["dag"].dag_id), "what a person wrote")


def shut_down_and_die(context: Any) -> None:
    """What a first try does whose process is killed when the guest is off: nothing tells its task so."""
    ti = context["ti"]
    vm = VmFacts.from_json(ti.xcom_pull(task_ids=PREFLIGHT, key="vm"))
    plan = load_plan(PLAN_FILE)
    made = ShutDownSourceOperator(
        task_id="first_try",
        approvers=[],
        vm=vm.to_json(),
        migration=effective(plan, plan.vm(vm.name)).model_dump(mode="json", by_alias=True),
    )
    with VsphereHook(VCENTER).session() as session:
        begin(context, {**made.record(session), "phase": "shutting down"})
        power_off(session, vm.moref)


def start_unheard(context: Any, then: Act | None = None) -> None:
    """What a start does whose host cannot be reached any more: its stage ends well there, and nobody is told.

    :param then: what somebody does before the run goes on
    """
    ti = context["ti"]
    migration, vm = (ti.xcom_pull(task_ids=PREFLIGHT, key=key) for key in ("migration", "vm"))
    made = StartTargetOperator(task_id="unheard", guest=None, migration=migration, vm=vm)
    record = record_of_this_run(context)
    note(context, {**record, "phase": "target started"})
    with made.host.connected() as client:
        directory = f"{record['root']}/jobs/{run_key(context)}/start"
        options = json.dumps(made.options(context)).encode()
        asked = ("--directory", directory, "--stage", "start", "--run", run_key(context))
        job = made.host.job(client, "start", *asked, stdin=options)["job"]
        assert made.host.job(client, "wait", "--job", job, "--seconds", "100") == {"state": "DONE", "exit_status": 0}
    if then is not None:
        then(context)
    raise RuntimeError("no SSH session with the host")


def stop_untold(name: str, *, undefined: bool) -> Act:
    """What a rollback does whose connection is lost while its host takes the target down.

    :param undefined: the host has come to that; else it has failed, and somebody has moved the target away since
    """

    def act(context: Any) -> None:
        dag_id = f"migrate.cutovers.{name}"
        record = cutover_of(dag_id)
        assert record is not None
        attempt = name.encode().hex().ljust(32, "0")
        put(dag_id, {**record, "phase": "rolling back", "attempt": attempt})
        if undefined:
            note = Path(record["root"]) / "stopped" / attempt
            note.parent.mkdir(exist_ok=True)
            note.write_text(f"test-{name}")
        undefine(name)(context)

    return act


def lose_host(name: str) -> Act:
    """The host of a target is away for good."""

    def act(context: Any) -> None:
        dag_id = f"migrate.cutovers.{name}"
        record = cutover_of(dag_id)
        assert record is not None
        put(dag_id, {**record, "host": AWAY})

    return act


def power_off_and_die(context: Any) -> None:
    """What a first try does whose process is killed when it has powered the source off hard."""
    shut_down_and_die(context)
    note(context, {**record_of_this_run(context), "forced": True})


def prove(context: Any) -> None:
    """The run has proved its VM; it was cleared since."""
    remember_proven(context["dag"].dag_id, str(context["run_id"]), {"outcome": "migrated"})


def take_the_name(session: Any, moref: str) -> None:
    finalize(session, moref, "taken-migrated", "somebody else's VM")


def finalize_and_die(context: Any) -> None:
    """What a finalize does whose worker is killed when the source has its new name."""
    record = cutover_of("migrate.cutovers.dying")
    assert record is not None
    put("migrate.cutovers.dying", {**record, "phase": "finalizing"})
    with VsphereHook(VCENTER).session() as session:
        finalize(session, record["moref"], "dying-migrated", "by a run that died")


def tasks(
    name: str, *steps: Any, before: Act | None = None, run: Overrides | None = None, cleanup: bool = False
) -> DAG:
    """A run of the cutover of one VM: each step a task of the cutover, or what somebody does."""
    made: list[Any] = []
    with DAG(f"migrate.cutovers.{name}", **COMMON) as dag:
        made.append(Look(task_id=PREFLIGHT, slug=name, before=before, run=run))
        for number, step in enumerate(steps):
            if step == SHUTDOWN:
                made.append(ShutDownSourceOperator(task_id=SHUTDOWN, approvers=[], **SOURCE))
            elif step == "approve":
                made.append(AskOperator(task_id=step, about="Shut it down?", subject="Shut it down?"))
            elif step == "disconnect":
                made.append(DisconnectSourceOperator(task_id=step, **SOURCE))
            elif step == "start":
                made.append(StartTargetOperator(task_id=step, guest=None, **SOURCE))
            else:
                made.append(Do(task_id=f"then_{number}", act=step))
        made.append(RollBackOperator(task_id="rollback", trigger_rule=TriggerRule.ALL_DONE))
        if cleanup:
            made.append(CleanUpOperator(task_id="cleanup", trigger_rule=TriggerRule.ALL_DONE))
        chain(*made)
    return dag


def later(name: str, operator: type[Any], task_id: str, before: Act | None = None, **more: Any) -> DAG:
    """What a person starts after the run; ``before`` is what somebody does until then."""
    with DAG(f"{task_id}.{name}", **COMMON) as dag:
        task = operator(task_id=task_id, vm_dag=f"migrate.cutovers.{name}", **more)
        if before is not None:
            Do(task_id="before", act=before) >> task
    return dag


def undefine(name: str) -> Act:
    """Somebody takes the target from its host."""
    return lambda _: [virsh(act, f"test-{name}") for act in ("destroy", "undefine")]


def switch_off(name: str) -> Act:
    """The target runs on another host: a live migration leaves its definition on the first one, off."""
    return lambda _: virsh("destroy", f"test-{name}")


def ledger() -> KvmHostHook:
    """The host, as the cutover's own tasks have it."""
    plan = load_plan(PLAN_FILE)
    return KvmHostHook(ssh_conn_id=HOST, directory=job_root(effective(plan, plan.vms[0])))


def note_domain(context: Any) -> None:
    """The host's ledger names the target's domain, as the stage define writes it."""
    facts = VmFacts.from_json(context["ti"].xcom_pull(task_ids=PREFLIGHT, key="vm"))
    entry = {"kind": "domain", "thing": domain_uuid(facts)}
    with ledger().connected() as client:
        ledger().ensure_program(client)
        ledger().ledger(
            client, "add", "--run", run_key(context), request={"owner": owner_of(context), "entries": [entry]}
        )


def noted(run: str) -> list[str]:
    """What the ledger says of a run that is still there."""
    with ledger().connected() as client:
        ledger().ensure_program(client)
        books = ledger().ledger(client, "list")["runs"]
    return [entry["kind"] for book in books if book["run"] == run for entry in book["open"]]


OVER = Overrides(not_after="2026-11-01T04:00:00+01:00")  # the window has closed
CUTOVER = (SHUTDOWN, "disconnect", "start")
BACK_ON = at_vcenter(reconnect, power_on)
SCENARIOS: dict[str, list[DAG]] = {
    "well": [*[tasks("well", *CUTOVER)] * 2, *[later("well", RollBackLaterOperator, "back")] * 2],
    "fails": [tasks("fails", *CUTOVER[:2], fail), later("fails", RollBackLaterOperator, "back")],
    "after": [tasks("after", *CUTOVER, fail), later("after", FinalizeOperator, "finalize")],
    "final": [
        tasks("final", *CUTOVER),
        later("final", FinalizeOperator, "finalize"),
        later("final", RollBackLaterOperator, "back"),
    ],
    "dying": [
        tasks("dying", *CUTOVER),
        later("dying", RollBackLaterOperator, "back", finalize_and_die),
        later("dying", FinalizeOperator, "finalize"),
    ],
    "taken": [
        tasks("taken", *CUTOVER),
        later("taken", FinalizeOperator, "finalize", at_vcenter(take_the_name)("well")),
        later("taken", RollBackLaterOperator, "back"),
    ],
    "moved": [
        tasks("moved", *CUTOVER),
        later("moved", RollBackLaterOperator, "back", undefine("moved")),
        later("moved", RollBackLaterOperator, "off", target_is_off=True),
    ],
    "elsewhere": [
        tasks("elsewhere", *CUTOVER),
        later("elsewhere", RollBackLaterOperator, "back", switch_off("elsewhere")),
        later("elsewhere", RollBackLaterOperator, "off", target_is_off=True),
    ],
    "kept": [tasks("kept", note_domain, *CUTOVER, switch_off("kept"), fail, cleanup=True)],
    "undone": [tasks("undone", note_domain, *CUTOVER[:2], fail, cleanup=True)],
    "unheard": [
        tasks("unheard", *CUTOVER[:2], start_unheard),
        tasks("unheard", *CUTOVER, before=forget_all),
    ],
    "unheard-on": [tasks("unheard-on", *CUTOVER[:2], partial(start_unheard, then=BACK_ON("unheard-on")))],
    "back-on": [tasks("back-on", *CUTOVER[:2], BACK_ON("back-on"), "start")],
    "wired": [tasks("wired", *CUTOVER[:2], at_vcenter(reconnect)("wired"), "start")],
    "awake": [tasks("awake", SHUTDOWN, at_vcenter(power_on, power_off)("awake"), "disconnect", "start")],
    "skipped": [tasks("skipped", at_vcenter(power_off)("skipped"), "disconnect", "start")],
    "killed": [tasks("killed", shut_down_and_die, SHUTDOWN, fail)],
    "forgotten": [tasks("forgotten", *CUTOVER[:2], forget, fail)],
    "scribbled": [tasks("scribbled", SHUTDOWN, scribble, "disconnect", fail)],
    "cleared": [tasks("cleared", SHUTDOWN, before=shut_down_and_die)],
    "late": [tasks("late", SHUTDOWN, run=OVER), tasks("late", "approve", SHUTDOWN, run=OVER)],
    "changed": [tasks("changed", note_domain, *CUTOVER[:2], at_vcenter(remove_adapter)("changed"), fail, cleanup=True)],
    "dark": [
        tasks("dark", *CUTOVER),
        later("dark", RollBackLaterOperator, "back", lose_host("dark")),
        later("dark", RollBackLaterOperator, "off", target_is_off=True),
    ],
    "early": [tasks("early", *CUTOVER[:2], lose_host("early"), fail)],
    "untold": [
        tasks("untold", *CUTOVER),
        later("untold", RollBackLaterOperator, "back", stop_untold("untold", undefined=True)),
    ],
    "slipped": [
        tasks("slipped", *CUTOVER),
        later("slipped", RollBackLaterOperator, "back", stop_untold("slipped", undefined=False)),
    ],
    "unasked": [tasks("unasked", *CUTOVER[:2], partial(start_unheard, then=lose_host("unasked")), cleanup=True)],
    "woken": [
        tasks("woken", at_vcenter(power_on, awake)("woken"), SHUTDOWN, fail, before=at_vcenter(power_off)("woken"))
    ],
    "cut": [tasks("cut", power_off_and_die, SHUTDOWN, fail)],
    "proven": [tasks("proven", note_domain, prove, fail, cleanup=True)],
}


def told(dag: DAG, name: str) -> dict[str, Any]:
    """Run a DAG, and say what it came to: its tasks, the record, the source, the target."""
    run = dag.test()
    instances = {ti.task_id: ti for ti in run.get_task_instances()}
    states = {name: str(ti.state) for name, ti in instances.items()}
    left_by = instances.get("rollback") or instances.get("off") or instances.get("back")
    taken_back = left_by.xcom_pull(task_ids=left_by.task_id) if left_by else None
    failures = {ti.task_id: ti.xcom_pull(task_ids=ti.task_id, key="failure") for ti in instances.values()}
    jobs = Path(ledger().directory) / "jobs"
    text = StoredVariable.get(key_of(f"migrate.cutovers.{name}"), default_var=None)
    variable = json.loads(text)["phase"] if text and text.startswith("{") else text
    with VsphereHook(VCENTER).session() as session:
        moref = SEEN[name]
        facts = read_vm(session, moref)
        return {
            "states": states,
            "failures": {key: value["message"] for key, value in failures.items() if value},
            "phase": variable,
            "taken_back": taken_back,
            "source": power_state(session, moref),
            "name": facts.name,
            "mark": mark_of(session, moref),
            "nics": [(nic["start_connected"], nic["connected"]) for nic in connections(session, moref)],
            "target": virsh("domstate", domain_uuid(facts)),
            "noted": noted(f"{safe(run.dag_id)}/{safe(run.run_id)}"),
            "jobs": [path.parent.name for path in jobs.glob(f"{safe(run.dag_id)}/{safe(run.run_id)}/*/1")],
            "shutdown": shut_down.xcom_pull(task_ids=SHUTDOWN) if (shut_down := instances.get(SHUTDOWN)) else None,
        }


SEEN: dict[str, str] = {}  # MoRefs: a VM may be renamed

if __name__ == "__main__":
    for chosen in sys.argv[1:] or SCENARIOS:
        with VsphereHook(VCENTER).session() as session:
            SEEN[chosen] = find_vm(session, chosen)
        for number, each in enumerate(SCENARIOS[chosen]):
            print("RUN", json.dumps({"scenario": chosen, "number": number, **told(each, chosen)}), flush=True)
