"""The last task: what was observed, also of a run that failed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hyperflow.links.run import ReportLink
from hyperflow.operators.approval import DECISION_KEY
from hyperflow.operators.arrival import tell_arrival
from hyperflow.operators.base import (
    RESULT_KEY,
    SHUTDOWN,
    ClosingOperator,
    run_key,
    vm_key,
)
from hyperflow.operators.claim import release
from hyperflow.operators.cleanup import SOURCE_KEY
from hyperflow.operators.kept_plan import let_go_of_plan
from hyperflow.operators.preflight import plan_location
from hyperflow.operators.proven import PROVEN, SUMMARY_KEY, remember_proven
from hyperflow.operators.run_report import RunReportOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.manifest.models import Manifest
    from hyperflow.manifest.report import BootProof, Report, ReportedVm, SourceCleanup

ORDER = (
    *("preflight", "approve_shutdown", "shutdown", "snapshot", "export", "remove_snapshot", "manifest", "checksum"),
    *("inspect", "fix", "convert", "validate", "boot", "define", "approve_start", "disconnect", "start", "rollback"),
    "cleanup",
)
ASKING = ("approve_shutdown", "shutdown", "approve_start")  # tasks that leave a person's decision


class WriteReportOperator(RunReportOperator, ClosingOperator):
    """Writes ``report.json`` into the output directory and fails when the migration did.

    A copy is kept in the run's records; where the host cannot be reached, or the run ended before its settings were
    known, it is there only. Pushes the XCom ``report``; the log tells path and reasons.

    :param plan: the plan's name
    :param plan_file: its path
    :param slug: the VM's slug
    :param selector: how the plan names the VM
    :param vcenter: connection of the vCenter
    :param host_connection: connection of the host, as in the plan
    """

    order = ORDER
    operator_extra_links = (ReportLink(),)

    def __init__(
        self, *, plan: str, plan_file: str, slug: str, selector: str, vcenter: str, host_connection: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.plan = plan
        self.plan_file = plan_file
        self.slug = slug
        self.selector = selector
        self.vcenter = vcenter
        self.host_connection = host_connection

    def perform(self, context: Context) -> dict[str, Any]:
        """Write the report, and give back what the run alone had: the VM and its plan."""
        if self.vm:
            release(context, vm_key(self.facts))
        let_go_of_plan(plan_location(self.plan_file), run_key(context))
        return self.finish(context, self.build(context), f"migration of {self.selector}")

    def tell(self, context: Context, report: Report, place: dict[str, Any]) -> None:
        """Leave what a wave tells of this run, remember the VM as done when it was proven, and tell other DAGs."""
        from hyperflow.manifest.wave_report import summarise_run

        summary = summarise_run(
            report,
            place["path"] if place["host"] else None,
            rehearsed=self.was_dry_run,
            rolled_back=self.was_taken_back(context),
        ).to_document()
        context["ti"].xcom_push(key=SUMMARY_KEY, value=summary)
        if report.summary.outcome == PROVEN and not report.errors:
            remember_proven(context["dag"].dag_id, str(context["run_id"]), summary)
        tell_arrival(context, self.plan, self.slug, report, place)

    def was_taken_back(self, context: Context) -> bool:
        """Whether the source had gone off and was brought back; a guest that never went down was only left running."""
        off, back = (context["ti"].xcom_pull(task_ids=task, map_indexes=-1) for task in (SHUTDOWN, "rollback"))
        return off is not None and back is not None

    def build(self, context: Context) -> Report:
        """Make the report of what the tasks left."""
        from hyperflow.manifest.report import Hosts, Run
        from hyperflow.manifest.report_builder import build_report

        stages = self.stages(context)
        manifest, reference = self.manifest(context)
        dag_run = context["dag_run"]
        return build_report(
            run=Run(
                dag_id=context["dag"].dag_id,
                run_id=context["run_id"],
                plan=self.plan,
                requested_by=getattr(dag_run, "triggering_user_name", None),
                overrides={key: value for key, value in (dag_run.conf or {}).items() if value is not None},
            ),
            vm=self.reported_vm(context),
            hosts=Hosts(
                vcenter=self.vcenter,
                kvm=self.settings.host_connection if self.migration else self.host_connection,
            ),
            stages=stages,
            errors=self.ended_between(stages),
            started=dag_run.start_date or datetime.now(UTC),
            ended=datetime.now(UTC),
            manifest=manifest,
            manifest_path=reference.get("path"),
            manifest_sha256=reference.get("sha256"),
            boot_proof=self.boot_proof(context),
            source_cleanup=self.source_cleanup(context),
            decisions=[
                decision
                for task in ASKING
                if (decision := context["ti"].xcom_pull(task_ids=task, key=DECISION_KEY, map_indexes=-1))
            ],
        )

    def disk_ids(self) -> list[str]:
        """The VM's disks."""
        return [disk["id"] for disk in (self.vm or {}).get("disks", [])]

    def manifest(self, context: Context) -> tuple[Manifest | None, dict[str, Any]]:
        """The manifest the run worked from, and where it lies."""
        from hyperflow.manifest.load import manifest_of

        reference = context["ti"].xcom_pull(task_ids="manifest", map_indexes=-1)
        document = context["ti"].xcom_pull(task_ids="manifest", key="document", map_indexes=-1)
        return (manifest_of(document), reference) if document and reference else (None, {})

    def reported_vm(self, context: Context) -> ReportedVm:
        """The VM: as the plan names it, and as vCenter and the guest's own disks describe it."""
        from hyperflow.manifest.report import ReportedVm

        document: dict[str, Any] = {"name": self.selector, "slug": self.slug, "selector": self.selector}
        if self.vm:
            document |= {"name": self.facts.name, "provider": "vsphere", "vm_id": self.facts.moref}
            document |= {"datacenter": self.facts.datacenter} if self.facts.datacenter else {}
        guest = context["ti"].xcom_pull(task_ids="inspect", map_indexes=-1)
        domain = context["ti"].xcom_pull(task_ids="define", map_indexes=-1)
        document |= {"guest": guest} if guest else {}
        document |= {"domain": domain["name"], "domain_uuid": domain["uuid"]} if domain else {}
        return ReportedVm.model_validate(document)

    def boot_proof(self, context: Context) -> BootProof | None:
        """The boot's proof, None where no boot was tried."""
        from hyperflow.manifest.report import BootProof

        result = context["ti"].xcom_pull(task_ids="boot", key=RESULT_KEY, map_indexes=-1)
        if not isinstance(result, dict):
            return None
        observed = {key: value for key, value in result["observed"].items() if key in BootProof.model_fields}
        known = {key: value for key, value in observed.items() if value is not None}
        return BootProof.model_validate({"proven": False, **known})

    def source_cleanup(self, context: Context) -> SourceCleanup | None:
        """What was read back at the vCenter at the end."""
        from hyperflow.manifest.report import SourceCleanup

        observed = context["ti"].xcom_pull(task_ids="cleanup", key=SOURCE_KEY, map_indexes=-1)
        if not isinstance(observed, dict):
            return None
        return SourceCleanup(
            clean=not observed["left"], snapshots_left=observed["left"], leases_left=[], observed=observed
        )
