"""Converting a manifest that lies on a host: what its DAG does besides the stages that a migration has too."""

from __future__ import annotations

import hashlib
import tempfile
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from hyperflow.hooks.audit import audit_start
from hyperflow.hooks.kvmhost import KvmHostHook
from hyperflow.manifest.shown import shown
from hyperflow.operators.base import (
    JOB_FOLDER,
    PREFLIGHT,
    HostRunOperator,
    accept_result,
    job_root,
    run_key,
    undone_tasks,
)
from hyperflow.operators.cleanup import created_anything
from hyperflow.operators.janitor import remember_host
from hyperflow.operators.run_report import RunReportOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.manifest.models import Manifest
    from hyperflow.manifest.report import Report
    from hyperflow.plans.conversion import Conversion, ConversionRequest

REFERENCE_KEY = "reference"  # XCom: {"host", "path", "sha256"} of the checked copy that the stages work from
HARDWARE_KEY = "hardware"  # XCom: {"nics": [{"mac"}]}, what the fix stage takes of a VM
SOURCE_KEY = "source"  # XCom: {"document", "sha256"} of the manifest as it was read, without its configuration
ORDER = (PREFLIGHT, "checksum", "inspect", "fix", "convert", "validate", "cleanup")


class ReadManifestOperator(HostRunOperator):
    """Reads the manifest on the host, decides what is done with it, checks the host, and puts a checked copy there.

    Returns ``[{"id"}]``, the disks in boot order, because Airflow maps tasks over a return value only.
    """

    def execute(self, context: Context) -> Any:
        """Check everything; also in a dry run, of which this is the whole."""
        return self._reporting_failure(context, self.perform, context)

    def perform(self, context: Context) -> list[dict[str, str]]:
        """Find all faults that can be found before anything is converted."""
        from hyperflow.manifest.faults import DocumentError
        from hyperflow.plans.conversion import parse_request

        started, ti = datetime.now(UTC), context["ti"]
        try:
            request = parse_request(dict(context["params"]))
            audit_start(context, "conversion", {key: value for key, value in context["params"].items() if value})
            content = self.read(request)
            manifest, conversion = self.decide(request, content)
        except DocumentError as fault:
            raise AirflowFailException(shown(str(fault))) from fault
        self.migration = conversion.model_dump(mode="json", by_alias=True)
        sha256 = hashlib.sha256(content).hexdigest()
        document = manifest.to_document()
        document.pop("configuration", None)  # may hold passwords' hashes; the fix stage reads it of the manifest itself
        ti.xcom_push(key=SOURCE_KEY, value={"document": document, "sha256": sha256})
        ti.xcom_push(key="migration", value=self.migration)
        ti.xcom_push(key=HARDWARE_KEY, value={"nics": [{"mac": mac} for mac in conversion.macs]})
        for stage in ("inspect", "fix", "convert", "validate"):
            self.log.info("%s: %s", stage, "runs" if conversion.wants(stage) else conversion.why_off(stage))
        if conversion.dry_run:
            self.keep_result(context, {"warnings": conversion.warnings}, started)
        else:
            self.prepare(context, manifest, conversion)
        return [{"id": disk_id} for disk_id in conversion.images]

    def read(self, request: ConversionRequest) -> bytes:
        """Read the manifest's file on the host, no more of it than a manifest may have."""
        from hyperflow.manifest.load import SIZE_LIMIT

        hook = KvmHostHook(ssh_conn_id=request.host_connection, directory=f"{request.staging_directory}/{JOB_FOLDER}")
        with hook.connected() as client:
            command = ["head", "--bytes", str(SIZE_LIMIT + 1), "--", request.manifest]
            status, content, errors = hook.run(client, command)
        if status != 0:
            told = shown(errors.decode(errors="replace").strip())
            raise AirflowFailException(f"{request.manifest} on {hook.remote_host} cannot be read: {told}")
        return content

    def decide(self, request: ConversionRequest, content: bytes) -> tuple[Manifest, Conversion]:
        """Check the manifest and decide what is done with it.

        :raises DocumentError: with every fault, under the manifest's path on the host
        """
        from hyperflow.manifest.load import ManifestError, load_manifest
        from hyperflow.plans.conversion import decide
        from hyperflow.plans.library import project_profile

        path = PurePosixPath(request.manifest)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, f"manifest{path.suffix}")
            copy.write_bytes(content)
            try:
                manifest = load_manifest(copy)
            except ManifestError as fault:
                raise ManifestError(request.manifest, fault.faults) from fault
        name = hashlib.sha256(request.manifest.encode()).hexdigest()[:16]
        return manifest, decide(
            manifest,
            path,
            project_profile(request.profile),
            host_connection=request.host_connection,
            staging_directory=f"{request.staging_directory}/convert-{name}",
            output_directory=request.output_directory,
            output_format=request.output_format,
            dry_run=request.dry_run,
        )

    def prepare(self, context: Context, manifest: Manifest, conversion: Conversion) -> None:
        """Have the host check itself, and put the manifest that was checked where the stages read it."""
        options = {
            "staging_directory": conversion.staging_directory,
            "output_directory": conversion.output_directory,
            "staging_bytes": 0,
            "output_bytes": sum(disk.virtual_bytes or disk.bytes for disk in manifest.disks),
            "images": [conversion.image(disk_id) for disk_id in conversion.images],
        }
        accept_result(context, self.host.run_stage("check", options), conversion.warnings)
        self.sign(context)
        document = {"path": conversion.manifest_path, "manifest": manifest.to_document()}
        result = self.host.run_stage("manifest", document)
        if not result.get("succeeded"):
            error = result.get("error") or {}
            raise AirflowFailException(shown(f"{conversion.source}: {error.get('message', 'could not be copied')}"))
        observed = result["observed"]
        reference = {"host": conversion.host_connection, "path": observed["path"], "sha256": observed["sha256"]}
        context["ti"].xcom_push(key=REFERENCE_KEY, value=reference)

    def sign(self, context: Context) -> None:
        """Sign the run's ledger before there is anything in it, and tell the janitor where it is."""
        remember_host(self.settings.host_connection, str(PurePosixPath(self.settings.staging_directory).parent))
        self.sign_ledger(context)


class CleanUpConversionOperator(HostRunOperator):
    """Ends what still runs of the conversion, and removes jobs, overlays and half-written images.

    A run that failed keeps the overlays of its fix, so that it can go on from there.
    """

    template_fields = ()

    def execute(self, context: Context) -> Any:
        """Clean up whatever became of the run."""
        self.migration = context["ti"].xcom_pull(task_ids=PREFLIGHT, key="migration", map_indexes=-1)
        return self._reporting_failure(context, self.perform, context)

    def perform(self, context: Context) -> dict[str, Any]:
        """Have the host remove it, and look that it is gone."""
        if not self.migration or self.settings.dry_run or not created_anything(context):
            raise AirflowSkipException("the run has created nothing that could be left behind")
        settings, failed = self.settings, bool(undone_tasks(context, self.settings))
        images = [PurePosixPath(settings.image(disk_id)) for disk_id in self.migration["images"]]
        if settings.output.format == "vdi":  # which is made of a qcow2
            images += [path.with_name(f"{path.name}.qcow2") for path in images]
        names = [*images, *(PurePosixPath(settings.work_directory, stage) for stage in ("inspect", "fix"))]
        options = {
            "run": run_key(context),
            "staging_directory": settings.staging_directory,
            "output_directory": settings.output_directory,
            "work_directory": None if failed else settings.work_directory,
            "partials": [str(path.with_name(f".{path.name}.partial")) for path in names],
            "ledger_directory": job_root(settings),
        }
        self.sign_ledger(context)  # refused where another Airflow has a run of this name: nothing of it is removed
        observed = accept_result(context, self.host.run_stage("cleanup", options))
        observed["jobs_removed"] = self.remove_jobs(context)
        return observed


class ReportConversionOperator(RunReportOperator):
    """Writes ``report.json`` where the manifest wants it and fails when the conversion did."""

    template_fields = ()
    order = ORDER

    def execute(self, context: Context) -> Any:
        """Write the report, whatever became of the run."""
        self.migration = context["ti"].xcom_pull(task_ids=PREFLIGHT, key="migration", map_indexes=-1)
        return self._reporting_failure(context, self.perform, context)

    def disk_ids(self) -> list[str]:
        """The manifest's disks in boot order."""
        return list((self.migration or {}).get("images", {}))

    def perform(self, context: Context) -> dict[str, Any]:
        """Write the report."""
        return self.finish(context, self.build(context), "conversion")

    def build(self, context: Context) -> Report:
        """Make the report of what the tasks left."""
        from hyperflow.manifest.load import manifest_of
        from hyperflow.manifest.report import Hosts, ReportedVm, Run
        from hyperflow.manifest.report_builder import build_report

        ti, dag_run, asked = context["ti"], context["dag_run"], dict(context["params"])
        stages = self.stages(context)
        source = ti.xcom_pull(task_ids=PREFLIGHT, key=SOURCE_KEY, map_indexes=-1) or {}
        manifest = manifest_of(source["document"]) if source else None
        guest = ti.xcom_pull(task_ids="inspect", map_indexes=-1)
        vm: dict[str, Any] = {"name": (self.migration or {}).get("name") or str(asked["manifest"]), "guest": guest}
        return build_report(
            run=Run(
                dag_id=context["dag"].dag_id,
                run_id=str(context["run_id"]),
                requested_by=getattr(dag_run, "triggering_user_name", None),
                overrides={key: value for key, value in asked.items() if value is not None},
            ),
            vm=ReportedVm.model_validate({key: value for key, value in vm.items() if value is not None}),
            hosts=Hosts(kvm=str(asked["host_connection"])),
            stages=stages,
            errors=self.ended_between(stages),
            started=dag_run.start_date or datetime.now(UTC),
            ended=datetime.now(UTC),
            manifest=manifest,
            manifest_path=str(asked["manifest"]),
            manifest_sha256=source.get("sha256"),
            boot_wanted=False,
        )
