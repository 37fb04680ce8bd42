"""The limits that hold over all runs: Airflow pools, which also count tasks that wait without a worker."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hyperflow.plans.plan import Plan, PlannedVm

PREFIX = "hyperflow_"
DEFAULT = "default_pool"  # Airflow's own


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
    return f"{PREFIX}nfc_{vcenter}" + (f"_{re.sub('[^A-Za-z0-9._-]', '_', esxi)}" if esxi else "")


@dataclass(frozen=True)
class VmPools:
    """The pools that the tasks of one VM's run take a slot of; Airflow's own where the plan sets no limit."""

    stream: str
    job: str
    guest: str

    def names(self) -> tuple[str, str, str]:
        """List them."""
        return self.stream, self.job, self.guest


def lacks(pool: Pool, found: Mapping[str, Any] | None) -> str | None:
    """Say what a pool lacks to be a limit at all; None when it is one.

    :param found: ``slots`` and ``include_deferred`` in Airflow, None when it has no such pool
    """
    if found is None:
        return "no such pool in Airflow"
    if not found["include_deferred"]:
        return "one that does not count deferred tasks, so that it limits nothing"
    return None


def pools_of_vm(plan: Plan, vm: PlannedVm) -> VmPools:
    """Tell a VM's pools."""
    connection = str(vm.settings.host.connection) if vm.settings.host else ""
    sizes = plan.pools
    stream = stream_pool(plan.vcenter.connection, plan.esxi_hosts.get(vm.slug))
    return VmPools(
        stream=stream if sizes.nfc_streams_per_esxi else DEFAULT,
        job=host_pool(connection) if sizes.jobs_per_host else DEFAULT,
        guest=guest_pool(connection) if sizes.guests_per_host else DEFAULT,
    )


def pools_of(plans: Iterable[Plan]) -> Mapping[str, Pool]:
    """List the pools that plans need, by name; of two that share one, the smaller counts."""
    pools: dict[str, Pool] = {}
    for plan in plans:
        for pool in _pools(plan):
            known = pools.get(pool.name)
            pools[pool.name] = pool if known is None or pool.slots < known.slots else known
    return pools


def pools_beside(plans: Iterable[Plan], others: Iterable[Plan]) -> Mapping[str, Pool]:
    """List the pools that plans need, by name, as large as the others that share them let them be."""
    plans = list(plans)
    shared = pools_of([*plans, *others])
    return {name: shared[name] for name in pools_of(plans)}


def _pools(plan: Plan) -> Iterable[Pool]:
    for wave in plan.waves:
        yield Pool(
            wave_pool(plan.name, wave.name),
            wave.entry.max_in_flight,
            f"Hyperflow: VMs of wave {wave.name} of plan {plan.name} in flight",
        )
    sizes = plan.pools
    for vm in plan.vms:
        connection = str(vm.settings.host.connection) if vm.settings.host else ""
        if sizes.nfc_streams_per_esxi:
            esxi = plan.esxi_hosts.get(vm.slug)
            what = f"NFC streams from {f'ESXi host {esxi} of ' if esxi else ''}{plan.vcenter.connection}"
            yield Pool(stream_pool(plan.vcenter.connection, esxi), sizes.nfc_streams_per_esxi, f"Hyperflow: {what}")
        if sizes.jobs_per_host:
            what = f"checksum, convert and validate on {connection}"
            yield Pool(host_pool(connection), sizes.jobs_per_host, f"Hyperflow: {what}")
        if sizes.guests_per_host:
            what = f"guests inspected, fixed or booted on {connection}"
            yield Pool(guest_pool(connection), sizes.guests_per_host, f"Hyperflow: {what}")
