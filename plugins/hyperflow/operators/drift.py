"""Before each step that counts: is the VM still what this run saw?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowFailException

from hyperflow.manifest.shown import shown
from hyperflow.manifest.wave_report import DRIFTED
from hyperflow.operators.base import PREFLIGHT, VmOperator
from hyperflow.operators.ownership import snapshot_record
from hyperflow.operators.preflight import STATE_KEY

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow.sdk import Context

    from hyperflow.vsphere.session import Session


def heed_drift(
    operator: VmOperator, session: Session, context: Context, since: str = PREFLIGHT, but: Collection[str] = ()
) -> list[str]:
    """Compare the VM with what an earlier task saw, and stop where the plan says so.

    :param since: the task that looked
    :param but: kinds of differences that are this run's own doing
    :return: what is other, a sentence each: another ESXi host that is no drift, and with ``warn`` in the plan all
    :raises AirflowFailException: naming each difference
    """
    from hyperflow.vsphere.drift import differences, other_host, state

    before = context["ti"].xcom_pull(task_ids=since, key=STATE_KEY, map_indexes=-1)
    if not isinstance(before, dict):
        raise AirflowFailException(
            f"the task {since} has left nothing that the VM could be compared with: it was marked as done by hand, or "
            "its run is of another release. Start a new run"
        )
    # A task that is tried again, as after a person has cleared it, may have taken a snapshot before, which is gone now.
    may_have_snapped = since != PREFLIGHT or context["ti"].try_number > 1
    ours = (snapshot_record(context)[0],) if may_have_snapped else ()
    now = state(session, operator.facts.moref)
    host_counts = operator.settings.host_is_drift
    found = differences(before, now, ours, host_counts=host_counts)
    told = [shown(one["sentence"]) for one in found if one["kind"] not in but]
    if told and operator.settings.drift != "warn":
        raise AirflowFailException(
            f"{DRIFTED}: {'; '.join(told)}. Look at it, then start a new run; with drift: warn in the plan it would "
            "have gone on"
        )
    moved = other_host(before, now)
    if moved is not None and not host_counts:
        told.append(shown(moved))
    for sentence in told:
        operator.log.warning("%s", sentence)
    return told
