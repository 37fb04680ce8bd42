"""What the proof of a VM is a proof of: which VM of which vCenter, for which host, as the plan says it.

A DAG's id tells the plan's name and the VM's slug only: in a plan that was edited for the next site it is another VM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperflow.plans.plan import Plan, PlannedVm
    from hyperflow.plans.slug import Selector


def subject(vcenter: str, datacenter: str | None, selector: Selector, host: str) -> dict[str, str]:
    """Write it down.

    :param vcenter: connection
    :param host: connection, as the plan says it, whatever a run has said otherwise
    """
    return {"vcenter": vcenter, "datacenter": datacenter or "", "selector": str(selector), "host": host}


def subject_of(plan: Plan, vm: PlannedVm) -> dict[str, str]:
    """Write down what a proof of a plan's VM must be of."""
    host = str(vm.settings.host.connection) if vm.settings.host else ""
    return subject(plan.vcenter.connection, plan.vcenter.datacenter, vm.selector, host)


def otherwise(was: Any, now: Mapping[str, str]) -> str | None:
    """Say what is other than a proof was of; None where it is the same.

    :param was: as it was kept; what an older version has not kept is taken for the same
    """
    kept = was if isinstance(was, dict) else {}
    other = [key for key in now if isinstance(kept.get(key), str) and _differ(key, kept[key], now[key])]
    return ", ".join(f"{key} was {kept[key] or 'none'} and is {now[key] or 'none'}" for key in other) or None


def _differ(key: str, was: str, now: str) -> bool:
    """Whether two parts of a subject are not the same; the same VM may be named more exactly than it was."""
    if key == "datacenter" and not (was and now):
        return False
    if key == "selector" and was.partition(" ")[0] != now.partition(" ")[0]:
        was, now = (text.partition(" ")[2][1:-1].rpartition("/")[2] for text in (was, now))  # without the quotes
    return was != now
