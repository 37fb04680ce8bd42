"""The target: the boot that proves the guest, and the domain that libvirt keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from hyperflow.manifest.shown import shown
from hyperflow.operators.base import HostStageOperator, VmOperator, domain_uuid, run_key, take_result, vm_key
from hyperflow.operators.results import require_every_disk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow.sdk import Context

    from hyperflow.vsphere.facts import NicFacts

LINK_LOCAL = "169.254."  # RFC 3927: what an interface gives itself that nobody gave an address


class TargetOperator(HostStageOperator, VmOperator):
    """A task that needs the final images and the VM's hardware.

    :param images: what the :class:`ConvertDiskOperator` of each disk returned; templated
    """

    template_fields: Sequence[str] = (*VmOperator.template_fields, "images")

    def __init__(self, *, images: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.images = images

    def ordered_images(self) -> list[dict[str, Any]]:
        """The images in the order of the VM's disks, the boot disk first, as a stage takes them."""
        if not self.images:
            raise AirflowFailException("there are no converted images; the profile's pipeline has convert disabled")
        order = [disk["id"] for disk in self.vm["disks"]]
        require_every_disk(self.images, order)
        images = sorted(self.images, key=lambda image: order.index(image["disk_id"]))
        return [{key: image[key] for key in ("disk_id", "path", "format")} for image in images]

    def hardware(self) -> dict[str, Any]:
        """CPU, memory and firmware of the target: the plan's, else the source's."""
        return {
            "firmware": self.settings.firmware or self.vm["firmware"],
            "secureboot": self.vm["secure_boot"],
            "cpus": self.settings.cpus or self.vm["cpus"],
            "memory_mb": self.settings.memory_mb or self.vm["memory_mb"],
        }


class ProveBootOperator(TargetOperator):
    """Boots the guest on throw-away overlays in an isolated network until it says itself that it is up.

    Returns the proof: ``{"proven", "accelerator", "seconds_to_up", "evidence", "console_log", "screenshot"}``.

    :param guest: what :class:`InspectGuestOperator` returned, for what must be found again; templated
    :param fix: what :class:`FixGuestOperator` returned, None when it was skipped; templated
    """

    stage = "boot"
    template_fields: Sequence[str] = (*TargetOperator.template_fields, "guest", "fix")

    def __init__(self, *, guest: Any, fix: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.guest = guest
        self.fix = fix

    def options(self, context: Context) -> dict[str, Any]:
        """Give images, hardware, and what the guest must say of itself."""
        if self.settings.skip_boot:
            raise AirflowSkipException(str(self.settings.why_skipped("boot")))
        hardware = {**self.hardware(), "nics": [{"mac": nic["mac"]} for nic in self.vm["nics"]]}
        if self.settings.boot_memory_mb:
            hardware["memory_mb"] = self.settings.boot_memory_mb
        return {
            "images": self.ordered_images(),
            "work_directory": self.settings.work_directory,
            "artifacts_directory": self.settings.boot_directory,
            "hardware": hardware,
            "timeout_seconds": self.settings.boot_timeout_seconds,
            "expect": expectations(self.guest, self.facts.nics, self.fix),
        }

    def resume(self, context: Context, event: dict[str, Any], **kept: Any) -> Any:
        """Show the proof."""
        observed = take_result(context, event)
        self.log.info("the guest is up after %.0f s: %s", observed["seconds_to_up"], shown(str(observed["evidence"])))
        return observed


class DefineDomainOperator(TargetOperator):
    """Defines the libvirt domain with virt-install; returns what libvirt then holds."""

    stage = "define"

    def options(self, context: Context) -> dict[str, Any]:
        """Give images, hardware, name and networks."""
        facts = self.facts
        nics = [{"mac": nic.mac, "network": self.settings.libvirt_network(nic.network or "")} for nic in facts.nics]
        return {
            "name": self.settings.domain_name,
            "uuid": domain_uuid(facts),
            "description": shown(f"{facts.name}, migrated from {facts.inventory_path}"),
            "images": self.ordered_images(),
            "hardware": {**self.hardware(), "nics": nics},
            "metadata": {"vm": vm_key(facts), "run": run_key(context)},
        }


def configured_networks(
    guest: dict[str, Any] | None, nics: Iterable[NicFacts], fix: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """List the interfaces that the guest's files give addresses, without those of cards that the VM has no more.

    :param fix: what the fix stage observed: it tells the cards that are there from those whose files were left behind
    """
    gone = set((fix or {}).get("network_without_card") or ())
    cards = {nic.mac.lower() for nic in nics}
    return [
        network
        for network in (guest or {}).get("network", [])
        if network["addresses"]
        and network["name"] not in gone
        and (network["name"] or not network.get("mac") or network["mac"] in cards)
    ]


def expectations(
    guest: dict[str, Any] | None, nics: Sequence[NicFacts] = (), fix: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Tell what a booted guest must show: the root file system, addresses and mounts that it had before.

    :param guest: facts of the inspect stage; nothing is expected where there are none
    :param nics: of the source; an IPv4 address that VMware Tools saw and no file of the guest has came by DHCP
    :param fix: what the fix stage observed, where it ran
    """
    if not guest:
        return {"root": None, "networks": [], "mounts": [], "leases": []}
    own = {address.split("/")[0] for network in guest["network"] for address in network["addresses"]}
    leases = [
        nic.mac.lower()
        for nic in nics
        if any("." in one and not one.startswith(LINK_LOCAL) and one.split("/")[0] not in own for one in nic.addresses)
    ]
    networks = [
        {"name": network["name"], "addresses": network["addresses"], "mac": network.get("mac")}
        for network in configured_networks(guest, nics, fix)
    ]
    mounts = [
        {key: mount[key] for key in ("path", "uuid", "options")}
        for mount in guest["mounts"]
        if mount["path"].startswith("/") and mount["uuid"] and mount["fstype"] != "swap"
    ]
    root = {key: guest["root"][key] for key in ("uuid", "device", "fstype")}
    return {"root": root, "networks": networks, "mounts": mounts, "leases": leases}
