"""The cold cutover: the source shut down, taken off the network, the target started. rollback.py takes it back.

What was changed at the source is written down before it is changed (cutover_record.py). Source and target are never on
the network together: the target is started only when the vCenter has just said that the source is off and disconnected,
and the source is brought back only when the target is gone.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput
from airflow.sdk.execution_time.hitl import upsert_hitl_detail

from hyperflow.hooks.vsphere import VsphereHook
from hyperflow.manifest.shown import shown
from hyperflow.operators.approval import tell_who_is_asked
from hyperflow.operators.base import (
    SHUTDOWN,
    HostStageOperator,
    VmOperator,
    domain_uuid,
    job_root,
    run_key,
    take_result,
    vm_key,
)
from hyperflow.operators.cutover_record import (
    CUT_OVER,
    OFF_NETWORK,
    SHUTTING_DOWN,
    SOURCE_OFF,
    TARGET_STARTED,
    begin,
    note,
    record_of_this_run,
)
from hyperflow.operators.decisions import keep_decision, moment, recall_decisions, user_name
from hyperflow.operators.drift import heed_drift
from hyperflow.operators.preflight import STATE_KEY
from hyperflow.operators.source import SourceOperator, at_vcenter, refuse_switched_on
from hyperflow.operators.target import configured_networks
from hyperflow.operators.window import time_left

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import BaseNotifier, Context

    from hyperflow.vsphere.session import Session

SNAPSHOT = "snapshot"  # id of the task that takes it
AGAIN, FORCE, ABORT = "Wait again", "Power off", "Abort"


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
        recall_decisions(context)  # a power cut that somebody has decided on before this try is told of
        known = record_of_this_run(context)
        if known:
            require_phase(known, SHUTTING_DOWN, SOURCE_OFF)
        else:
            time_left(self.settings.not_after, f"{self.facts.name} is not shut down")
        # What a second try finds off, and its configuration changed by that, the first one has shut down.
        warnings = heed_drift(self, session, context, but=("power", "config") if known else ())
        begin(context, {**(known or self.record(session)), "phase": SHUTTING_DOWN})
        return self.shut_down(session, context, warnings)

    def shut_down(self, session: Session, context: Context, warnings: list[str]) -> dict[str, Any]:
        """Shut the guest down, within the time that the plan gives it."""
        from hyperflow.vsphere.errors import ShutdownTimedOut, ToolsNotRunning
        from hyperflow.vsphere.power import shut_down_guest

        cutover = self.settings.cutover
        record = record_of_this_run(context)
        deadline = cutover.shutdown_timeout_minutes * 60
        try:
            change = shut_down_guest(
                session,
                self.facts.moref,
                deadline,
                progress=lambda left: self.log.info("progress: the guest shuts down, %d s left", left),
                was_asked=bool(record.get("asked")),
                about_to_ask=lambda: note(context, {**record, "asked": True}),
            )
        except (ShutdownTimedOut, ToolsNotRunning) as fault:
            if cutover.on_shutdown_timeout == "abort":
                raise
            time_left(self.settings.not_after, f"{self.facts.name} did not shut down, and is not powered off hard")
            if cutover.on_shutdown_timeout == "ask":
                self.ask(context, str(fault))
            return self.force(session, context, [*warnings, shown(str(fault))])
        self.log.info("%s: %s", shown(self.facts.name), change.sentence())
        forced = bool(record.get("forced")) and not change.changed  # by a try that could not tell of it any more
        return self.off(session, context, change.was, change.seconds, forced=forced, warnings=warnings)

    def force(self, session: Session, context: Context, warnings: list[str]) -> dict[str, Any]:
        """Power the VM off hard."""
        from hyperflow.vsphere.power import power_off

        self.log.warning("%s is powered off hard", shown(self.facts.name))
        note(context, {**record_of_this_run(context), "forced": True})
        change = power_off(session, self.facts.moref)
        return self.off(session, context, change.was, change.seconds, forced=True, warnings=warnings)

    def off(
        self, session: Session, context: Context, was: str, seconds: float, *, forced: bool, warnings: list[str]
    ) -> dict[str, Any]:
        """Read the state back, and leave it for the drift check that follows."""
        from hyperflow.manifest.builder import timestamp
        from hyperflow.vsphere.drift import state
        from hyperflow.vsphere.power_events import server_time

        since = server_time(session)
        now = state(session, self.facts.moref)
        if now["power_state"] != "poweredOff":
            raise AirflowFailException(f"{self.facts.name} was shut down, and is {now['power_state']}")
        context["ti"].xcom_push(key=STATE_KEY, value={**now, "time": since})
        note(context, {**record_of_this_run(context), "phase": SOURCE_OFF})
        at = timestamp(datetime.now(UTC))
        cut = ["the source was powered off hard: its file systems are as after a power cut"] if forced else []
        return {
            "was": was,
            "state": now["power_state"],
            "seconds": seconds,
            "forced": forced,
            "at": at,
            "warnings": [*warnings, *cut],
        }

    def record(self, session: Session) -> dict[str, Any]:
        """What a rollback needs to know: the source as it is before anything of it is changed."""
        from hyperflow.vsphere.nics import connections
        from hyperflow.vsphere.power import ON, power_and_tools

        facts, settings = self.facts, self.settings
        nics = connections(session, facts.moref)
        power, tools = power_and_tools(session, facts.moref)
        if power != ON:
            # Nothing is connected while it is off: what it will be at its next power-on is how it was.
            nics = [{**nic, "connected": nic["start_connected"]} for nic in nics]
        return {
            "nics": nics,
            "vcenter": settings.vcenter_connection,
            "datacenter": settings.datacenter or "",
            "selector": str(settings.selector),
            "moref": facts.moref,
            "name": facts.name,
            "vm": vm_key(facts),
            "power": power,
            "tools": tools,
            "host": settings.host_connection,
            "domain": settings.domain_name,
            "uuid": domain_uuid(facts),
            "root": job_root(settings),
        }

    def ask(self, context: Context, why: str) -> None:
        """Ask what to do with a guest that does not go down; nobody's answer aborts."""
        approval = self.settings.cutover.approval
        minutes = approval.timeout_minutes if approval else 60
        left = time_left(self.settings.not_after, f"{self.facts.name} does not shut down")
        if left is not None:
            minutes = min(minutes, ceil(left.total_seconds() / 60))
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
        keep_decision(context, decision)
        if chosen == ABORT:
            who = decision["by"] or "nobody's answer in time"
            raise AirflowFailException(f"{self.facts.name} does not shut down: aborted by {who}; nothing was forced")
        time_left(self.settings.not_after, f"{self.facts.name} does not shut down: {chosen!r} was answered too late")
        started = datetime.now(UTC)
        with at_vcenter(self.settings.vcenter_connection) as session:
            work = self.force if chosen == FORCE else self.shut_down
            return self.keep_result(context, work(session, context, []), started)


class DisconnectSourceOperator(SourceOperator):
    """Marks the source and takes it off the network, now and at its next power-on; how it was is written down already.

    Returns ``{"nics": as read back, "warnings": [...]}``.
    """

    def work(self, session: Session, context: Context) -> dict[str, Any]:
        """Look for drift since the shutdown, and that the source is off; write down; disconnect."""
        from hyperflow.vsphere.mark import can_be_marked, mark
        from hyperflow.vsphere.nics import disconnect

        record = record_of_this_run(context)
        require_phase(record, SOURCE_OFF, OFF_NETWORK)
        warnings = heed_drift(self, session, context, since=SHUTDOWN)
        require_off(session, record)
        self.require_stayed_off(session, context)
        note(context, {**record, "phase": OFF_NETWORK})
        if can_be_marked(session):
            run = f"{context['dag'].dag_id}, run {record['run']}"
            mark(session, self.facts.moref, f"cut over by {run}, to {record['domain']} on {record['host']}")
        nics = disconnect(session, self.facts.moref)
        self.log.info("%d network adapter(s) of %s are disconnected", len(nics), shown(self.facts.name))
        return {"nics": list(nics), "warnings": warnings}

    def require_stayed_off(self, session: Session, context: Context) -> None:
        """Refuse a source that was on for a while since its shutdown: what it wrote then is not in the copy."""
        ti = context["ti"]
        moments = [ti.xcom_pull(task_ids=SHUTDOWN, key=STATE_KEY, map_indexes=-1)["time"]]
        taken = ti.xcom_pull(task_ids=SNAPSHOT, map_indexes=-1)
        if taken is not None:  # the earlier one when the shutdown alone was cleared, and done again, since the export
            moments.append(taken["since"])
        refuse_switched_on(session, self.facts, min(moments, key=datetime.fromisoformat))


class StartTargetOperator(HostStageOperator, VmOperator):
    """Starts the target for good, and waits until it answers as the plan wants.

    :param guest: what :class:`InspectGuestOperator` returned, for the guest's own addresses; templated
    :param fix: what :class:`FixGuestOperator` returned, None when it was skipped; templated
    """

    stage = "start"
    template_fields: Sequence[str] = (*VmOperator.template_fields, "guest", "fix")

    def __init__(self, *, guest: Any, fix: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.guest = guest
        self.fix = fix

    def options(self, context: Context) -> dict[str, Any]:
        """Give the domain, and what it must answer."""
        health = self.settings.cutover.health
        if health.addresses is not None:
            addresses = [{"address": address, "mac": None} for address in health.addresses]
        else:
            addresses = [
                {"address": address.split("/")[0], "mac": network.get("mac")}
                for network in configured_networks(self.guest, self.facts.nics, self.fix)
                for address in network["addresses"]
                if ":" not in address
            ]
        return {
            "uuid": domain_uuid(self.facts),
            "vm": vm_key(self.facts),
            "run": run_key(context),
            "timeout_seconds": health.timeout_seconds,
            "addresses": addresses,
            "ports": health.ports,
            "guest_agent": health.guest_agent,
            "target_state": health.target_state,
            "command": health.command or [],
        }

    def perform(self, context: Context) -> Any:
        """See that the source is off and disconnected, write down that the target runs from here on, and start it."""
        record = record_of_this_run(context)
        require_phase(record, OFF_NETWORK, TARGET_STARTED, CUT_OVER)
        with at_vcenter(record["vcenter"]) as session:
            require_off(session, record)
            require_disconnected(session, record)
        if record["phase"] != CUT_OVER:  # else it was well before, and stays a person's to take back
            note(context, {**record, "phase": TARGET_STARTED})
        return super().perform(context)

    def resume(self, context: Context, event: dict[str, Any], **kept: Any) -> Any:
        """Tell that it is well, and that it was the target which answered: the source has the same addresses."""
        record = record_of_this_run(context)
        require_phase(record, TARGET_STARTED, CUT_OVER)
        result = event.get("result")
        if isinstance(result, dict) and result.get("succeeded"):
            told = self.look_again(record)
            event = {**event, "result": {**result, "warnings": [*result.get("warnings", []), *told]}}
        observed = take_result(context, event)
        note(context, {**record, "phase": CUT_OVER, "was_well": True})
        return observed

    def look_again(self, record: dict[str, Any]) -> list[str]:
        """See that the source did not come back meanwhile; a vCenter that is away is no reason to stop a target that
        is well.
        """
        from hyperflow.vsphere.errors import VsphereError

        try:
            with VsphereHook(record["vcenter"]).session() as session:
                require_off(session, record)
                require_disconnected(session, record)
        except VsphereError as fault:
            told = f"the target answers, and it could not be read whether the source is still off: {fault}"
            self.log.warning("%s", shown(told))
            return [shown(told)]
        return []


def require_phase(record: dict[str, Any], *phases: str) -> None:
    """Refuse a step of a cutover whose steps before it this run has not done, or has taken back.

    :param record: of :func:`hyperflow.operators.cutover_record.record_of_this_run`
    """
    if record.get("phase") not in phases:
        raise AirflowFailException(
            f"this run's cutover is at {record.get('phase', 'no phase')!r}, expected {' or '.join(map(repr, phases))}: "
            "a step before was not done by this run, or was taken back. Start a new run"
        )


def require_off(session: Session, record: dict[str, Any]) -> None:
    """Refuse a source that is on."""
    from hyperflow.vsphere.power import OFF, power_state

    state = power_state(session, record["moref"])
    if state != OFF:
        raise AirflowFailException(f"{record['name']} is {state}, expected poweredOff: somebody switched it on")


def require_disconnected(session: Session, record: dict[str, Any]) -> None:
    """Refuse a source that is on the network, or would be at its next power-on."""
    from hyperflow.vsphere.nics import connections

    wrong = [
        nic["label"] for nic in connections(session, record["moref"]) if nic["connected"] or nic["start_connected"]
    ]
    if wrong:
        raise AirflowFailException(
            f"{record['name']}: {', '.join(wrong)} would be on the network beside the target: somebody connected it "
            "again, or added it"
        )
