"""Whether a run is over, and for good: which only its Airflow can tell, and what the janitor goes by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from hyperflow.operators.ownership import instance

if TYPE_CHECKING:
    from airflow.sdk import Context

OPEN_STATES = ("queued", "running")


@dataclass(frozen=True)
class Verdict:
    """What Airflow knows of a run.

    :param ended: it works no more, so what its cleanup should have removed may go
    :param dead: nobody will go on from it, so what was kept for that may go too
    :param succeeded: its results are results
    :param ours: this Airflow is the one that has, or had, its record
    :param why: in words
    """

    ended: bool
    dead: bool
    succeeded: bool
    ours: bool
    why: str


class Judge:
    """Asks Airflow what became of runs, each once.

    :param keep_days: how long after its end a person may go on from a failed run
    """

    def __init__(self, context: Context, keep_days: float) -> None:
        self._ti = cast("Any", context["ti"])
        self._keep = timedelta(days=keep_days)
        self._instance = instance()
        self._known: dict[tuple[str, str], Verdict] = {}

    def of(self, owner: dict[str, str], *, anew: bool = False) -> Verdict:
        """Judge one run.

        :param owner: ``{"airflow", "dag", "run"}``
        :param anew: ask once more; what was asked before may be hours old
        """
        if owner["airflow"] != self._instance:
            told = owner["airflow"] or "one that it does not name"
            return Verdict(False, False, False, False, f"it is of another Airflow ({told})")
        key = (owner["dag"], owner["run"])
        if anew or key not in self._known:
            self._known[key] = self._ask(*key)
        return self._known[key]

    def of_all(self, owners: list[dict[str, str]]) -> Verdict:
        """Judge a ledger's owners, of which there is one: what is good for one of several is not good for all."""
        if not owners:
            return Verdict(False, False, False, False, "nobody has signed its ledger")
        verdicts = [self.of(owner) for owner in owners]
        return next((verdict for verdict in verdicts if not verdict.dead), verdicts[0])

    def _ask(self, dag_id: str, run_id: str) -> Verdict:
        if self._ti.get_dr_count(dag_id=dag_id, run_ids=[run_id]) == 0:
            return Verdict(True, True, False, True, "Airflow has no such run any more")
        run = _dag_run(dag_id, run_id)
        state = run.state.value  # as text the enumeration gives its own name too
        if state in OPEN_STATES:
            return Verdict(False, False, False, True, f"its run is {state}")
        ended = run.end_date or datetime.now(UTC)
        age = datetime.now(UTC) - ended
        told = f"its run ended as {state} at {ended.strftime('%Y-%m-%dT%H:%M:%SZ')}"
        dead = age >= self._keep
        until = "" if dead else f", kept for {self._keep.total_seconds() / 86400:g} days"
        return Verdict(True, dead, state == "success", True, told + until)


def _dag_run(dag_id: str, run_id: str) -> Any:
    """Read a run's record: the message that Airflow's own SDK sends, whose public wrappers leave out the end date."""
    from airflow.sdk.execution_time.comms import GetDagRun
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    return SUPERVISOR_COMMS.send(GetDagRun(dag_id=dag_id, run_id=run_id))
