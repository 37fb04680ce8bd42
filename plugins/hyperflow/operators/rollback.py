"""A cutover taken back: the target stopped, the source on the network and on as it was."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSkipException,
)

from hyperflow.hooks.records import safe
from hyperflow.hooks.vsphere import VsphereHook
from hyperflow.manifest.shown import shown
from hyperflow.operators.base import (
    PREFLIGHT,
    SHUTDOWN,
    ClosingOperator,
    accept_result,
    finished_tasks,
    jobs_of_run,
    undone_tasks,
)
from hyperflow.operators.cutover import require_disconnected, require_off
from hyperflow.operators.cutover_record import (
    CUT_OVER,
    NOT_STARTED,
    ROLLED_BACK,
    ROLLING_BACK,
    START,
    TARGET_STARTED,
    key_of,
    note,
    put,
    record_of_this_run,
    target_stays,
)
from hyperflow.operators.proven import forget_proven, tell_state
from hyperflow.operators.source import at_vcenter

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.hooks.kvmhost import KvmHostHook
    from hyperflow.vsphere.session import Session

log = logging.getLogger(__name__)

BAD_REQUEST = "bad-request"  # the kind of a stage's error that stays
STOP_LIMIT = 60.0  # seconds the target may take to go down


class RollBackOperator(ClosingOperator):
    """Takes a cutover back when something after the shutdown failed: the source runs again as it did.

    Returns what :func:`roll_back` does; skipped when all went well, when nothing was changed, and when the target was
    well already: what fails after that, such as a task that a person clears, stops no machine that people work with.
    """

    def perform(self, context: Context) -> dict[str, Any]:
        """Roll back, if there is a reason to."""
        record = record_of_this_run(context)
        was_off = any(one["task_id"] == SHUTDOWN and one["state"] == "success" for one in finished_tasks(context))
        undone: list[str] = []
        if record or was_off:
            # Without settings: the whole run was cleared in its middle, and preflight refuses the source as it left it.
            undone = undone_tasks(context, self.settings) if self.migration is not None else [PREFLIGHT]
        if undone and not record:
            raise AirflowFailException(
                f"{self.facts.name} was shut down by this run, and nothing tells how it was: Airflow's variable "
                f"{key_of(context['dag'].dag_id)} is gone or changed. See that its target is off (virsh list --all on "
                "the host); then connect its network adapters and power it on by hand in vCenter"
            )
        if not undone:
            raise AirflowSkipException("there is nothing to roll back")
        if target_stays(record):
            told = f"the target of {record['name']} was well: it is taken back by ./hyperflow rollback only"
            self.log.warning("%s", shown(told))
            raise AirflowSkipException(told)
        if record["phase"] == TARGET_STARTED and target_was_well(context, record):
            note(context, {**record, "phase": CUT_OVER, "was_well": True})
            told = (
                f"the target of {record['name']} was well, which {START} could not be told: it is the machine now, and "
                "is taken back by ./hyperflow rollback only"
            )
            self.log.warning("%s", shown(told))
            raise AirflowSkipException(told)
        self.log.warning("rolling back, because of %s", ", ".join(undone))
        started = datetime.now(UTC)
        return self.keep_result(context, roll_back(self, context, context["dag"].dag_id, record), started)


def roll_back(
    operator: Any, context: Context, dag_id: str, record: dict[str, Any], *, target_is_off: bool = False
) -> dict[str, Any]:
    """Stop and undefine the target, put the source's adapters back, power it on, and prove that it runs.

    Before the target is touched the vCenter has said that the source can come back: better a target that is not well
    than none of the two. Then the target first: the two may never be on the network together. A target that was well
    and does not run on its host may have been moved to another one: it is left, and the record stays as it was. So it
    does when the host cannot be asked, unless the target was never started: a host that is lost in the middle of a
    conversion keeps no source off. Bears being called again. A source whose VMware Tools ran before runs again when
    they do; that they do not in time is a warning.

    :param record: of :func:`hyperflow.operators.cutover_record.cutover_of`
    :param target_is_off: a person says that the target runs nowhere, though it does not run where it was started
    :return: ``{"target": name or None, "power": read back, "guest": whether its VMware Tools answer, None when not
        asked, "nics": as read back, "warnings": [...]}``
    """
    if record["phase"] == ROLLED_BACK:
        operator.log.info("%s was rolled back at %s already; nothing is done", shown(record["name"]), record["at"])
        return dict(record["taken_back"])
    if record["phase"] != ROLLING_BACK:
        require_restorable(record)
    never_started = bool(record.get("never_started")) or record["phase"] in NOT_STARTED
    target = Target(context, dag_id, record, is_off=target_is_off or never_started)
    target.look()  # before anything is written: a host that is away leaves the cutover as it is
    record = {**record, "attempt": target.attempt, "never_started": never_started}
    put(dag_id, {**record, "phase": ROLLING_BACK})
    name = target.take_down()
    done = {"target": name, **bring_back(operator, record)}
    done["warnings"] = [*target.warnings, *done["warnings"]]
    forget_proven(dag_id)
    put(dag_id, {**record, "phase": ROLLED_BACK, "taken_back": done})
    tell_state(dag_id, ROLLED_BACK)
    operator.log.info("%s is %s again, as it was; the images are kept", shown(record["name"]), done["power"])
    return done


class Target:
    """The target of a cutover on its host, which is to be taken down.

    :param record: of the cutover, as it is before the target is touched
    :param is_off: it was never started, or a person says that it runs nowhere
    :ivar attempt: names this rollback over its tries: by it the host knows what an earlier one has undefined
    :ivar warnings: what a person must be told
    """

    def __init__(self, context: Context, dag_id: str, record: dict[str, Any], *, is_off: bool) -> None:
        self.attempt = str(record.get("attempt") or uuid4().hex)
        self.warnings: list[str] = []
        self._context, self._dag_id, self._record, self._is_off = context, dag_id, record, is_off
        self._host: KvmHostHook | None = None
        self._must_run = bool(record.get("was_well")) and not record.get("stopped") and not is_off

    def look(self) -> None:
        """See that the host answers, and that the target runs there where it must. Nothing is changed.

        :raises AirflowFailException: it does not, and no person has said that it is off
        """
        from hyperflow.hooks.kvmhost import KvmHostAway, KvmHostHook, KvmHostRefused

        record = self._record
        try:
            self._host = KvmHostHook(ssh_conn_id=record["host"], directory=record["root"])
            self._require(self._stop(only_look=True))
        except (KvmHostAway, KvmHostRefused, AirflowNotFoundException) as fault:
            if not self._is_off:
                raise
            told = (
                f"{record['host']} could not be asked ({fault}), so {record['domain']} may still be defined there: "
                "undefine it before that host starts guests again, or both are on the network"
            )
            log.warning("%s", shown(told))
            self.warnings.append(shown(told))
            self._host = None

    def take_down(self) -> Any:
        """Stop and undefine it; its name, None where there was nothing to undefine.

        :raises AirflowFailException: it was moved to another host in this moment; the record is as it was
        """
        if self._host is None:
            return None
        stopped = self._stop(only_look=False)
        try:
            self._require(stopped)
        except AirflowFailException:
            put(self._dag_id, self._record, at=self._record["at"])
            raise
        return stopped["name"]

    def _stop(self, *, only_look: bool) -> dict[str, Any]:
        assert self._host is not None  # noqa: S101 - see take_down
        record = self._record
        asked = {
            "uuid": record["uuid"],
            "vm": record["vm"],
            "run": f"{safe(self._dag_id)}/{safe(record['run'])}",
            "shutdown_seconds": STOP_LIMIT,
            "must_run": self._must_run,
            "begun": "attempt" in record,
            "attempt": self.attempt,
            "directory": record["root"],
            "only_look": only_look,
        }
        return taken_down(self._context, self._host.run_stage("stop", asked))

    def _require(self, found: dict[str, Any]) -> None:
        if not self._must_run or found["name"] is not None:
            return
        raise AirflowFailException(
            f"the target of {self._record['name']} does not run on {self._record['host']}, where it was well (found "
            f"{found['was'] or 'no such domain'}): if it was moved, it runs elsewhere, and the two have the same "
            "addresses. See that it is off everywhere; then run ./hyperflow rollback --target-is-off for it"
        )


def target_was_well(context: Context, record: dict[str, Any]) -> bool:
    """Ask the host how the start ended: people may work with a target since, though nobody could be told that it is
    well. A source that came back meanwhile is a reason to take the target back all the same.

    Whoever waits for the target's answers is ended first, so that the answer stays.
    """
    from hyperflow.hooks.kvmhost import KvmHostHook

    host = KvmHostHook(ssh_conn_id=record["host"], directory=record["root"])
    with host.connected() as client:
        host.ensure_program(client)
        start = f"{jobs_of_run(record['root'], context)}/{START}"
        ended = host.job(client, "kill", "--directory", start)["last"]
    if ended.get("exit_status") != 0:
        return False
    try:
        with at_vcenter(record["vcenter"]) as session:
            require_off(session, record)
            require_disconnected(session, record)
    except AirflowFailException as fault:
        log.warning("the target was well, and is taken back all the same: %s", shown(str(fault)))
        return False
    return True


def taken_down(context: Context, result: dict[str, Any]) -> dict[str, Any]:
    """Take what the stage stop tells. The source is off meanwhile, so what libvirt refuses now is asked for again."""
    try:
        return accept_result(context, result)
    except AirflowFailException as fault:
        if (result.get("error") or {}).get("kind") == BAD_REQUEST:  # the domain is another VM's
            raise
        raise AirflowException(str(fault)) from fault


def require_restorable(record: dict[str, Any]) -> None:
    """See that the source is there, at a vCenter that answers, on a host that is up, with the adapters it had."""
    from hyperflow.vsphere.errors import VsphereError
    from hyperflow.vsphere.nics import require_same
    from hyperflow.vsphere.power import require_reachable

    try:
        with VsphereHook(record["vcenter"]).session() as session:
            require_reachable(session, record["moref"])
            require_same(session, record["moref"], record["nics"])
    except VsphereError as fault:
        raise (AirflowException if fault.temporary else AirflowFailException)(
            f"the rollback of {record['name']} was not begun: {fault}. Its target is left as it is. See that the "
            f"source can be switched on in vCenter, then run ./hyperflow rollback for it"
        ) from fault


def bring_back(operator: Any, record: dict[str, Any]) -> dict[str, Any]:
    """Put the source's adapters back and power it on, and wait for its guest.

    A guest that still obeys its shutdown is waited for first: it would go off later, and nobody would be told.

    :return: ``power``, ``nics`` and ``guest``, as read back, and ``warnings``
    """
    from hyperflow.vsphere.errors import VsphereError
    from hyperflow.vsphere.mark import mark
    from hyperflow.vsphere.nics import restore
    from hyperflow.vsphere.power import ON, power_on, power_state

    try:
        with VsphereHook(record["vcenter"]).session() as session:
            restore(session, record["moref"], record["nics"])
            down = record["power"] != ON or is_down(operator, session, record)
            if record["power"] == ON:
                operator.log.info("%s: %s", shown(record["name"]), power_on(session, record["moref"]).sentence())
            nics = list(restore(session, record["moref"], record["nics"]))  # connected by hand: possible only now
            mark(session, record["moref"], "")
            guest, warnings = guest_of(operator, session, record) if down else going_down(operator, record)
            power = power_state(session, record["moref"])
    except VsphereError as fault:
        raise (AirflowException if fault.temporary else AirflowFailException)(
            f"the rollback of {record['name']} could not be finished: {fault}. Its target is stopped. Run "
            f"./hyperflow rollback for it again, or connect its adapters and power it on by hand"
        ) from fault
    if power not in (record["power"], ON):  # on, though it was off before: somebody has switched it on, who may
        raise AirflowException(f"{record['name']} was {record['power']} before, and is {power} after its rollback")
    return {"power": power, "nics": nics, "guest": guest, "warnings": warnings}


def is_down(operator: Any, session: Session, record: dict[str, Any]) -> bool:
    """Wait until a guest that shuts down at this moment has done so; False when it has not in time."""
    from hyperflow.vsphere import power

    return power.wait_until_down(
        session,
        record["moref"],
        power.GUEST_LIMIT,
        progress=lambda left: operator.log.info("progress: the source's guest still shuts down, %d s left", left),
    )


def going_down(operator: Any, record: dict[str, Any]) -> tuple[bool, list[str]]:
    """Tell that the source's guest has not ended its shutdown; as :func:`guest_of`."""
    from hyperflow.vsphere import power

    told = shown(
        f"{record['name']} is on, and its guest has been shutting down for {power.GUEST_LIMIT} s: it may still go "
        "down. See on its console what it waits for; switch it on again in vCenter when it is off"
    )
    operator.log.warning("%s", told)
    return False, [told]


def guest_of(operator: Any, session: Session, record: dict[str, Any]) -> tuple[bool | None, list[str]]:
    """Wait until the guest of a source that is on again answers by VMware Tools, if it did before.

    :return: whether it answers, None where it did not before, and what a person must be told
    """
    from hyperflow.vsphere import power

    if record["power"] != power.ON or not record.get("tools"):
        return None, []
    answers = power.wait_for_guest(
        session,
        record["moref"],
        power.GUEST_LIMIT,
        progress=lambda left: operator.log.info("progress: the source's guest starts, %d s left", left),
    )
    if answers:
        return True, []
    told = shown(
        f"{record['name']} is switched on again, and its VMware Tools, which ran before, do not answer after "
        f"{power.GUEST_LIMIT} s: see on its console whether its guest is up"
    )
    operator.log.warning("%s", told)
    return False, [told]
