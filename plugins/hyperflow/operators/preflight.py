"""The first task: everything that can be known to go wrong is found before anything is created."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import ObjectStoragePath
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from hyperflow.hooks.audit import audit_start
from hyperflow.hooks.vsphere import VsphereHook
from hyperflow.manifest.shown import shown
from hyperflow.operators.base import MigrationOperator, accept_result, domain_uuid, run_key, vm_key
from hyperflow.operators.limits import heed_limits
from hyperflow.operators.ownership import snapshot_record
from hyperflow.operators.window import time_left
from hyperflow.plans.pools import pools_of_vm

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.plans.migration import Migration
    from hyperflow.plans.plan import Plan, PlannedVm
    from hyperflow.vsphere.concerns import Concern
    from hyperflow.vsphere.facts import VmFacts
    from hyperflow.vsphere.session import Session

STATE_KEY = "state"  # XCom: what drift is judged by (vsphere.drift.state)
TRY_KEY = "try"  # XCom: which try of preflight has left the others; after the first one a run was cleared
WORKING_SPACE = 2 * 2**30  # bytes: overlays of the fix and the boot proof; the lab's guest needs 0.1 GiB


def plan_location(text: str) -> Path:
    """Take a folder or file of plans, on this machine or in an object store (``s3://bucket/plans``).

    Object stores are Airflow's: the scheme needs its provider, credentials go by ``s3://CONNECTION@bucket/plans``.
    """
    return cast("Path", ObjectStoragePath(text)) if "://" in text else Path(text)


class PreflightOperator(MigrationOperator):
    """Resolves the run's settings, reads the VM, judges it, and checks the host.

    Pushes the XComs that all later tasks work from, ``migration`` (settings) and ``vm`` (``VmFacts``), and returns the
    VM's disks (``DiskFacts``), because Airflow maps tasks over a return value only.

    :param plan_file: path of the plan
    :param slug: the VM's slug in the plan
    """

    def __init__(self, *, plan_file: str, slug: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan_file = plan_file
        self.slug = slug

    def execute(self, context: Context) -> Any:
        """Check everything; also in a dry run, of which this is the whole."""
        return self._reporting_failure(context, self.perform, context)

    def perform(self, context: Context) -> list[dict[str, Any]]:
        """Find all faults that can be found before anything is created."""
        from hyperflow.operators.proven import forget_proven

        plan, vm, migration = self.resolve(context)
        ti = context["ti"]
        ti.xcom_push(key=TRY_KEY, value=ti.try_number)
        ti.xcom_push(key="migration", value=migration.model_dump(mode="json", by_alias=True))
        self.migration = migration.model_dump(mode="json", by_alias=True)
        time_left(migration.not_after, f"{migration.slug} is not begun")
        warnings = heed_limits(context, plan, pools_of_vm(plan, vm).names())
        facts, found = self.read_source(context, migration)
        self.refuse_critical(facts, found)
        warnings += [shown(f"{each.message}. {each.what_to_do}") for each in found if each.level == "warning"]
        self.check_host(context, migration, facts, warnings)
        if not migration.dry_run:
            forget_proven(context["dag"].dag_id)  # its images are about to be made again
        return list(facts.to_json()["disks"])

    def resolve(self, context: Context) -> tuple[Plan, PlannedVm, Migration]:
        """Lay the run's conf over the plan.

        :return: the plan, what it says of this VM, and what this run is to do
        :raises AirflowFailException: listing every fault of either
        """
        from hyperflow.plans.load import load_plan
        from hyperflow.plans.migration import effective, overridden
        from hyperflow.plans.overrides import parse_overrides
        from hyperflow.plans.plan import PlanError

        try:
            plan = load_plan(plan_location(self.plan_file))
            planned = plan.vm(self.slug)
            migration = effective(plan, planned, parse_overrides(context["dag_run"].conf or {}))
            otherwise = overridden(effective(plan, planned), migration)
        except (PlanError, KeyError) as fault:
            raise AirflowFailException(str(fault)) from fault
        told = {
            "plan": plan.name,
            "file": self.plan_file,
            "vm": planned.selector.value,
            "overridden": otherwise or None,
        }
        audit_start(context, "migration", {key: value for key, value in told.items() if value})
        return plan, planned, migration

    def read_source(self, context: Context, migration: Migration) -> tuple[VmFacts, list[Concern]]:
        """Find the VM at its vCenter, have it for this run, and judge it."""
        from hyperflow.vsphere.concerns import concerns
        from hyperflow.vsphere.errors import VsphereError
        from hyperflow.vsphere.inventory import find_vm, read_vm
        from hyperflow.vsphere.privileges import missing_privileges

        cold = migration.cutover.strategy == "cold"
        try:
            with VsphereHook(migration.vcenter_connection).session() as session:
                selector = migration.selector
                moref = find_vm(session, selector.value, kind=selector.kind, datacenter=migration.datacenter)
                facts = read_vm(session, moref)
                if lacking := missing_privileges(session, moref, for_cutover=cold):
                    raise AirflowFailException("; ".join(one.sentence() for one in lacking))
                facts = self.take_vm(context, session, facts, begins=not migration.dry_run)
        except (VsphereError, ValueError) as fault:
            temporary = isinstance(fault, VsphereError) and fault.temporary
            raise (AirflowException if temporary else AirflowFailException)(shown(str(fault))) from fault
        self.log.info(
            "%s (%s): %d CPU(s), %d MB, %d disk(s), %s, %s",
            *(shown(facts.inventory_path), facts.moref, facts.cpus, facts.memory_mb, len(facts.disks)),
            *(shown(str(facts.guest_full_name or facts.guest_id)), facts.power_state),
        )
        found = concerns(without_own_snapshots(context, facts), allow_snapshots=migration.snapshots == "allow")
        # That it runs is no concern of a cutover that shuts it down.
        return facts, [each for each in found if not (cold and each.id == "power.on")]

    def take_vm(self, context: Context, session: Session, facts: VmFacts, *, begins: bool) -> VmFacts:
        """Have the VM for this run alone, as it is then, and keep the plan for as long as the run works.

        :param facts: the VM, read before it was this run's
        :param begins: false for a dry run, which takes nothing
        :return: the VM; read again where a run that had it until now has changed it or left a snapshot
        :raises AirflowFailException: naming the run that has it, or that has moved it
        """
        from hyperflow.operators.claim import claim, refuse_snapshots_of_others, release
        from hyperflow.operators.cutover_record import is_left_in_its_middle, refuse_marked, refuse_moved
        from hyperflow.operators.kept_plan import keep_plan
        from hyperflow.vsphere.drift import differences, state, state_of
        from hyperflow.vsphere.inventory import read_vm

        ti, key = context["ti"], vm_key(facts)
        try:
            if begins:
                claim(context, key, facts.name)
            seen = state(session, facts.moref)
            if differences(state_of(facts), seen):
                facts = read_vm(session, facts.moref)
            if begins:
                claim(context, key, facts.name)  # again, for workers that do not share the lock
                refuse_snapshots_of_others(context, facts)
            refuse_moved(context, facts, begins=begins)
            refuse_marked(session, facts)
        except Exception as fault:
            if is_left_in_its_middle(context):  # by this very run, which cleans up what it has
                ti.xcom_push(key="vm", value=facts.to_json())
            elif isinstance(fault, AirflowFailException):
                ti.xcom_push(key="migration", value=None)  # the folders are the other run's, its report too
            release(context, key)
            raise
        ti.xcom_push(key=STATE_KEY, value=seen)
        ti.xcom_push(key="vm", value=facts.to_json())  # from here on it is the report that gives the VM back
        if begins:
            keep_plan(plan_location(self.plan_file), run_key(context))
        return facts

    def refuse_critical(self, facts: VmFacts, found: list[Concern]) -> None:
        """Log every concern; stop at critical ones, all of them in one message."""
        for each in found:
            self.log.info("%s: %s. %s", each.level, shown(each.message), each.what_to_do)
        critical = [each for each in found if each.level == "critical"]
        if critical:
            reasons = "; ".join(f"{each.message}. {each.what_to_do}" for each in critical)
            raise AirflowFailException(shown(f"{facts.name} cannot be migrated as it is: {reasons}"))

    def check_host(self, context: Context, migration: Migration, facts: VmFacts, warnings: list[str]) -> None:
        """Have the host check itself: tools, space for the worst case, the way to the vCenter, the domain's name."""
        networks = sorted({str(migration.libvirt_network(nic.network or "")) for nic in facts.nics})
        unmapped = [nic.network for nic in facts.nics if migration.libvirt_network(nic.network or "") is None]
        if unmapped:
            raise AirflowFailException(
                f"plan {migration.plan}: networks: found no entry for {', '.join(map(repr, unmapped))}, "
                "expected one for each network of the VM, or '*'"
            )
        capacity = sum(disk.capacity_bytes for disk in facts.disks)
        options = {
            "staging_directory": migration.staging_directory,
            "output_directory": migration.output_directory,
            "staging_bytes": capacity + WORKING_SPACE,
            "output_bytes": capacity,
            "images": [migration.image(disk.id) for disk in facts.disks],
            "guests": migration.guests_at_once or 1,
            "endpoints": [VsphereHook(migration.vcenter_connection).endpoint()],
            "domain": {
                "name": migration.domain_name,
                "uuid": domain_uuid(facts),
                "macs": [nic.mac for nic in facts.nics],
                "networks": networks,
                "firmware": migration.firmware or facts.firmware,
                "secureboot": facts.secure_boot,
                "vm": vm_key(facts),
            },
        }
        observed = accept_result(context, self.host.run_stage("check", options), warnings)
        acceleration = observed["acceleration"]
        self.log.info("acceleration on the host: %s (%s)", acceleration["kind"], acceleration["reason"])


def without_own_snapshots(context: Context, facts: VmFacts) -> VmFacts:
    """The VM without what this very run has left on it: one that is cleared as a whole does not hinder itself."""
    ours = snapshot_record(context)[1]
    return replace(facts, snapshots=tuple(one for one in facts.snapshots if not ours.owns(one)))
