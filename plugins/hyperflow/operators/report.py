"""The last task: what was observed, also of a run that failed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException

from hyperflow.hooks.records import keep, run_folder
from hyperflow.operators.arrival import tell_arrival
from hyperflow.operators.base import (
    RESULT_KEY,
    SHUTDOWN,
    ClosingOperator,
    left_by,
    run_key,
    tasks_run,
    vm_key,
)
from hyperflow.operators.claim import release
from hyperflow.operators.cleanup import SOURCE_KEY
from hyperflow.operators.decisions import decisions_of
from hyperflow.operators.kept_plan import let_go_of_plan
from hyperflow.operators.preflight import plan_location
from hyperflow.operators.proven import PROVEN, SUMMARY_KEY, remember_proven, tell_state
from hyperflow.operators.run_report import RunReportOperator
from hyperflow.plans.subject import subject

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.sdk import Context
    from paramiko import SSHClient

    from hyperflow.manifest.models import Manifest
    from hyperflow.manifest.report import BootProof, Report, ReportedVm, SourceCleanup

ORDER = (
    *("preflight", "approve_shutdown", "shutdown", "snapshot", "export", "remove_snapshot", "manifest", "checksum"),
    *("inspect", "fix", "convert", "validate", "boot", "define", "approve_start", "disconnect", "start", "rollback"),
    "cleanup",
)
ASKING = ("approve_shutdown", "shutdown", "approve_start")  # tasks that leave a person's decision
EVIDENCE = {"console.log": "console_log", "screenshot.png": "screenshot"}  # what a boot leaves for people: file, field
EVIDENCE_LIMIT = 8 << 20  # bytes of each; they have some 100 KiB
BEGINS = {"screenshot.png": b"\x89PNG\r\n\x1a\n"}  # what else would be shown as something that it is not


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
        self.ran: set[str] = set()  # tasks that have left something in this round of the run

    def perform(self, context: Context) -> dict[str, Any]:
        """Write the report, and give back what the run alone had: the VM and its plan."""
        if self.vm:
            release(context, vm_key(self.facts))
        let_go_of_plan(plan_location(self.plan_file), run_key(context))
        self.ran = tasks_run(context)
        folder = run_folder(context["dag"].dag_id, str(context["run_id"]))
        report = self.with_evidence(self.build(context), folder)
        return self.finish(context, report, f"migration of {self.selector}")

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
            settings = self.settings
            of = subject(settings.vcenter_connection, settings.datacenter, settings.selector, self.host_connection)
            remember_proven(context["dag"].dag_id, str(context["run_id"]), summary, settings.cutover.strategy, of)
        if not self.was_dry_run:
            tell_state(context["dag"].dag_id, summary["outcome"])
        tell_arrival(context, self.plan, self.slug, report, place)

    def left(self, context: Context, task_id: str, key: str = "return_value") -> Any:
        """What a task has left in this round of the run; None when nothing."""
        return left_by(self.ran, context, task_id, key)

    def was_taken_back(self, context: Context) -> bool:
        """Whether the source had gone off and was brought back; a guest that never went down was only left running."""
        off, back = (self.left(context, task) for task in (SHUTDOWN, "rollback"))
        return off is not None and back is not None

    def build(self, context: Context) -> Report:
        """Make the report of what the tasks left."""
        from hyperflow.manifest.report import Hosts, Run
        from hyperflow.manifest.report_builder import build_report

        stages = self.stages(context)
        manifest, reference = self.manifest(context)
        dag_run, asked = context["dag_run"], [task for task in ASKING if task in self.ran]
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
            decisions=[decision for task in asked for decision in decisions_of(context["ti"], task)],
        )

    def disk_ids(self) -> list[str]:
        """The VM's disks."""
        return [disk["id"] for disk in (self.vm or {}).get("disks", [])]

    def manifest(self, context: Context) -> tuple[Manifest | None, dict[str, Any]]:
        """The manifest the run worked from, and where it lies."""
        from hyperflow.manifest.load import manifest_of

        reference = self.left(context, "manifest")
        document = self.left(context, "manifest", "document")
        return (manifest_of(document), reference) if document and reference else (None, {})

    def reported_vm(self, context: Context) -> ReportedVm:
        """The VM: as the plan names it, and as vCenter and the guest's own disks describe it."""
        from hyperflow.manifest.report import ReportedVm

        document: dict[str, Any] = {"name": self.selector, "slug": self.slug, "selector": self.selector}
        if self.vm:
            document |= {"name": self.facts.name, "provider": "vsphere", "vm_id": self.facts.moref}
            document |= {"datacenter": self.facts.datacenter} if self.facts.datacenter else {}
        guest, domain = self.left(context, "inspect"), self.left(context, "define")
        document |= {"guest": guest} if guest else {}
        document |= {"domain": domain["name"], "domain_uuid": domain["uuid"]} if domain else {}
        return ReportedVm.model_validate(document)

    def boot_proof(self, context: Context) -> BootProof | None:
        """The boot's proof, None where no boot was tried."""
        from hyperflow.manifest.report import BootProof

        result = self.left(context, "boot", RESULT_KEY)
        if not isinstance(result, dict):
            return None
        observed = {key: value for key, value in result["observed"].items() if key in BootProof.model_fields}
        known = {key: value for key, value in observed.items() if value is not None}
        return BootProof.model_validate({"proven": False, **known})

    def with_evidence(self, report: Report, folder: Path) -> Report:
        """Fetch what the boot left for people, its console log and screenshot, into the run's records.

        A guest that does not come up is the one whose console is needed, and its stage names neither: both are looked
        for where the boot puts them, and the report names those that were there. What cannot be fetched is told of and
        left out.

        :param folder: the run's records; what an earlier try of the run has left there of its boot goes
        """
        proof, kept = report.boot_proof, dict[str, str]()
        try:
            if proof is not None:
                with self.host.connected() as client:
                    for name, field in EVIDENCE.items():
                        path = getattr(proof, field) or f"{self.settings.boot_directory}/{name}"
                        if self.keep_one(client, path, folder / name):
                            kept[field] = path
        except (AirflowException, OSError, ValueError) as fault:
            self.log.warning("what the boot left could not be fetched: %s", fault)
        for name, field in EVIDENCE.items():
            if field not in kept:
                (folder / name).unlink(missing_ok=True)
        return report.model_copy(update={"boot_proof": proof and proof.model_copy(update=kept)})

    def keep_one(self, client: SSHClient, path: str, kept: Path) -> bool:
        """Fetch one of them; false when it is not there, or is something else than its name says."""
        from hyperflow.hooks.kvmhost import KvmHostAway  # paramiko takes half a second, also in whoever parses DAGs

        try:
            content = self.host.fetch(client, path, EVIDENCE_LIMIT)
        except KvmHostAway:
            raise
        except AirflowException as fault:
            self.log.warning("the boot's %s could not be fetched: %s", kept.name, fault)
            return False
        if not content.startswith(BEGINS.get(kept.name, b"")):
            self.log.warning("the boot's %s, %s, is none and was left out", kept.name, path)
            return False
        keep(kept, content)
        return True

    def source_cleanup(self, context: Context) -> SourceCleanup | None:
        """What was read back at the vCenter at the end."""
        from hyperflow.manifest.report import SourceCleanup

        observed = self.left(context, "cleanup", SOURCE_KEY)
        if not isinstance(observed, dict):
            return None
        return SourceCleanup(
            clean=not observed["left"], snapshots_left=observed["left"], leases_left=[], observed=observed
        )
