"""Finds what dead runs have left on hosts and at vCenters, and removes it; nothing of anybody else.

On a host the ledger says what there is. At a vCenter the snapshots themselves say whose they are, so that one is found
also when the host with its ledger is gone. In Airflow itself lie claims on VMs. Whether a run is dead, only its Airflow
can tell.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook, BaseOperator, Variable
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowNotFoundException

from hyperflow.hooks.audit import audit, audit_start
from hyperflow.hooks.kvmhost import KvmHostHook
from hyperflow.hooks.records import safe
from hyperflow.hooks.vsphere import VsphereHook
from hyperflow.operators.base import FAILURE_KEY, JOB_FOLDER, RESULT_KEY, audit_stage, finished_tasks
from hyperflow.operators.claim import claims, is_claim, release_of
from hyperflow.operators.cutover_record import is_in_its_middle, is_result
from hyperflow.operators.ownership import instance
from hyperflow.operators.proven import was_proven_by
from hyperflow.operators.verdict import Judge, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from airflow.sdk import Context

    from hyperflow.vsphere.facts import SnapshotFacts
    from hyperflow.vsphere.session import Session
    from hyperflow.vsphere.snapshot import Ownership

PLACES, HOSTS, SOURCES, RESULT = "places", "hosts", "sources", "result"  # the tasks
CONVERTED = "hyperflow_converted_"  # begins the variables that name the hosts of conversions, which no plan names
AT_SOURCE = ("snapshot", "lease")  # kinds of the ledger that are looked for at a vCenter
AIRFLOW = "Airflow"  # where claims are
PLACE = ("connection", "staging_directory")  # what names a host
LOOKED = ("success", "skipped")  # states of a task that has looked, or had nothing to look at
LEASE_END = "a lease ends with the session of its trigger, at the latest 300 s after its last report of progress"
ALIVE = "processes of the run are alive on a host, or its cutover is in its middle"
IN_ITS_MIDDLE = "its cutover is neither done nor taken back: run ./hyperflow rollback for it first"
UNPLANNED = "no plan names this vCenter's connection any more, so nobody has looked"


@dataclass(frozen=True)
class Thing:
    """Something that may be a leftover.

    :param where: the connection of its host or vCenter, or :data:`AIRFLOW`
    :param kind: as in the ledger, or ``claim``
    :param name: what a person finds it by
    :param run: ``DAG/RUN``; empty where nobody knows
    """

    where: str
    kind: str
    name: str
    run: str

    def found(self, action: str, why: str) -> dict[str, Any]:
        """Tell what became of it."""
        return {
            "where": self.where,
            "kind": self.kind,
            "thing": self.name,
            "run": self.run,
            "action": action,
            "why": why,
        }


class JanitorOperator(BaseOperator):
    """A task of the janitor: returns ``{"findings": [...], ...}``; a failure is kept for the last task.

    A finding is ``{"where", "kind", "thing", "run", "action", "why"}``; action is removed, would remove, gone, kept or
    failed.

    :param only_look: remove nothing; templated
    :param keep_days: age from which an ended run is dead; templated
    """

    template_fields: Sequence[str] = ("only_look", "keep_days")

    def __init__(self, *, only_look: Any, keep_days: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.only_look = only_look
        self.keep_days = keep_days

    def execute(self, context: Context) -> dict[str, Any]:
        """Look and remove."""
        try:
            found = self.perform(context, Judge(context, float(self.keep_days)))
        except Exception as fault:
            from hyperflow.errors.catalogue import explain

            context["ti"].xcom_push(key=FAILURE_KEY, value=str(fault) or type(fault).__name__)
            self.log.error("%s", explain(str(fault), self.task_id).advice())
            raise
        self.tell(found["findings"])
        return found

    def tell(self, findings: Sequence[dict[str, Any]]) -> None:
        """Write findings into the log."""
        for finding in findings:
            self.log.info("%s: %s %s (%s): %s", *(finding[key] for key in ("action", "kind", "thing", "run", "why")))

    def perform(self, context: Context, judge: Judge) -> dict[str, Any]:
        """Look and remove at one place."""
        raise NotImplementedError  # an abstract method: Airflow's metaclass does not go with ABC


class ListHostsOperator(BaseOperator):
    """Lists the hosts to look at: those of the plans, and those on which manifests were converted.

    Returns ``[{"connection", "staging_directory"}]``. One whose connection is not there is passed over, and
    not forgotten: Airflow says the same of every connection while its API server does not answer.

    :param hosts: of the plans, as it returns them
    """

    def __init__(self, *, hosts: Sequence[dict[str, str]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hosts = list(hosts)

    def execute(self, context: Context) -> list[dict[str, str]]:
        """Bring them together, each once."""
        audit_start(context, "janitor", dict(context["dag_run"].conf or {}))
        found = {_key(host): host for host in [*self.hosts, *self._converted()]}
        return [found[key] for key in sorted(found)]

    def _converted(self) -> Iterator[dict[str, str]]:
        for key in Variable.keys(CONVERTED):
            host = Variable.get(key, default=None, deserialize_json=True)
            if not isinstance(host, dict) or not all(isinstance(host.get(each), str) for each in PLACE):
                self.log.warning("the variable %s names no host; nothing of Hyperflow has written it so", key)
            elif _is_known(host["connection"]):
                yield {each: host[each] for each in PLACE}
            else:
                self.log.warning(
                    "connection %s is not there, so nobody looks at its host; who has deleted it for good deletes "
                    "Airflow's variable %s too",
                    *(host["connection"], key),
                )


def remember_host(connection: str, staging_directory: str) -> None:
    """Have the janitor look at a host that a conversion works on, whether or not a plan names it."""
    name = hashlib.sha256(f"{connection} {staging_directory}".encode()).hexdigest()[:16]
    Variable.set(
        f"{CONVERTED}{name}",
        {"connection": connection, "staging_directory": staging_directory},
        description=f"Hyperflow: manifests were converted on {connection}, so the janitor looks there",
        serialize_json=True,
    )


def _is_known(connection: str) -> bool:
    try:
        BaseHook.get_connection(connection)
    except AirflowNotFoundException:
        return False
    return True


class CleanHostOperator(JanitorOperator):
    """Looks at one host, by its ledger.

    Returns its findings, and what the ledger says of vCenters: ``{"findings", "busy": [run], "at_source": [...]}``.

    :param host: ``{"connection", "staging_directory"}``; templated
    """

    template_fields: Sequence[str] = (*JanitorOperator.template_fields, "host")

    def __init__(self, *, host: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.host = host

    def perform(self, context: Context, judge: Judge) -> dict[str, Any]:
        """Read the ledgers, judge their runs, and have the host remove what ended ones left.

        In this order: whatever is written into a ledger after it was read tells the host that the verdict is old.
        """
        hook = host_hook(self.host)
        with hook.connected() as client:
            hook.ensure_program(client)
            listed = hook.ledger(client, "list")["runs"]
        books = [book for book in listed if "fault" not in book]
        where = self.host["connection"]
        findings = [
            Thing(where, "ledger", each["run"], each["run"]).found("failed", each["fault"])
            for each in listed
            if "fault" in each
        ]
        verdicts = {book["run"]: judge.of_all(book["owners"]) for book in books}
        # Such a run is not over: its target may run.
        over = [book for book in books if verdicts[book["run"]].ended]
        in_the_middle = [
            book["run"] for book in over if any(is_in_its_middle(each["dag"], each["run"]) for each in book["owners"])
        ]
        for run in in_the_middle:
            verdicts[run] = replace(verdicts[run], ended=False, dead=False, why=IN_ITS_MIDDLE)
        findings += [
            Thing(where, entry["kind"], entry["thing"], book["run"]).found("kept", verdicts[book["run"]].why)
            for book in books
            if not verdicts[book["run"]].ours or book["run"] in in_the_middle
            for entry in book["open"]
        ]
        ended = [
            {
                "run": book["run"],
                "dead": verdict.dead,
                "succeeded": verdict.succeeded or any(has_results(each["dag"], each["run"]) for each in book["owners"]),
                "why": verdict.why,
                "ledger_bytes": book["bytes"],
            }
            for book in books
            if (verdict := verdicts[book["run"]]).ended
        ]
        observed = self._clean(hook, ended)
        findings += [{"where": where, **finding} for finding in observed["findings"]]
        at_source = [
            {**entry, "host": self.host, "run": book["run"], "why": verdicts[book["run"]].why}
            for book in books
            for entry in book["open"]
            if entry["kind"] in AT_SOURCE and verdicts[book["run"]].ended
        ]
        return {"findings": findings, "busy": [*observed["busy"], *in_the_middle], "at_source": at_source}

    def _clean(self, hook: KvmHostHook, ended: list[dict[str, Any]]) -> dict[str, Any]:
        options = {"directory": hook.directory, "runs": ended, "dry_run": self.only_look}
        result = hook.run_stage("janitor", options)
        if not result.get("succeeded"):
            raise AirflowException((result.get("error") or {}).get("message", "the janitor stage gave no reason"))
        observed = result["observed"]
        assert isinstance(observed, dict)  # noqa: S101 - the host program is ours, sent by its content hash
        audit_stage(result)
        for found in observed["findings"]:
            if found["action"] == "removed":
                what = f"removed what run {found['run']} left: {found['kind']} {found['thing']}"
                audit("host", what, on=self.host["connection"])
        return observed


class CleanSourceOperator(JanitorOperator):
    """Looks at one vCenter: at every snapshot that bears our name or our mark, and at what ledgers say of it.

    Returns ``{"findings"}``. What is gone there is struck off the ledgers of the hosts.

    :param vcenter: its connection; templated
    """

    template_fields: Sequence[str] = (*JanitorOperator.template_fields, "vcenter")

    def __init__(self, *, vcenter: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vcenter = vcenter

    def perform(self, context: Context, judge: Judge) -> dict[str, Any]:
        """Remove the snapshots of ended runs, then strike off what is gone."""
        answers = [answer for answer in context["ti"].xcom_pull(task_ids=[HOSTS]) or [] if answer]
        busy = {run for answer in answers for run in answer["busy"]}
        noted = [
            entry
            for answer in answers
            for entry in answer["at_source"]
            if entry["facts"].get("vcenter") == self.vcenter and entry["run"] not in busy
        ]
        with VsphereHook(self.vcenter).session() as session:
            findings = [
                finding
                for found in our_snapshots(session)
                if (finding := self._handle(session, judge, busy, found)) is not None
            ]
            left = {(found.vm, found.snapshot.name) for found in our_snapshots(session)}
        return {"findings": findings + self._strike_off(noted, left)}

    def _handle(self, session: Session, judge: Judge, busy: set[str], found: FoundSnapshot) -> dict[str, Any] | None:
        """Decide about one snapshot and do it; None for one whose run works with it."""
        from hyperflow.vsphere.snapshot import read_ownership

        name = f"{found.vm_name}: {found.snapshot.name} ({found.snapshot.moref})"
        ownership = read_ownership(found.snapshot.description)
        reason = foreign(found.snapshot, ownership)
        if ownership is None or reason is not None:
            return Thing(self.vcenter, "snapshot", name, "").found("kept", str(reason))
        thing = Thing(self.vcenter, "snapshot", name, f"{safe(ownership.dag)}/{safe(ownership.run)}")
        owner = {"airflow": ownership.airflow, "dag": ownership.dag, "run": ownership.run}
        verdict = judge.of(owner, anew=True)  # the removal of another one of the run's may have taken hours
        if not verdict.ours:
            return thing.found("kept", verdict.why)
        if not verdict.ended:
            return None
        if thing.run in busy:
            return thing.found("kept", ALIVE)
        if self.only_look:
            return thing.found("would remove", verdict.why)
        return self._remove(session, thing, found, ownership, verdict)

    @staticmethod
    def _remove(
        session: Session, thing: Thing, found: FoundSnapshot, ownership: Ownership, verdict: Verdict
    ) -> dict[str, Any]:
        """Remove one snapshot; whose it is, is looked at once more, and that it is gone is read back."""
        from hyperflow.vsphere.errors import VsphereError
        from hyperflow.vsphere.snapshot import remove_snapshot

        snapshot = found.snapshot
        try:
            removed = remove_snapshot(session, found.vm, snapshot.moref, name=snapshot.name, ownership=ownership)
        except VsphereError as fault:
            return thing.found("failed", str(fault))
        return thing.found("removed", "; ".join([verdict.why, *removed.warnings]))

    def _strike_off(self, noted: list[dict[str, Any]], left: set[tuple[str, str]]) -> list[dict[str, Any]]:
        """Strike off, in the hosts' ledgers, what is not at this vCenter any more.

        :param left: MoRef of the VM and name of each snapshot that is still there
        """
        gone = [
            entry
            for entry in noted
            if entry["kind"] != "snapshot" or (entry["facts"].get("vm"), entry["facts"].get("name")) not in left
        ]
        findings = []
        for entry in gone:
            why = LEASE_END if entry["kind"] == "lease" else f"it is not there; {entry['why']}"
            findings.append(Thing(self.vcenter, entry["kind"], entry["thing"], entry["run"]).found("gone", why))
        if not self.only_look:
            for host, run in {(_key(entry["host"]), entry["run"]) for entry in gone}:
                entries = [entry for entry in gone if (_key(entry["host"]), entry["run"]) == (host, run)]
                bare = [{key: entry[key] for key in ("kind", "thing")} for entry in entries]
                hook = host_hook(entries[0]["host"])
                with hook.connected() as client:
                    hook.ledger(client, "done", "--run", run, request={"why": "gone at its vCenter", "entries": bare})
        return findings


class ReportLeftoversOperator(JanitorOperator):
    """Removes the claims of ended runs and brings the findings together.

    Fails when something could not be looked at, or not be removed; pushes ``{"dry_run", "keep_days", "findings",
    "faults"}`` first.

    :param vcenters: the connections that were looked at
    """

    def __init__(self, *, vcenters: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vcenters = list(vcenters)

    def execute(self, context: Context) -> dict[str, Any]:
        """Bring together what the places told."""
        ti = context["ti"]
        answers = [answer for task in (HOSTS, SOURCES) for answer in ti.xcom_pull(task_ids=[task]) or [] if answer]
        faults = self._failures(context)
        findings = [finding for answer in answers for finding in answer["findings"]]
        findings += self._without_a_place([entry for answer in answers for entry in answer.get("at_source", [])])
        busy = {run for answer in answers for run in answer.get("busy", [])}
        findings += self._clean_claims(Judge(context, float(self.keep_days)), busy)
        faults += [f"{one['kind']} {one['thing']}: {one['why']}" for one in findings if one["action"] == "failed"]
        found = {"dry_run": self.only_look, "keep_days": self.keep_days, "findings": findings, "faults": faults}
        ti.xcom_push(key=RESULT_KEY, value=found)
        if faults:
            raise AirflowFailException("; ".join(faults))
        return {"findings": len(findings)}

    def _clean_claims(self, judge: Judge, busy: set[str]) -> list[dict[str, Any]]:
        """Remove the claims of ended runs: a run gives its own back in its last task, unless it was deleted before."""
        here, findings = instance(), []
        for key, holder in claims().items():
            if not is_claim(holder):
                findings.append(Thing(AIRFLOW, "claim", key, "").found("kept", "no run has written it"))
                continue
            thing = Thing(AIRFLOW, "claim", key, f"{safe(holder['dag'])}/{safe(holder['run'])}")
            verdict = judge.of({**holder, "airflow": here})
            if not verdict.ended:
                continue
            if thing.run in busy:
                findings.append(thing.found("kept", ALIVE))
            elif self.only_look:
                findings.append(thing.found("would remove", verdict.why))
            else:
                try:
                    release_of(key, holder)
                except AirflowException as fault:
                    findings.append(thing.found("failed", f"it cannot be removed: {fault}"))
                else:
                    findings.append(thing.found("removed", verdict.why))
        self.tell(findings)
        return findings

    def _failures(self, context: Context) -> list[str]:
        """Tell why places could not be looked at; also of tasks that ended before they could say anything."""
        faults = []
        for crumb in finished_tasks(context):
            task, index, state = crumb["task_id"], crumb["map_index"], crumb["state"]
            if task in (HOSTS, SOURCES) and state not in LOOKED:
                told = context["ti"].xcom_pull(task_ids=task, map_indexes=index, key=FAILURE_KEY)
                faults.append(str(told or f"task {task}, number {index}: {state}, so one place was not looked at"))
        return faults

    def _without_a_place(self, noted: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Name what lies at a vCenter that no plan names any more, so that nobody has looked."""
        return [
            Thing(entry["facts"].get("vcenter", ""), entry["kind"], entry["thing"], entry["run"]).found(
                "kept", UNPLANNED
            )
            for entry in noted
            if entry["facts"].get("vcenter") not in self.vcenters
        ]


def has_results(dag_id: str, run_id: str) -> bool:
    """Whether a run that did not succeed has results all the same: it proved its VM before it was cleared, or failed
    after the target of its cutover was well.
    """
    return is_result(dag_id, run_id) or was_proven_by(dag_id, run_id)


def host_hook(host: dict[str, str]) -> KvmHostHook:
    """Reach a host, by its connection and staging directory."""
    return KvmHostHook(ssh_conn_id=host["connection"], directory=f"{host['staging_directory']}/{JOB_FOLDER}")


@dataclass(frozen=True)
class FoundSnapshot:
    """A snapshot, and MoRef and name of the VM that has it."""

    vm: str
    vm_name: str
    snapshot: SnapshotFacts


def our_snapshots(session: Session) -> list[FoundSnapshot]:
    """Find the snapshots that bear our name or our mark, children before their parents."""
    from hyperflow.vsphere.snapshot import OWNER, list_snapshots, read_ownership

    return [
        FoundSnapshot(moref, vm_name, snapshot)
        for moref, vm_name, snapshots in list_snapshots(session)
        for snapshot in reversed(snapshots)
        if snapshot.name.startswith(f"{OWNER}-") or read_ownership(snapshot.description) is not None
    ]


def foreign(snapshot: SnapshotFacts, ownership: Ownership | None) -> str | None:
    """Say why a snapshot is not one that Hyperflow made; None when it is."""
    from hyperflow.vsphere.snapshot import snapshot_name

    if ownership is None:
        return "its description has no owner that Hyperflow wrote: somebody else made it"
    expected = snapshot_name(safe(ownership.run))
    if snapshot.name != expected:
        return f"its name is not {expected}, which its owner would have given it: somebody renamed or copied it"
    return None


def _key(host: dict[str, str]) -> tuple[str, str]:
    return host["connection"], host["staging_directory"]
