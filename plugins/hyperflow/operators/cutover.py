"""The cold cutover: the source shut down, taken off the network, the target started; and all of it taken back.

What was changed at the source is written down before it is changed, in a variable of Airflow's that outlives the run,
so that a person can still roll back days later, until the plan is finalized.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import Variable
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException, TaskAwaitingInput
from airflow.sdk.execution_time.hitl import upsert_hitl_detail

from hyperflow.hooks.vsphere import VsphereHook
from hyperflow.manifest.shown import shown
from hyperflow.operators.approval import DECISION_KEY, moment, tell_who_is_asked, user_name
from hyperflow.operators.base import (
    SHUTDOWN,
    ClosingOperator,
    HostStageOperator,
    VmOperator,
    accept_result,
    domain_uuid,
    finished_tasks,
    job_root,
    safe,
    take_result,
    vm_key,
)
from hyperflow.operators.drift import heed_drift
from hyperflow.operators.preflight import STATE_KEY
from hyperflow.operators.proven import forget_proven
from hyperflow.operators.snapshot import SourceOperator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import BaseNotifier, Context

    from hyperflow.vsphere.session import Session

AGAIN, FORCE, ABORT = "Wait again", "Power off", "Abort"
FAILED_STATES = ("failed", "upstream_failed")
STOP_LIMIT = 60.0  # seconds the target may take to go down when it is rolled back


class ShutDownSourceOperator(SourceOperator):
    """Shuts the source's guest down before its last export, and reads back that it is off.

    Returns ``{"was", "state", "seconds", "forced", "at", "warnings"}``. When the guest does not go down in time, the
    plan says what is done: the run ends and nothing was forced, the VM is powered off hard, or a person is asked.

    :param approvers: who is asked, ``{"id", "name"}`` each; empty for whoever may run the DAG
    :param notifiers: that tell of the question
    """

    def __init__(
        self, *, approvers: list[dict[str, str]], notifiers: Sequence[BaseNotifier] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.approvers = approvers
        self.notifiers = notifiers

    def work(self, session: Session, context: Context) -> dict[str, Any]:
        """Look for drift, write down, shut down."""
        from hyperflow.vsphere.nics import connections

        warnings = heed_drift(self, session, context)
        known = record_of_this_run(context)
        # As they are while it runs; a second try may find it off, and its adapters with it.
        nics = known["nics"] if known else connections(session, self.facts.moref)
        note(context, {**self.record(), "nics": nics, "phase": "shutting down"})
        return self.shut_down(session, context, warnings)

    def shut_down(self, session: Session, context: Context, warnings: list[str]) -> dict[str, Any]:
        """Shut the guest down, within the time that the plan gives it."""
        from hyperflow.vsphere.errors import ShutdownTimedOut, ToolsNotRunning
        from hyperflow.vsphere.power import shut_down_guest

        cutover = self.settings.cutover
        deadline = cutover.shutdown_timeout_minutes * 60
        try:
            change = shut_down_guest(
                session,
                self.facts.moref,
                deadline,
                progress=lambda left: self.log.info("progress: the guest shuts down, %d s left", left),
            )
        except (ShutdownTimedOut, ToolsNotRunning) as fault:
            if cutover.on_shutdown_timeout == "abort":
                raise
            if cutover.on_shutdown_timeout == "ask":
                self.ask(context, str(fault))
            return self.force(session, context, [*warnings, shown(str(fault))])
        self.log.info("%s: %s", shown(self.facts.name), change.sentence())
        return self.off(session, context, change.was, change.seconds, forced=False, warnings=warnings)

    def force(self, session: Session, context: Context, warnings: list[str]) -> dict[str, Any]:
        """Power the VM off hard."""
        from hyperflow.vsphere.power import power_off

        self.log.warning("%s is powered off hard", shown(self.facts.name))
        change = power_off(session, self.facts.moref)
        told = [*warnings, "the source was powered off hard: its file systems are as after a power cut"]
        return self.off(session, context, change.was, change.seconds, forced=True, warnings=told)

    def off(
        self, session: Session, context: Context, was: str, seconds: float, *, forced: bool, warnings: list[str]
    ) -> dict[str, Any]:
        """Read the state back, and leave it for the drift check that follows."""
        from hyperflow.manifest.builder import timestamp
        from hyperflow.vsphere.drift import state

        now = state(session, self.facts.moref)
        if now["power_state"] != "poweredOff":
            raise AirflowFailException(f"{self.facts.name} was shut down, and is {now['power_state']}")
        context["ti"].xcom_push(key=STATE_KEY, value=now)
        note(context, {**record_of_this_run(context), "phase": "source off"})
        at = timestamp(datetime.now(UTC))
        return {
            "was": was,
            "state": now["power_state"],
            "seconds": seconds,
            "forced": forced,
            "at": at,
            "warnings": warnings,
        }

    def record(self) -> dict[str, Any]:
        """What a rollback needs to know."""
        facts, settings = self.facts, self.settings
        return {
            "vcenter": settings.vcenter_connection,
            "moref": facts.moref,
            "name": facts.name,
            "vm": vm_key(facts),
            "power": facts.power_state,
            "host": settings.host_connection,
            "domain": settings.domain_name,
            "uuid": domain_uuid(facts),
            "root": job_root(settings),
        }

    def ask(self, context: Context, why: str) -> None:
        """Ask what to do with a guest that does not go down; nobody's answer aborts."""
        approval = self.settings.cutover.approval
        minutes = approval.timeout_minutes if approval else 60
        subject = f"{shown(self.facts.name)} does not shut down. What now?"
        body = (
            f"{shown(why)}\n\n**{FORCE}** is a power cut: what the guest has not written is lost. **{ABORT}** "
            f"ends the run and leaves the source as it is. No answer within {minutes} minutes aborts."
        )
        upsert_hitl_detail(
            ti_id=context["ti"].id,
            options=[AGAIN, FORCE, ABORT],
            subject=subject,
            body=body,
            defaults=[ABORT],
            multiple=False,
            params={},
            assigned_users=cast("Any", self.approvers) or None,
        )
        tell_who_is_asked(context, self.notifiers, subject, body)
        raise TaskAwaitingInput(method_name="decided", timeout=timedelta(minutes=minutes))

    def decided(self, context: Context, event: dict[str, Any]) -> Any:
        """Do what a person has decided."""
        return self._reporting_failure(context, self.heed_answer, context, event)

    def heed_answer(self, context: Context, event: dict[str, Any]) -> Any:
        """Keep the answer, and do what it says."""
        chosen = (event.get("chosen_options") or [ABORT])[0] if "error" not in event else ABORT
        decision = {
            "question": f"{self.facts.name} does not shut down. What now?",
            "answer": chosen,
            "by": user_name(event),
            "at": moment(event.get("responded_at")),
        }
        context["ti"].xcom_push(key=DECISION_KEY, value={key: value for key, value in decision.items() if value})
        if chosen == ABORT:
            who = decision["by"] or "nobody's answer in time"
            raise AirflowFailException(f"{self.facts.name} does not shut down: aborted by {who}; nothing was forced")
        started = datetime.now(UTC)
        with self.vcenter.session() as session:
            work = self.force if chosen == FORCE else self.shut_down
            return self.keep_result(context, work(session, context, []), started)


class DisconnectSourceOperator(SourceOperator):
    """Takes the source off the network, now and at its next power-on; how it was is written down already.

    Returns ``{"nics": as read back, "warnings": [...]}``.
    """

    def work(self, session: Session, context: Context) -> dict[str, Any]:
        """Look for drift since the shutdown, and that the source is off; write down; disconnect."""
        from hyperflow.vsphere.nics import disconnect
        from hyperflow.vsphere.power import OFF, power_state

        warnings = heed_drift(self, session, context, since=SHUTDOWN)
        state = power_state(session, self.facts.moref)
        if state != OFF:
            raise AirflowFailException(f"{self.facts.name} is {state}, expected poweredOff: somebody switched it on")
        note(context, {**record_of_this_run(context), "phase": "source off the network"})
        nics = disconnect(session, self.facts.moref)
        self.log.info("%d network adapter(s) of %s are disconnected", len(nics), shown(self.facts.name))
        return {"nics": list(nics), "warnings": warnings}


class StartTargetOperator(HostStageOperator, VmOperator):
    """Starts the target for good, and waits until it answers as the plan wants.

    :param guest: what :class:`InspectGuestOperator` returned, for the guest's own addresses; templated
    """

    stage = "start"
    template_fields: Sequence[str] = (*VmOperator.template_fields, "guest")

    def __init__(self, *, guest: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.guest = guest

    def options(self, context: Context) -> dict[str, Any]:
        """Give the domain, and what it must answer."""
        health = self.settings.cutover.health
        if health.addresses is not None:
            addresses = [{"address": address, "mac": None} for address in health.addresses]
        else:
            addresses = [
                {"address": address.split("/")[0], "mac": network.get("mac")}
                for network in (self.guest or {}).get("network", [])
                for address in network["addresses"]
                if ":" not in address
            ]
        return {
            "uuid": domain_uuid(self.facts),
            "vm": vm_key(self.facts),
            "timeout_seconds": health.timeout_seconds,
            "addresses": addresses,
            "ports": health.ports,
            "guest_agent": health.guest_agent,
        }

    def perform(self, context: Context) -> Any:
        """Write down that the target runs from here on, and start it."""
        note(context, {**record_of_this_run(context), "phase": "target started"})
        return super().perform(context)

    def resume(self, context: Context, event: dict[str, Any], **kept: Any) -> Any:
        """Tell that it is well."""
        observed = take_result(context, event)
        note(context, {**record_of_this_run(context), "phase": "cut over"})
        return observed


class RollBackOperator(ClosingOperator):
    """Takes a cutover back when something after the shutdown failed: the source runs again as it did.

    Returns what :func:`roll_back` does; skipped when all went well, or nothing was changed.
    """

    def perform(self, context: Context) -> dict[str, Any]:
        """Roll back, if there is a reason to."""
        record = cutover_of(context["dag"].dag_id)
        failed = [crumb["task_id"] for crumb in finished_tasks(context) if crumb["state"] in FAILED_STATES]
        if record is None or record.get("run") != str(context["run_id"]) or not failed:
            raise AirflowSkipException("there is nothing to roll back")
        self.log.warning("rolling back, because of %s", ", ".join(dict.fromkeys(failed)))
        started = datetime.now(UTC)
        return self.keep_result(context, roll_back(self, context, context["dag"].dag_id, record), started)


def roll_back(operator: Any, context: Context, dag_id: str, record: dict[str, Any]) -> dict[str, Any]:
    """Stop and undefine the target, put the source's adapters back, power it on, and prove that it runs.

    The target first: the two may never be on the network together. Bears being called again.

    :param record: of :func:`cutover_of`
    :return: ``{"target": name or None, "power": read back, "nics": as read back, "warnings": [...]}``
    """
    from hyperflow.hooks.kvmhost import KvmHostHook
    from hyperflow.vsphere.errors import VsphereError
    from hyperflow.vsphere.nics import restore
    from hyperflow.vsphere.power import ON, power_on, power_state

    put(dag_id, {**record, "phase": "rolling back"})
    host = KvmHostHook(ssh_conn_id=record["host"], directory=record["root"])
    asked = {"uuid": record["uuid"], "vm": record["vm"], "shutdown_seconds": STOP_LIMIT}
    stopped = accept_result(context, host.run_stage("stop", asked))
    try:
        with VsphereHook(record["vcenter"]).session() as session:
            restore(session, record["moref"], record["nics"])
            if record["power"] == ON:
                operator.log.info("%s: %s", shown(record["name"]), power_on(session, record["moref"]).sentence())
            nics = list(restore(session, record["moref"], record["nics"]))  # connected by hand: possible only now
            power = power_state(session, record["moref"])
    except VsphereError as fault:
        raise (AirflowException if fault.temporary else AirflowFailException)(
            f"the rollback of {record['name']} could not be finished: {fault}. Its target is stopped. Run "
            f"./hyperflow rollback for it again, or connect its adapters and power it on by hand"
        ) from fault
    if power != record["power"]:
        raise AirflowException(f"{record['name']} was {record['power']} before, and is {power} after its rollback")
    forget_proven(dag_id)
    put(dag_id, {**record, "phase": "rolled back"})
    operator.log.info("%s is %s again, as it was; the images are kept", shown(record["name"]), power)
    return {"target": stopped["name"], "power": power, "nics": nics, "warnings": []}


def note(context: Context, record: dict[str, Any]) -> None:
    """Write down how far the cutover of this run's VM is, before the next step is taken."""
    put(context["dag"].dag_id, {**record, "run": str(context["run_id"])})


def record_of_this_run(context: Context) -> dict[str, Any]:
    """What this run has written down; empty when it has nothing yet."""
    record = cutover_of(context["dag"].dag_id) or {}
    return record if record.get("run") == str(context["run_id"]) else {}


def put(dag_id: str, record: dict[str, Any]) -> None:
    """Keep the record of a VM's cutover."""
    Variable.set(
        _key(dag_id),
        {**record, "at": datetime.now(UTC).isoformat()},
        description=f"Hyperflow: how far the cutover of {dag_id} is, and how its source was",
        serialize_json=True,
    )


def cutover_of(dag_id: str) -> dict[str, Any] | None:
    """How far the cutover of a VM is, and how its source was; None when there was none."""
    found = Variable.get(_key(dag_id), default=None, deserialize_json=True)
    return found if isinstance(found, dict) and isinstance(found.get("moref"), str) else None


def _key(dag_id: str) -> str:
    return f"hyperflow_cutover_{safe(dag_id)}"
