"""What the tasks of a migration share: the run's settings, stages on the host, and what is kept for the report."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import time
import uuid
from datetime import UTC, datetime
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, cast

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from hyperflow.hooks.audit import audit
from hyperflow.hooks.records import safe
from hyperflow.operators.ownership import owner_of
from hyperflow.operators.results import require_as_asked, require_sound

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import paramiko
    from airflow.sdk import Context

    from hyperflow.audit.entry import State
    from hyperflow.hooks.kvmhost import KvmHostHook
    from hyperflow.plans.host_run import HostRun
    from hyperflow.plans.migration import Migration
    from hyperflow.vsphere.facts import VmFacts

PREFLIGHT = "preflight"  # id of the task that resolves the run's settings
SHUTDOWN = "shutdown"  # id of the task that shuts the source down for a cold cutover
RESULT_KEY = "result"  # XCom: the stage's whole result, for the report
FAILURE_KEY = "failure"  # XCom: {"stage", "message", "code"} of a task that failed, for the report
FAILED_STATES = ("failed", "upstream_failed")  # of Airflow's tasks
RAN_STATES = ("success", "failed")  # of a task that has worked
CLOSING = ("remove_snapshot", "rollback", "cleanup", "report")  # tasks that run whatever became of the others
TRY_AGAIN = "try-again"  # the kind of a stage's error that may pass
SOON = 6.0  # seconds that a task waits for a stage before it defers: what deferring costs, by Airflow's defaults more
JOB_FOLDER = ".hyperflow"  # below the staging directory of the host

log = logging.getLogger(__name__)


class HostRunOperator(BaseOperator):
    """A task of a run that works on a KVM host: a VM's migration, or the conversion of a manifest.

    A subclass implements :meth:`perform`, and :meth:`resume` where it defers. Whatever makes it fail is kept for
    the report before Airflow sees it.

    :param migration: the run's settings as preflight resolved them (a ``HostRun`` as JSON); templated
    """

    template_fields: Sequence[str] = ("migration",)
    ui_color = "#e8f1fa"
    works_on_vm: ClassVar[bool] = True  # false for what must be done also when another run has the VM

    def __init__(self, *, migration: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.migration = migration

    @cached_property
    def settings(self) -> HostRun:
        """The run's settings."""
        from pydantic import TypeAdapter

        from hyperflow.plans.conversion import Conversion
        from hyperflow.plans.migration import Migration

        run: TypeAdapter[Migration | Conversion] = TypeAdapter(Migration | Conversion)
        return run.validate_json(json.dumps(self.migration))

    @cached_property
    def host(self) -> KvmHostHook:
        """The KVM host that the run works on."""
        from hyperflow.hooks.kvmhost import KvmHostHook  # paramiko takes half a second, also in whoever parses DAGs

        return KvmHostHook(ssh_conn_id=self.settings.host_connection, directory=job_root(self.settings))

    def execute(self, context: Context) -> Any:
        """Do the task's work; a dry run ends here."""
        if self.settings.dry_run:
            raise AirflowSkipException("dry run: nothing is created, copied or changed")
        return self._reporting_failure(context, self._perform_alone, context)

    def execute_complete(self, context: Context, event: dict[str, Any], **kept: Any) -> Any:
        """Go on after the trigger has fired."""
        return self._reporting_failure(context, self.resume, context, event, **kept)

    def _perform_alone(self, context: Context) -> Any:
        """Do the work if no other run has the VM: a run that failed may be gone on with after another one has begun."""
        from hyperflow.operators.claim import claim

        if self.works_on_vm and (vm := self.vm_of_run(context)):
            claim(context, vm["instance_uuid"] or vm["moref"], vm["name"])
        return self.perform(context)

    def vm_of_run(self, context: Context) -> Any:
        """The VM's facts as preflight read them (``VmFacts`` as JSON); None when it did not, or there is no VM."""
        return context["ti"].xcom_pull(task_ids=PREFLIGHT, key="vm", map_indexes=-1)

    def perform(self, context: Context) -> Any:
        """Do the work, or start it and defer."""
        raise NotImplementedError  # an abstract method: Airflow's metaclass does not go with ABC

    def resume(self, context: Context, event: dict[str, Any], **kept: Any) -> Any:
        """Take over what the trigger brought."""
        return take_result(context, event)

    def remove_jobs(self, context: Context) -> int:
        """Have the host remove the run's jobs; how many there were."""
        with self.host.connected() as client:
            jobs = jobs_of_run(job_root(self.settings), context)
            removed: int = self.host.job(client, "remove", "--directory", jobs)["removed"]
        return removed

    def sign_ledger(self, context: Context, *entries: dict[str, Any]) -> str:
        """Note on the host whose run this is, and what it is about to create.

        :param entries: of the ledger, ``{"kind", "thing", "facts"}`` each
        :return: path of the host program, which is there
        :raises KvmHostError: when it cannot be noted, or a run of this name of another Airflow is at work there
        """
        with self.host.connected() as client:
            program = self.host.ensure_program(client)
            request = {"owner": owner_of(context), "entries": list(entries)}
            self.host.ledger(client, "add", "--run", run_key(context), request=request)
        return program

    def keep_result(self, context: Context, observed: dict[str, Any], started: datetime) -> dict[str, Any]:
        """Keep, for the report, what a task observed that runs no stage on a host.

        :param observed: its ``warnings`` are the report's
        :param started: when the work began
        """
        result = {
            "stage": self.task_id,
            "succeeded": True,
            "observed": observed,
            "warnings": observed.get("warnings", []),
            "started": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seconds": round((datetime.now(UTC) - started).total_seconds(), 3),
        }
        context["ti"].xcom_push(key=RESULT_KEY, value=result)
        return observed

    def _reporting_failure(self, context: Context, function: Any, *arguments: Any, **kept: Any) -> Any:
        try:
            return function(*arguments, **kept)
        except AirflowSkipException:
            raise
        except Exception as fault:
            keep_failure(context, self.task_id, fault)
            raise


class MigrationOperator(HostRunOperator):
    """A task of one VM's migration."""

    @cached_property
    def settings(self) -> Migration:
        """The run's settings: profile < plan < VM < run."""
        from hyperflow.plans.migration import Migration

        return Migration.model_validate_json(json.dumps(self.migration))


class VmOperator(MigrationOperator):
    """A task that needs to know the VM.

    :param vm: the VM's facts as preflight read them (``VmFacts`` as JSON), None when it did not; templated
    """

    template_fields: Sequence[str] = (*MigrationOperator.template_fields, "vm")

    def __init__(self, *, vm: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vm = vm

    def vm_of_run(self, context: Context) -> Any:
        """The VM's facts, which this task has already."""
        return self.vm

    @property
    def facts(self) -> VmFacts:
        """The VM as preflight saw it."""
        from hyperflow.vsphere.facts import VmFacts

        return VmFacts.from_json(self.vm)


class ClosingOperator(VmOperator):
    """A task that runs whatever became of the others, so it takes what preflight has left, which may be nothing."""

    template_fields: Sequence[str] = ()

    def execute(self, context: Context) -> Any:
        """Take settings and VM, and do the work; also of a dry run and of a run that failed early."""
        ti = context["ti"]
        self.migration = ti.xcom_pull(task_ids=PREFLIGHT, key="migration", map_indexes=-1)
        self.vm = ti.xcom_pull(task_ids=PREFLIGHT, key="vm", map_indexes=-1)
        return self._reporting_failure(context, self.perform, context)


class HostStageOperator(HostRunOperator):
    """Runs one stage as a detached job on the KVM host, and defers until it ended.

    What is over within :data:`SOON` is waited for: a task that defers is started twice.

    :param stage: the stage's name
    """

    stage: ClassVar[str]
    _directory: str | None = None  # of the job that this process has started

    def options(self, context: Context) -> dict[str, Any]:
        """Give the stage's options."""
        raise NotImplementedError

    def execute_complete(self, context: Context, event: dict[str, Any], **kept: Any) -> Any:
        """Go on after the trigger has fired, with a result that is of what was asked for."""
        return self._reporting_failure(context, self._resume_as_asked, context, event, **kept)

    def _resume_as_asked(self, context: Context, event: dict[str, Any], **kept: Any) -> Any:
        result = event.get("result")
        if isinstance(result, dict) and result.get("succeeded") and isinstance(result.get("observed"), dict):
            require_as_asked(self.stage, self.options(context), result["observed"])
        return self.resume(context, event, **kept)

    def perform(self, context: Context) -> Any:
        """Start the stage, or attach to a copy that still runs; take its result if it is over soon, else defer."""
        from hyperflow.hooks.kvmhost import work_of
        from hyperflow.triggers.job import JobTrigger

        options = self.options(context)
        self._directory = job_directory(self.settings, context)
        with self.host.connected() as client:
            program = self.host.ensure_program(client)
            started = self.host.job(
                client,
                *("start", "--directory", self._directory, "--stage", self.stage, "--work", work_of(options)),
                *("--run", run_key(context), "--owner", json.dumps(owner_of(context)), "--now", f"{time.time():.3f}"),
                stdin=json.dumps(options).encode(),
            )
            verb = "attached to the running" if started["attached"] else "started the"
            self.log.info("%s %s stage on %s: %s", verb, self.stage, self.host.remote_host, started["job"])
            is_over = self._is_over_soon(client, started["job"])
        trigger = JobTrigger(ssh_conn_id=self.settings.host_connection, program=program, job=started["job"])
        if not is_over:
            self.defer(trigger=trigger, method_name="execute_complete")
        return self._resume_as_asked(context, asyncio.run(trigger.take(context["ti"])))

    def _is_over_soon(self, client: paramiko.SSHClient, job: str) -> bool:
        """Wait a little for the job's end; the trigger has the patience for all that goes wrong meanwhile."""
        from hyperflow.hooks.kvmhost import KvmHostError

        try:
            return bool(self.host.job(client, "wait", "--job", job, "--seconds", str(SOON))["state"] != "RUNNING")
        except KvmHostError as fault:
            self.log.info("%s; the job is followed from afar", fault)
            return False

    def on_kill(self) -> None:
        """End the job when a person ends the task while this process waits for it."""
        from hyperflow.hooks.kvmhost import KvmHostError

        if self._directory is None:
            return
        host = copy.copy(self.host)
        host.client = None  # a connection of its own: this process waits by the other one
        try:
            with host.connected() as client:
                killed = host.job(client, "kill", "--directory", self._directory)["killed"]
        except KvmHostError as fault:
            self.log.warning("the job on the host was not ended: %s", fault)
        else:
            self.log.info("ended on the host: %d running job(s) of %s", killed, self._directory)


def keep_failure(context: Context, task_id: str, fault: Exception) -> None:
    """Keep a failure for the report, and say in the log what it means and what to do."""
    from hyperflow.errors.catalogue import explain

    message = str(fault) or type(fault).__name__
    known = explain(message, task_id)
    failure = {"stage": task_id, "message": message, "code": known.code}
    context["ti"].xcom_push(key=FAILURE_KEY, value=failure)
    log.error("%s", known.advice())


def take_result(context: Context, event: dict[str, Any]) -> dict[str, Any]:
    """Take what a job's trigger fired: the stage's observations, or the error that tells what to do.

    :raises AirflowException: when another try may help
    :raises AirflowFailException: when it cannot
    """
    state = event["state"]
    if state == "FAILED":
        raise (AirflowException if event["retry"] else AirflowFailException)(event["reason"])
    if state != "DONE":
        raise AirflowException(f"job {event.get('job')}: {state}: {event.get('reason', 'no trace of it')}")
    result = event.get("result")
    if not isinstance(result, dict) and "reason" in event:
        raise AirflowException(f"job {event['job']}: {event['reason']}")
    if not isinstance(result, dict):
        raise AirflowException(
            f"job {event['job']}: ended with exit status {event['exit_status']} and left no result that can be read: "
            f"{event.get('result_fault')}"
        )
    if result.get("succeeded") and event["exit_status"] != 0:
        raise AirflowException(f"job {event['job']}: was ended after it had its result ({event['exit_status']})")
    return accept_result(context, result)


def accept_result(context: Context, result: dict[str, Any], warnings: Sequence[str] = ()) -> dict[str, Any]:
    """Keep a stage's result for the report and return what it observed, or raise its error.

    :param warnings: the task's own, for the report
    """
    require_sound(result)
    audit_stage(result)
    result["warnings"] = [*warnings, *result.get("warnings", [])]
    context["ti"].xcom_push(key=RESULT_KEY, value=result)
    if result.get("succeeded"):
        return dict(result["observed"])
    error = result.get("error") or {}
    message = f"{result.get('stage')} on {result.get('host')}: {error.get('message', 'failed without a reason')}"
    # A stage that failed for a reason of its own fails again: only what may pass is tried again.
    raise (AirflowException if error.get("kind") == TRY_AGAIN else AirflowFailException)(message)


def audit_stage(result: dict[str, Any]) -> None:
    """Write into the run's audit file how a stage ended, and each program that it ran on its host."""
    error, host = result.get("error") or {}, str(result.get("host"))
    for command in result.get("commands", []):
        state: State = "done" if command["exit"] == 0 else "failed"
        seconds, status = command["seconds"], command["exit"]
        audit("host", command["command"], state=state, on=host, seconds=seconds, exit_status=status)
    audit(
        *("host", f"stage {result.get('stage')}"),
        state="done" if result.get("succeeded") else "failed",
        on=host,
        seconds=result.get("seconds"),
        said=error.get("message"),
    )


def stage_of(migration: Migration, name: str) -> dict[str, Any]:
    """Give the choices of one pipeline stage, as the manifest writes them."""
    pipeline: dict[str, dict[str, Any]] = migration.model_dump(mode="json", by_alias=True)["pipeline"]
    return dict(pipeline[name])


def job_root(migration: HostRun) -> str:
    """Folder on the host for the program and the jobs, beside the VMs' staging folders."""
    return f"{PurePosixPath(migration.staging_directory).parent}/{JOB_FOLDER}"


def run_key(context: Context) -> str:
    """The run as a name: ``DAG/RUN``, of characters that are safe in a path and on a command line."""
    return f"{safe(context['dag'].dag_id)}/{safe(context['run_id'])}"


def job_directory(migration: HostRun, context: Context) -> str:
    """The task's job directory on the host: the same for every try, another for every mapped task."""
    ti = context["ti"]
    task = safe(ti.task_id) if ti.map_index is None or ti.map_index < 0 else f"{safe(ti.task_id)}.{ti.map_index}"
    return f"{jobs_of_run(job_root(migration), context)}/{task}"


def jobs_of_run(root: str, context: Context) -> str:
    """The folder on the host that has the run's jobs.

    :param root: of :func:`job_root`
    """
    return f"{root}/jobs/{run_key(context)}"


def vm_key(facts: VmFacts) -> str:
    """Name a VM for good: its instance UUID, which a vCenter gives once, or its MoRef where it has none."""
    return facts.instance_uuid or facts.moref


def domain_uuid(facts: VmFacts) -> str:
    """UUID of the target's domain: the source's, or one made of its name for good where it has none."""
    return facts.bios_uuid or str(uuid.uuid5(uuid.NAMESPACE_URL, f"hyperflow:{vm_key(facts)}"))


def finished_tasks(context: Context) -> list[dict[str, Any]]:
    """List the run's tasks that ended: ``{"task_id", "map_index", "state", "operator", "duration"}`` each."""
    ti = cast("Any", context["ti"])  # the protocol that Context names leaves this method out
    return list(ti.get_task_breadcrumbs(dag_id=context["dag"].dag_id, run_id=context["run_id"]))


def tasks_run(context: Context) -> set[str]:
    """Tasks that have worked and ended since the run began, or was cleared: Airflow keeps what a task has left until
    that task starts again, so without a look at this what an earlier round has left is taken for this one's.
    """
    return {crumb["task_id"] for crumb in finished_tasks(context) if crumb["state"] in RAN_STATES}


def has_run(context: Context, task_id: str) -> bool:
    """Whether a task is one of :func:`tasks_run`."""
    return task_id in tasks_run(context)


def left_by(ran: Collection[str], context: Context, task_id: str, key: str = "return_value") -> Any:
    """What a task that is not mapped has left in this round of it; None when nothing.

    :param ran: of :func:`tasks_run`
    """
    return context["ti"].xcom_pull(task_ids=task_id, key=key, map_indexes=-1) if task_id in ran else None


def undone_tasks(context: Context, settings: HostRun) -> list[str]:
    """Name the run's tasks that failed or were not reached; none when all is well so far.

    When a person sets the state of a whole run, Airflow skips what has not begun. So a task that was skipped is one
    of these unless the run itself has a reason to skip it.
    """
    return list(
        dict.fromkeys(
            crumb["task_id"]
            for crumb in finished_tasks(context)
            if crumb["state"] in FAILED_STATES
            or (
                crumb["state"] == "skipped"
                and crumb["task_id"] not in CLOSING
                and settings.why_skipped(crumb["task_id"]) is None
            )
        )
    )
