"""The DAG of one VM's migration."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_args

from airflow.sdk import DAG, Param, TriggerRule, chain
from airflow.sdk.definitions.param import ParamsDict

from hyperflow.hooks.records import state_of
from hyperflow.manifest.models import OutputFormat
from hyperflow.manifest.shown import shown, shown_in_markdown
from hyperflow.notifications.planned import told_of
from hyperflow.operators.approval import AskOperator
from hyperflow.operators.arrival import outlet
from hyperflow.operators.base import PREFLIGHT, SHUTDOWN
from hyperflow.operators.cleanup import CleanUpOperator
from hyperflow.operators.conversion import (
    ConvertDiskOperator,
    FixGuestOperator,
    InspectGuestOperator,
    ValidateImagesOperator,
    VerifyChecksumOperator,
)
from hyperflow.operators.cutover import (
    DisconnectSourceOperator,
    ShutDownSourceOperator,
    StartTargetOperator,
)
from hyperflow.operators.export import ExportDiskOperator
from hyperflow.operators.manifest import WriteManifestOperator
from hyperflow.operators.preflight import PreflightOperator
from hyperflow.operators.report import WriteReportOperator
from hyperflow.operators.retries import WaitForHost
from hyperflow.operators.rollback import RollBackOperator
from hyperflow.operators.snapshot import CreateSnapshotOperator, RemoveSnapshotOperator
from hyperflow.operators.target import DefineDomainOperator, ProveBootOperator
from hyperflow.plans.cutover import Cutover, Step
from hyperflow.plans.overrides import Overrides
from hyperflow.plans.pools import pools_of_vm
from hyperflow.plans.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import BaseNotifier

    from hyperflow.plans.plan import Plan, PlannedVm

RETRIES = 5  # only of what may pass, such as a vCenter that is away for a minute: operators fail at once for the rest
TRIES = {"retries": RETRIES, "retry_delay": timedelta(seconds=20), "retry_policy": WaitForHost(RETRIES)}
# Of a rollback: while the vCenter or the host is away, the source stays off.
PATIENCE = {"retries": 30, "retry_delay": timedelta(minutes=1), "retry_policy": None}
LONGEST_TAG = 100  # characters; Airflow refuses a DAG with a longer one
CHANGES = {  # at the source, by the cutover's strategy
    "live-copy": "The source VM gets one snapshot for the time of the export and is not changed otherwise.",
    "cold": "The source VM is shut down for its export, and taken off the network before the target is started; when "
    "that is not well, all of it is taken back.",
}
DISK_LABEL = "{{ task.disk['id'] }}"  # mapped tasks are shown by the disk's id


def build_dag(plan: Plan, vm: PlannedVm) -> DAG:
    """Build the DAG that migrates one VM of a plan.

    Nothing here asks a vCenter or a host: a DAG is built from the plan alone, but for the tag of its state.
    """
    dag = DAG(
        vm.dag_id,
        dag_display_name=shown(f"{plan.name}: {vm.selector.value}"),
        description=f"Move {shown(vm.selector.value)} from {plan.vcenter.connection} to KVM",
        doc_md=describe(plan, vm),
        schedule=None,
        catchup=False,
        max_active_runs=2,  # one works; a second one starts only to be told so by its preflight (operators/claim.py)
        is_paused_upon_creation=False,  # it has no schedule: only a person or a wave starts it
        # Of tasks that wait for the same pool, those of VMs that are further on come first: so VMs get done, and a task
        # whose job is over, which needs a slot to go on too, does not wait behind jobs that have not begun.
        default_args={**TRIES, "weight_rule": "upstream"},
        tags=tags(plan, vm),
        render_template_as_native_obj=True,
    )
    with dag:
        add_tasks(plan, vm)
    # Only now: each class of each task would copy the form deeply, which took half the time of reading 1,000 VMs.
    dag.params = ParamsDict(form(vm))
    return dag


def tags(plan: Plan, vm: PlannedVm) -> list[str]:
    """Say what the list of DAGs can be narrowed down by.

    The state is how the last run that came to something left the VM; that it is at work the list shows by itself. It
    changes only when a run, rollback or finalize ends, because Airflow makes a new version of a DAG for it.

    A task that starts reads the plan without its waves, so its own copy lacks that tag. Airflow keeps only what the
    DAG processor read, always with waves, so the DAG's version stays.
    """
    labels = ["hyperflow", f"plan:{plan.name}"]
    if vm.settings.host:
        labels.append(f"host:{vm.settings.host.connection}")
    labels.append(f"state:{state_of(vm.dag_id)}")
    labels += [f"wave:{wave.name}" for wave in plan.waves if vm.slug in wave.members]
    if vm.strategy == "cold":
        labels.append("cutover:cold")
    return [label[:LONGEST_TAG] for label in labels]


def add_tasks(plan: Plan, vm: PlannedVm) -> None:
    """Put the tasks of a migration into the DAG that is being built.

    What a task takes from an earlier one is a template and no XComArg where nothing is mapped over it: an XComArg is an
    edge too, and the graph that a person looks at would be full of them.
    """
    # Nothing is lost yet, and whoever has mistyped a host's name wants to know soon: preflight waits for no host
    preflight = PreflightOperator(task_id=PREFLIGHT, plan_file=str(plan.path), slug=vm.slug, retry_policy=None)
    run = {"migration": left_by(PREFLIGHT, "migration")}
    source = {**run, "vm": left_by(PREFLIGHT, "vm")}
    taken = left_by("snapshot")
    staged = {**run, "manifest": left_by("manifest")}
    images = left_by_all("convert")
    # What a profile can switch off is skipped; what follows it runs all the same, unless something failed.
    onward = {"trigger_rule": TriggerRule.NONE_FAILED}
    per_disk = {
        "map_index_template": DISK_LABEL,
        "max_active_tis_per_dagrun": (vm.settings.limits or Limits()).parallel_disks,
    }
    disks = preflight.output
    pools = pools_of_vm(plan, vm)
    told = told_of(vm.settings.notify or (), "vm", plan.name, vm.slug)
    asked = told_of(vm.settings.notify or (), "question", plan.name, vm.slug)

    snapshot = CreateSnapshotOperator(task_id="snapshot", **source)
    export = ExportDiskOperator.partial(task_id="export", **run, snapshot=taken, pool=pools.stream, **per_disk).expand(
        disk=disks
    )
    remove_snapshot = RemoveSnapshotOperator(task_id="remove_snapshot", **source).as_teardown(
        setups=snapshot, on_failure_fail_dagrun=True
    )
    manifest = WriteManifestOperator(task_id="manifest", **source, exports=left_by_all("export"), snapshot=taken)
    checksum = VerifyChecksumOperator.partial(task_id="checksum", **staged, pool=pools.job, **per_disk).expand(
        disk=disks
    )
    inspect = InspectGuestOperator(task_id="inspect", **staged, **onward, pool=pools.guest)
    fix = FixGuestOperator(task_id="fix", **staged, vm=source["vm"], pool=pools.guest)
    convert = ConvertDiskOperator.partial(
        task_id="convert", **staged, fix=left_by("fix"), pool=pools.job, **onward, **per_disk
    ).expand(disk=disks)
    validate = ValidateImagesOperator(task_id="validate", **staged, images=images, pool=pools.job)
    seen = {"guest": left_by("inspect"), "fix": left_by("fix")}
    boot = ProveBootOperator(task_id="boot", **source, images=images, **seen, pool=pools.guest, **onward)
    define = DefineDomainOperator(task_id="define", **source, images=images, **onward)
    # What closes a run is a teardown, of nothing in particular: it runs whatever became of the rest, and also when a
    # person sets the state of the whole run. Airflow skips all other tasks then, those with the rule all_done too.
    cleanup = CleanUpOperator(task_id="cleanup").as_teardown(on_failure_fail_dagrun=True)
    report = WriteReportOperator(
        task_id="report",
        plan=plan.name,
        plan_file=str(plan.path),
        slug=vm.slug,
        selector=vm.selector.value,
        vcenter=plan.vcenter.connection,
        host_connection=str(vm.settings.host.connection) if vm.settings.host else "",
        outlets=[outlet(plan.name, vm.slug)],
        # Of the task and not of the DAG: these run in a worker, once, when the report is written.
        on_success_callback=told,
        on_failure_callback=told,
    ).as_teardown(on_failure_fail_dagrun=True)

    cutover = vm.settings.cutover or Cutover()
    before: list[Any] = []
    after: list[Any] = []
    if cutover.strategy == "cold":
        before = [
            *ask(vm, cutover, asked, "shutdown", f"Shut down {shown(vm.selector.value)}?"),
            ShutDownSourceOperator(task_id=SHUTDOWN, **source, approvers=list(vm.approvers), notifiers=asked),
        ]
        rollback = RollBackOperator(task_id="rollback", **PATIENCE).as_teardown(on_failure_fail_dagrun=True)
        remove_snapshot >> rollback  # which switches the source on: not while vCenter is at work on its disks
        after = [
            *ask(vm, cutover, asked, "start", f"Start {shown(vm.selector.value)} on KVM for good?"),
            DisconnectSourceOperator(task_id="disconnect", **source, **onward),
            StartTargetOperator(task_id="start", **source, **seen, **onward),
            rollback,
        ]
    chain(preflight, *before, snapshot, export, manifest, checksum, inspect, fix, convert, validate, boot, define)
    chain(define, *after, cleanup, report)
    export >> remove_snapshot >> cleanup


def ask(
    vm: PlannedVm, cutover: Cutover, notifiers: Sequence[BaseNotifier], step: Step, subject: str
) -> list[AskOperator]:
    """Make the task that asks before a step of the cutover; none where the plan has nobody asked there."""
    approval = cutover.approval
    if approval is None or step not in approval.at:
        return []
    return [
        AskOperator(
            task_id=f"approve_{step}",
            about=subject,
            subject=subject,
            defaults=AskOperator.APPROVE if approval.on_timeout == "approve" else AskOperator.REJECT,
            response_timeout=timedelta(minutes=approval.timeout_minutes),
            assigned_users=list(vm.approvers) or None,  # type: ignore[arg-type]
            notifiers=notifiers,
            trigger_rule=TriggerRule.NONE_FAILED,
        )
    ]


def left_by(task_id: str, key: str = "return_value") -> str:
    """Write the template of what a task has left; None where it was skipped."""
    return f"{{{{ ti.xcom_pull(task_ids='{task_id}', key='{key}') }}}}"


def left_by_all(task_id: str) -> str:
    """Write the template of what all mapped copies of a task have left, as a list."""
    return f"{{{{ ti.xcom_pull(task_ids=['{task_id}']) }}}}"


def form(vm: PlannedVm) -> dict[str, Param]:
    """Make the trigger form: what a person may set for one run, filled in with what the plan says."""
    host, profile = vm.settings.host, vm.profile
    planned = {
        "host_connection": str(host.connection) if host else "",
        "output_directory": str(host.output_directory) if host else "",
        "output_format": profile.manifest_target_format,
        "compress": profile.compress,
    }
    params = {}
    for name, field in Overrides.model_fields.items():
        value = planned.get(name, field.default)
        schema: dict[str, Any] = {"type": "boolean" if isinstance(value, bool) else "string"}
        if name == "output_format":
            schema["enum"] = list(get_args(OutputFormat))
        if name == "not_after":
            schema = {"type": ["null", "string"], "format": "date-time"}
        params[name] = Param(value, title=field.title, description=field.description, **schema)
    return params


def describe(plan: Plan, vm: PlannedVm) -> str:
    """Write the DAG's page from the plan."""
    host = vm.settings.host
    where = (
        f"`{host.connection}`, staged in {shown_in_markdown(str(host.staging_directory))}, "
        f"images in {shown_in_markdown(str(host.output_directory))}"
        if host
        else "-"
    )
    about = f" ({shown_in_markdown(vm.profile.description)})" if vm.profile.description else ""
    return (
        f"Moves {shown_in_markdown(vm.selector.value)} from vCenter `{plan.vcenter.connection}` "
        f"to KVM host {where}, with profile `{vm.profile.name}`{about}. Plan: {shown_in_markdown(str(plan.path))}.\n\n"
        f"{CHANGES[vm.strategy]} "
        "The run succeeds only when the converted guest was booted and said itself that it is up."
    )
