"""systemd's units: enabled, disabled or masked by the guest's own systemctl, and asked for their state afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.stage import StageError

FOLDER = "/etc/systemd/system"
KINDS = (".service", ".socket", ".timer", ".path", ".target", ".mount", ".automount", ".swap", ".slice")
OFFLINE = ("SYSTEMD_OFFLINE=1",)  # systemctl works on the links in /etc and asks no running systemd
UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@\\-]*")

# is-enabled ends with a status of its own, so each unit's answer is taken on a line of its own.
STATES = 'for unit in "$@"; do echo "$unit $(systemctl is-enabled "$unit" 2>/dev/null)"; done'
AFTER = {
    "enable": ("enabled", "alias"),
    "disable": ("disabled", "indirect", "static", "masked"),
    "mask": ("masked",),
}


@dataclass(frozen=True)
class Services:
    """Units by what is to become of them; ``.service`` when a unit has no ending."""

    enable: list[str] = field(default_factory=list)
    disable: list[str] = field(default_factory=list)
    mask: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """List what is no name of a unit, or asked for twice."""
        found = []
        for verb in AFTER:
            for unit in getattr(self, verb):
                if not UNIT.fullmatch(unit):
                    found.append(f"services.{verb}: found {unit!r}, expected the name of a unit")
        named = [unit for verb in AFTER for unit in set(self.units(verb))]
        if len(set(named)) != len(named):
            found.append("services: found a unit in two lists, expected each in one only")
        return found

    def units(self, verb: str) -> list[str]:
        """Give the whole names of the units of one list."""
        names: list[str] = getattr(self, verb)
        return [name if name.endswith(KINDS) else f"{name}.service" for name in names]


def apply(files: GuestFiles, changes: Changes, wanted: Services) -> list[dict[str, str]]:
    """Change the units' states; the states before and after.

    :raises StageError: a guest without systemd, a unit that it does not have, or that cannot be what is wanted
    """
    asked = {unit: verb for verb in AFTER for unit in wanted.units(verb)}
    if not asked:
        return []
    if files.program("systemctl") is None:
        raise StageError("configuration.services: the guest has no systemctl; only systemd's units can be set")
    before = states(files, list(asked))
    masked = [unit for unit, verb in asked.items() if verb == "enable" and before[unit] == "masked"]
    if masked:
        _systemctl(files, "unmask", masked)
    for verb, expected in AFTER.items():
        units = [unit for unit, one in asked.items() if one == verb and before[unit] not in expected]
        if units:
            changes.regenerated(FOLDER)
            _systemctl(files, verb, units)
    after = states(files, list(asked))
    wrong = [
        f"{unit} is {after[unit] or 'unknown to systemd'}, asked for: {verb}"
        for unit, verb in asked.items()
        if after[unit] not in AFTER[verb]
    ]
    if wrong:
        raise StageError(f"configuration.services: read back: {'; '.join(wrong)}")
    return [{"unit": unit, "before": before[unit], "state": after[unit]} for unit in asked]


def states(files: GuestFiles, units: Sequence[str]) -> dict[str, str]:
    """Ask the guest's systemctl for the units' states; an empty one for a unit that there is not."""
    said = files.run(["/bin/sh", "-c", STATES, "sh", *units], OFFLINE)
    found: dict[str, Any] = dict.fromkeys(units, "")
    for line in said.splitlines():
        unit, _, state = line.partition(" ")
        if unit in found:
            found[unit] = state.strip()
    return found


def _systemctl(files: GuestFiles, verb: str, units: Sequence[str]) -> None:
    try:
        files.run(["systemctl", "--quiet", verb, *units], OFFLINE)
    except StageError as fault:
        raise StageError(f"configuration.services: {verb} {' '.join(units)}: {fault}") from fault
