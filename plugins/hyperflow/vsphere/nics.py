"""The network adapters of a virtual machine: whether each is connected, all disconnected, and put back as they were.

Only connectedness is ever changed: an adapter keeps its MAC, its network and its place, so that a rollback puts back
two switches and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from pyVmomi import vim

from hyperflow.vsphere.errors import NicsChanged, TaskUnfinished, VsphereError
from hyperflow.vsphere.facts import NicFacts
from hyperflow.vsphere.inventory import read_vm
from hyperflow.vsphere.properties import first_refusal, retrieve
from hyperflow.vsphere.session import Session
from hyperflow.vsphere.snapshot import give_up, wait_for_task

RECONFIGURE_LIMIT = 300  # seconds that a change of the configuration may take

_config_spec: Any = vim.vm.ConfigSpec  # pyVmomi's data objects have no typed constructors
_device_spec: Any = vim.vm.device.VirtualDeviceSpec
_connect_info: Any = vim.vm.device.VirtualDevice.ConnectInfo


class Connection(TypedDict):
    """One adapter, as it goes through JSON.

    ``connected``: now, always false while the VM is off. ``start_connected``: whether it will be at power on.
    ``network`` is the port group's name, None when there is none.
    """

    key: int
    label: str
    mac: str
    network: str | None
    connected: bool
    start_connected: bool


def connections(session: Session, moref: str) -> list[Connection]:
    """The network adapters by device key; plain JSON, to be recorded before :func:`disconnect`.

    :raises NotFound: when the VM is gone
    """
    return [_connection(nic) for nic in read_vm(session, moref).nics]


def disconnect(session: Session, moref: str, time_limit: float = RECONFIGURE_LIMIT) -> list[Connection]:
    """Disconnect every adapter, now and at power on, in one change; done already is a success.

    :param time_limit: seconds
    :return: the adapters as read back
    :raises Busy: somebody changed the VM's configuration at the same moment, or another operation holds it
    :raises TaskFailed: with vCenter's reason
    :raises TaskUnfinished: the time is over; vCenter was asked to give the task up
    """
    read = _cards(session, moref)
    wanted = {int(card.key): (False, False) for card in read.cards}
    _set(session, moref, read, wanted, time_limit)
    return _read_back(session, moref, wanted)


def restore(session: Session, moref: str, recorded: object, time_limit: float = RECONFIGURE_LIMIT) -> list[Connection]:
    """Put back what :func:`connections` had recorded, in one change; put back already is a success.

    While the VM is off no adapter can be connected: then ``start_connected`` is put back and the power-on connects. An
    adapter that was connected by hand (connected, but not at power on) needs a second call once the VM is on.

    :param recorded: the list of :func:`connections`, as it came out of JSON
    :param time_limit: seconds
    :return: the adapters as read back
    :raises NicsChanged: an adapter is gone, is another one, or was added; nothing was changed
    :raises VsphereError: what was recorded is not of that form
    :raises Busy: somebody changed the VM's configuration at the same moment, or another operation holds it
    :raises TaskFailed: with vCenter's reason
    """
    wanted_nics = _checked(recorded)
    read = _cards(session, moref)
    _must_be_the_same(moref, wanted_nics, read.cards)
    running = _is_on(session, moref)
    wanted = {nic["key"]: (nic["start_connected"], running and nic["connected"]) for nic in wanted_nics}
    _set(session, moref, read, wanted, time_limit)
    return _read_back(session, moref, wanted)


def require_same(session: Session, moref: str, recorded: object) -> None:
    """See that :func:`restore` has the adapters to put back; nothing is changed.

    :raises NicsChanged: an adapter is gone, is another one, or was added
    :raises VsphereError: what was recorded is not of that form
    """
    _must_be_the_same(moref, _checked(recorded), _cards(session, moref).cards)


def _connection(nic: NicFacts) -> Connection:
    return Connection(
        key=nic.key,
        label=nic.label,
        mac=nic.mac,
        network=nic.network,
        connected=nic.connected,
        start_connected=nic.connect_at_power_on,
    )


@dataclass(frozen=True)
class _Cards:
    """The network adapters as pyVmomi gives them, and the version of the configuration that they are of."""

    version: str | None
    cards: tuple[Any, ...]


def _cards(session: Session, moref: str) -> _Cards:
    paths = ["config.changeVersion", "config.hardware.device"]
    (vm,) = retrieve(session, [session.object(vim.VirtualMachine, moref)], {vim.VirtualMachine: paths})
    if vm.get("config.hardware.device") is None:
        raise first_refusal(session, vm) or VsphereError(
            f"{session.host} does not tell the devices of {moref}. See that its host is up and connected"
        )
    cards = [each for each in vm.get("config.hardware.device") if isinstance(each, vim.vm.device.VirtualEthernetCard)]
    return _Cards(vm.get("config.changeVersion"), tuple(sorted(cards, key=lambda card: int(card.key))))


def _set(session: Session, moref: str, read: _Cards, wanted: dict[int, tuple[bool, bool]], time_limit: float) -> None:
    """Give adapters their (start connected, connected), those that have it not; all in one change or none."""
    edits = []
    for card in read.cards:
        if _switches(card) == wanted[int(card.key)]:
            continue
        edited = copy.copy(card)
        start, now = wanted[int(card.key)]
        guest_control = card.connectable is None or bool(card.connectable.allowGuestControl)
        edited.connectable = _connect_info(startConnected=start, connected=now, allowGuestControl=guest_control)
        edits.append(_device_spec(operation="edit", device=edited))
    if not edits:
        return
    # With the version, vCenter refuses the change when the adapters are no longer those that were read.
    spec = _config_spec(deviceChange=edits, changeVersion=read.version)
    reference = session.object(vim.VirtualMachine, moref)
    task = session.call(reference.ReconfigVM_Task, spec)
    try:
        wait_for_task(session, task, f"the change of {len(edits)} network adapters of {moref}", time_limit)
    except TaskUnfinished:
        give_up(task)
        raise


def _switches(card: Any) -> tuple[bool, bool]:
    connectable = card.connectable
    return bool(connectable and connectable.startConnected), bool(connectable and connectable.connected)


def _read_back(session: Session, moref: str, wanted: dict[int, tuple[bool, bool]]) -> list[Connection]:
    found = connections(session, moref)
    is_now = {nic["key"]: (nic["start_connected"], nic["connected"]) for nic in found}
    other = [nic["label"] for nic in found if is_now[nic["key"]] != wanted.get(nic["key"])]
    other += [f"the adapter with key {key}" for key in wanted.keys() - is_now.keys()]
    if other:
        raise NicsChanged(
            f"{session.host} says that the network adapters of {moref} were changed, but these are not as asked for: "
            f"{', '.join(other)}. Set them in vCenter (Edit settings), and see its recent tasks for who changed them"
        )
    return found


def _must_be_the_same(moref: str, recorded: Sequence[Connection], cards: Sequence[Any]) -> None:
    before = {nic["key"]: nic for nic in recorded}
    now = {int(card.key): str(card.macAddress or "").lower() for card in cards}
    wrong = [
        f"{nic['label']} ({nic['mac']}) is gone" for key, nic in before.items() if now.get(key) != nic["mac"].lower()
    ]
    for card in cards:
        key = int(card.key)
        if key not in before or before[key]["mac"].lower() != now[key]:
            label = card.deviceInfo.label if card.deviceInfo is not None else f"device {key}"
            wrong.append(f"{label} ({now[key]}) is new")
    if wrong:
        raise NicsChanged(
            f"the network adapters of {moref} are not those that were recorded: {'; '.join(wrong)}. Nothing was "
            "changed. Connect the adapters by hand in vCenter (Edit settings), or put the old ones back and try again"
        )


def _is_on(session: Session, moref: str) -> bool:
    paths = ["runtime.powerState"]
    (vm,) = retrieve(session, [session.object(vim.VirtualMachine, moref)], {vim.VirtualMachine: paths})
    return bool(vm.get("runtime.powerState") == "poweredOn")


def _checked(recorded: object) -> list[Connection]:
    """What was recorded, when it has the form of :func:`connections`."""
    kinds = {"key": int, "label": str, "mac": str, "connected": bool, "start_connected": bool}
    nics: list[Any] = recorded if isinstance(recorded, list) else [recorded]
    for place, nic in enumerate(nics):
        for field, kind in kinds.items():
            value = nic.get(field) if isinstance(nic, dict) else None
            if type(value) is not kind:
                raise VsphereError(
                    f"what was recorded of network adapter {place} has no usable {field} (expected {kind.__name__}, "
                    f"found {value!r}). Connect the adapters by hand in vCenter (Edit settings)"
                )
    if len({nic["key"] for nic in nics}) != len(nics):
        raise VsphereError("two recorded network adapters have one key. Connect the adapters by hand in vCenter")
    return nics
