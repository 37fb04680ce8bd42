"""A plan that was read and found good: every VM with all that holds for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hyperflow.manifest.faults import DocumentError, did_you_mean
from hyperflow.plans.cutover import Cutover
from hyperflow.plans.profile import Profile
from hyperflow.plans.settings import PoolSizes, VCenter, VmEntry
from hyperflow.plans.slug import Selector

if TYPE_CHECKING:
    from hyperflow.plans.notices import Notice
    from hyperflow.plans.wave import Wave


class PlanError(DocumentError):
    """A plan, a profile or a run's settings were refused; ``faults`` holds every reason.

    :ivar draft: the plan as far as it can be read, so that what else is wrong with it is told in the same run; None
        where too little of it is good
    """

    draft: Plan | None = None


@dataclass(frozen=True)
class PlannedVm:
    """One VM of a plan.

    :param selector: which VM it is
    :param slug: its safe name, a file name and part of the DAG id
    :param dag_id: ``migrate.<plan>.<slug>``
    :param settings: the plan's settings with the VM's laid over them
    :param profile: the profile the two name, without their overrides
    :param approvers: ``{"id", "name"}`` of those who are asked in its cutover; empty for whoever may run the DAG
    """

    selector: Selector
    slug: str
    dag_id: str
    settings: VmEntry
    profile: Profile
    approvers: tuple[dict[str, str], ...] = field(default=())

    @property
    def strategy(self) -> str:
        """How the plan wants it to be cut over."""
        return (self.settings.cutover or Cutover()).strategy


@dataclass(frozen=True)
class Plan:
    """A plan file, read.

    :param name: its name
    :param path: its file
    :param vcenter: where its VMs are
    :param vms: its VMs, in the file's order
    :param waves: its waves, in the file's order
    :param pools: limits over all runs
    :param notify: who is told of its waves, where these do not say otherwise; VMs have theirs in their settings
    :param esxi_hosts: slug -> ESXi host, of the VMs that were surveyed
    """

    name: str
    path: Path
    vcenter: VCenter
    vms: tuple[PlannedVm, ...]
    waves: tuple[Wave, ...] = field(default=())
    pools: PoolSizes = field(default_factory=PoolSizes)
    notify: tuple[Notice, ...] = field(default=())
    esxi_hosts: Mapping[str, str] = field(default_factory=dict)

    def wave(self, name: str) -> Wave:
        """Find a wave by its name.

        :raises KeyError: there is none; the message names the likeliest, and others
        """
        for wave in self.waves:
            if wave.name == name:
                return wave
        names = [wave.name for wave in self.waves]
        known = did_you_mean(name, names) if names else "none: the plan has no waves"
        raise KeyError(f"wave: found none called {name!r} in plan {self.name}, expected {known}")

    def vm(self, word: str) -> PlannedVm:
        """Find a VM by its slug, DAG id, or the name, path or MoRef in the plan.

        :raises KeyError: no VM, or several, go by that word; the message names these, or the likeliest and others
        """
        # A slug is unique and counts first: another VM's name may be the same word.
        found = [vm for vm in self.vms if word in (vm.slug, vm.dag_id)]
        found = found or [vm for vm in self.vms if word == vm.selector.value]
        if len(found) != 1:
            known = did_you_mean(word, [vm.slug for vm in found or self.vms])
            raise KeyError(f"vm: found {len(found)} called {word!r} in plan {self.name}, expected {known}")
        return found[0]
