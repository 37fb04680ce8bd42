"""What a plan needs of Airflow itself: pools, and users who are asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hyperflow.cli.airflow_api import AirflowApi
from hyperflow.manifest.faults import Fault, show
from hyperflow.manifest.shown import shown
from hyperflow.plans.plan import Plan
from hyperflow.plans.pools import Pool, lacks, pools_beside, pools_of


def needs_airflow(plan: Plan) -> bool:
    """Whether a plan names anything that Airflow must have."""
    return bool(pools_of([plan])) or bool(_asked(plan))


def faults_in_airflow(
    api: AirflowApi, plan: Plan, others: Sequence[Plan] = (), without: Iterable[str] = ()
) -> tuple[list[Fault], list[str]]:
    """Find what a plan needs and Airflow has not.

    :param others: plans that share pools with it; of two sizes the smaller counts
    :param without: names of pools that are not looked at
    :return: the faults, and what could not be looked at
    """
    faults = pool_faults(plan, others, api.pools(), without)
    asked = _asked(plan)
    unknown = api.unknown_people(asked) if asked else []
    if unknown is None:
        return faults, ["approvers were not looked at: this Airflow does not tell Hyperflow which users it has"]
    return [*faults, *people_faults(asked, unknown)], []


def connection_faults(
    api: AirflowApi, plan: Plan, members: Sequence[str] | None = None
) -> tuple[list[Fault], list[str]]:
    """Find connections that a plan names and Airflow has not.

    :param members: slugs of the VMs whose hosts are asked about; None for all
    :return: the faults, each connection once; and what could not be looked at
    """
    places = {plan.vcenter.connection: "vcenter.connection"}
    hosts = {
        index: str(vm.settings.host.connection) for index, vm in enumerate(plan.vms) if vm.settings.host is not None
    }
    one_for_all = len(set(hosts.values())) == 1
    for index, name in hosts.items():
        if members is None or plan.vms[index].slug in members:
            places.setdefault(name, "host.connection" if one_for_all else f"vms[{index}].host.connection")
    unknown = api.unknown_connections(places)
    if unknown is None:
        return [], ["connections were not looked at: this Airflow does not tell Hyperflow, or this user, which it has"]
    return [
        Fault(place, show(name), "a connection of Airflow") for name, place in places.items() if name in unknown
    ], []


def pool_faults(
    plan: Plan, others: Iterable[Plan], there: Mapping[str, dict[str, Any]], without: Iterable[str] = ()
) -> list[Fault]:
    """Say which pools that a plan needs are missing, or other than it wants.

    :param others: plans that share pools with it
    :param there: Airflow's pools
    :param without: names of pools that are not looked at
    """
    faults = []
    for name, pool in pools_beside([plan], others).items():
        if name not in without and (found := pool_fault(pool, there.get(name))):
            wanted = f"{pool.slots} slots that count deferred tasks"
            faults.append(Fault(f"pool {name}", found, f"{wanted}: run ./hyperflow limits apply {plan.path}"))
    return faults


def pool_fault(pool: Pool, found: dict[str, Any] | None) -> str | None:
    """Say what is other about a pool than plans need; None when nothing is.

    :param found: as Airflow knows it, None when it does not
    """
    lacking = lacks(pool, found)
    if lacking is None and found is not None and found["slots"] != pool.slots:
        return f"{found['slots']} slots in Airflow"
    return lacking


def people_faults(asked: Mapping[str, Sequence[str]], unknown: Iterable[str]) -> list[Fault]:
    """Say who is asked by a plan and is no user of Airflow, so that nobody could answer.

    :param asked: a user's id -> where the plan has it
    """
    expected = "the id of a user in people.<key>.id: the name with Airflow's simple users, the number with FAB's"
    return [
        Fault(where, f"{shown(one)}, whom Airflow does not know", expected) for one in unknown for where in asked[one]
    ]


def _asked(plan: Plan) -> dict[str, list[str]]:
    """Who is asked, and where the plan says so: a user's id -> paths."""
    places: dict[str, list[str]] = {}
    for index, wave in enumerate(plan.waves):
        for person in wave.approvers:
            places.setdefault(person["id"], []).append(f"waves[{index}].approval.by")
    for index, vm in enumerate(plan.vms):
        for person in vm.approvers:
            places.setdefault(person["id"], []).append(f"vms[{index}].cutover.approval.by")
    return places
