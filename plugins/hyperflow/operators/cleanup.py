"""What a run leaves behind, looked for, removed, and looked for again."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowSkipException

from hyperflow.hooks.vsphere import VsphereHook
from hyperflow.operators.base import (
    PREFLIGHT,
    ClosingOperator,
    accept_result,
    domain_uuid,
    finished_tasks,
    job_root,
    run_key,
    undone_tasks,
    vm_key,
)
from hyperflow.operators.cutover_record import TARGET_STARTED, may_run, record_of_this_run, target_stays
from hyperflow.operators.preflight import TRY_KEY
from hyperflow.operators.proven import was_proven_by
from hyperflow.operators.snapshot import remove_own_snapshots

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.vsphere.facts import VmFacts

SOURCE_KEY = "source"  # XCom: what was read back at the vCenter
AT_SOURCE = ("snapshot", "lease")  # kinds of the ledger: read back as gone; a lease ends with its session
RESULTS = ("staged-disk", "domain")  # kinds of the ledger that a run that succeeded leaves on purpose


class CleanUpOperator(ClosingOperator):
    """Leaves nothing of the run at the source and on the host but its files, and reads that back.

    Ends what still runs of it, and removes jobs, half-written files and the boot proof's overlays. A run that failed
    keeps its staged disks and the fix's overlays, so that it can go on from there. Its domain is undefined again, but
    not one that this run proved before it was cleared, and not the target of a cutover unless it was taken back: that
    one is the machine now, or was left because its source did not come back, whatever failed afterwards.
    """

    def perform(self, context: Context) -> dict[str, Any]:
        """Clean the source, then the host; each is tried whatever became of the other."""
        if self.migration is None or self.settings.dry_run or not created_anything(context):
            raise AirflowSkipException("the run has created nothing that could be left behind")
        faults: list[str] = []
        failed = bool(undone_tasks(context, self.settings))
        record = record_of_this_run(context)
        was_proven = was_proven_by(context["dag"].dag_id, str(context["run_id"]))
        stays = target_stays(record) or was_proven
        settled: list[str] = list(RESULTS) if stays or not failed else []
        if self.vm:
            try:
                with VsphereHook(self.settings.vcenter_connection).session() as session:
                    source = remove_own_snapshots(session, self.facts.moref, context)
                context["ti"].xcom_push(key=SOURCE_KEY, value=source)
                settled += AT_SOURCE
            except Exception as fault:  # noqa: BLE001 - kept, and raised below: the host must be cleaned all the same
                faults.append(f"the source could not be cleaned: {fault}")
        undefine = failed and not may_run(record) and not was_proven
        observed = self.clean_host(context, settled, failed=failed, undefine=undefine)
        if record.get("phase") != TARGET_STARTED:  # else the job that started it alone can tell that it was well
            observed["jobs_removed"] = self.remove_jobs(context)
        if faults:
            raise AirflowException("; ".join(faults))
        return observed

    def clean_host(self, context: Context, settled: list[str], *, failed: bool, undefine: bool) -> dict[str, Any]:
        """Have the host remove what the run left there, and strike it off the ledger.

        :param settled: kinds of the ledger that are struck off without a look at the host
        :param failed: the run may go on from its staged disks and overlays
        :param undefine: whether the run's domain goes too
        """
        settings = self.settings
        options = {
            "run": run_key(context),
            "staging_directory": settings.staging_directory,
            "output_directory": settings.output_directory,
            "work_directory": f"{settings.work_directory}/boot" if failed else settings.work_directory,
            "partials": self.partials(),
            "domain": owner_of(self.facts) if undefine and self.vm else None,
            "ledger_directory": job_root(settings),
            "settled": settled,
        }
        self.sign_ledger(context)  # refused where another Airflow has a run of this name: nothing of it is removed
        return accept_result(context, self.host.run_stage("cleanup", options))

    def partials(self) -> list[str]:
        """Name what a download or a conversion writes before it is complete."""
        settings = self.settings
        names = [
            PurePosixPath(settings.work_directory) / stage for stage in ("inspect", "fix")
        ]  # a killed one's folder
        for index, disk in enumerate((self.vm or {}).get("disks", [])):
            staged, image = PurePosixPath(settings.staged_disk(index)), PurePosixPath(settings.image(disk["id"]))
            # a VDI is made of a qcow2; either may be decoded while the disk is downloaded
            made = [image] if settings.output.format != "vdi" else [image, image.with_name(f"{image.name}.qcow2")]
            names += [staged, *made, *(path.with_name(f"{path.name}.decoded") for path in made)]
        return [str(path.with_name(f".{path.name}.partial")) for path in names]


def owner_of(facts: VmFacts) -> dict[str, str]:
    """Tell whose domain it is, as the define stage writes it into the domain's metadata."""
    return {"uuid": domain_uuid(facts), "vm": vm_key(facts)}


def created_anything(context: Context) -> bool:
    """Tell whether a task ran that creates something: any after preflight; also before the run was cleared, which makes
    its tasks forget that they ran.
    """
    ti = context["ti"]
    tries = (ti.try_number, ti.xcom_pull(task_ids=PREFLIGHT, key=TRY_KEY, map_indexes=-1))
    return max(each for each in tries if each is not None) > 1 or any(
        crumb["task_id"] != PREFLIGHT and crumb["state"] not in ("upstream_failed", "skipped")
        for crumb in finished_tasks(context)
    )
