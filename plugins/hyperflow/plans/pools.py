"""The limits that hold over all runs: Airflow pools, which also count tasks that wait without a worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hyperflow.plans.plan import Plan

PREFIX = "hyperflow_"


@dataclass(frozen=True)
class Pool:
    """A pool as the plans want it.

    :param slots: how many tasks at once, those that are deferred included
    """

    name: str
    slots: int
    description: str


def wave_pool(plan: str, wave: str) -> str:
    """Name the pool of a wave: its VMs in flight."""
    return f"{PREFIX}wave_{plan}_{wave}"


def host_pool(connection: str) -> str:
    """Name the pool of a KVM host: checksum, convert and validate."""
    return f"{PREFIX}jobs_{connection}"


def guest_pool(connection: str) -> str:
    """Name the pool of a KVM host's memory: guests that are inspected, fixed or booted."""
    return f"{PREFIX}guests_{connection}"


def stream_pool(vcenter: str, esxi: str | None) -> str:
    """Name the pool of NFC streams from an ESXi host, or from all of a vCenter where the host is not known."""
    return f"{PREFIX}nfc_{vcenter}" + (f"_{esxi}" if esxi else "")


def pools_of(plans: Iterable[Plan]) -> Mapping[str, Pool]:
    """List the pools that plans need, by name; of two that share one, the smaller counts."""
    pools: dict[str, Pool] = {}
    for plan in plans:
        for pool in _pools(plan):
            known = pools.get(pool.name)
            pools[pool.name] = pool if known is None or pool.slots < known.slots else known
    return pools


def _pools(plan: Plan) -> Iterable[Pool]:
    for wave in plan.waves:
        yield Pool(
            wave_pool(plan.name, wave.name),
            wave.entry.max_in_flight,
            f"Hyperflow: VMs of wave {wave.name} of plan {plan.name} in flight",
        )
