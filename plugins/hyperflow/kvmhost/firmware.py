"""UEFI for guests, found by the firmware descriptors of the host's QEMU (its docs/interop/firmware.json)."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperflow.kvmhost.stage import Job, StageError

DESCRIPTORS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))  # the first wins, by file name


@dataclass(frozen=True)
class Firmware:
    """A UEFI: its code and the template of its variables, with their formats (raw or qcow2)."""

    code: Path
    code_format: str
    variables: Path
    variables_format: str
    secure: bool


def choose(machine: str, secureboot: bool, job: Job, folders: tuple[Path, ...] = DESCRIPTORS) -> Firmware:
    """Find the UEFI for a guest.

    Where secure boot is wanted and the host has no enrolled keys, the guest gets a UEFI without, and a warning.

    :param machine: ``q35`` or ``pc``
    :raises StageError: when the host has no UEFI
    """
    usable = [one for one in _descriptors(folders) if _fits(one, machine)]
    enrolled = [one for one in usable if {"secure-boot", "enrolled-keys"} <= set(one.get("features", []))]
    if secureboot and enrolled:
        return _firmware(enrolled[0], secure=True)
    if secureboot:
        job.warn("secure boot was on at the source; this host has no UEFI with enrolled keys, so it is off here")
    plain = [one for one in usable if "enrolled-keys" not in one.get("features", [])]
    plain.sort(key=lambda one: "requires-smm" in one.get("features", []))  # stable: else the distribution's order
    if not plain:
        raise StageError("this host has no UEFI for guests; install ovmf (Debian, Ubuntu) or edk2-ovmf (RHEL)")
    return _firmware(plain[0], secure=False)


def _descriptors(folders: tuple[Path, ...]) -> list[dict[str, Any]]:
    """Read the descriptors in the order of their names; an empty file masks one of the same name."""
    by_name: dict[str, Path] = {}
    for folder in reversed(folders):
        by_name.update({path.name: path for path in folder.glob("*.json")})
    documents = []
    for name in sorted(by_name):
        text = by_name[name].read_text(encoding="utf-8")
        if text.strip():
            documents.append(json.loads(text))
    return documents


def _fits(descriptor: dict[str, Any], machine: str) -> bool:
    """Whether it is a UEFI in two flash files, there on disk, for this machine."""
    mapping = descriptor.get("mapping", {})
    if "uefi" not in descriptor.get("interface-types", []) or mapping.get("device") != "flash":
        return False
    if "nvram-template" not in mapping or mapping.get("mode", "split") != "split":
        return False
    full = "pc-q35-9.0" if machine == "q35" else "pc-i440fx-9.0"
    if not any(
        target.get("architecture") == "x86_64" and any(fnmatch.fnmatch(full, one) for one in target["machines"])
        for target in descriptor.get("targets", [])
    ):
        return False
    return all(Path(mapping[part]["filename"]).is_file() for part in ("executable", "nvram-template"))


def _firmware(descriptor: dict[str, Any], secure: bool) -> Firmware:
    code, variables = descriptor["mapping"]["executable"], descriptor["mapping"]["nvram-template"]
    return Firmware(
        code=Path(code["filename"]),
        code_format=code.get("format", "raw"),
        variables=Path(variables["filename"]),
        variables_format=variables.get("format", "raw"),
        secure=secure,
    )
