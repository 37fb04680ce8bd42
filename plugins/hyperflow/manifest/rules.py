"""The contract's rules that join several fields; they work on plain data, so one run lists every fault."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hyperflow.manifest.faults import Fault, Location, render, show

if TYPE_CHECKING:
    from hyperflow.manifest.models import Manifest

# A manifest is data from another machine: what asks to be run is refused, not ignored.
RUNNABLE = (
    r"(?:^|[^A-Za-z])(?:[Hh]ook|HOOK|[Cc]ommand|COMMAND|[Ss]cript|SCRIPT)[Ss]?[ \t\r\n]*$"
    r"|[a-z](?:Hook|Command|Script)s?[ \t\r\n]*$"
)


def faults(document: Any) -> list[tuple[Location, Fault]]:
    """Find broken rules in a document that may have any other fault as well."""
    return [(location, Fault(render(location), *words)) for location, words in _broken(document)]


def concerns(manifest: Manifest) -> list[str]:
    """Say what a person should know of a manifest that is valid; each becomes a warning of the report."""
    said = [
        f"disks[{index}] {disk.id}: no checksum, so a change since the export cannot be seen"
        for index, disk in enumerate(manifest.disks)
        if disk.checksum is None
    ]
    boot = manifest.boot_disk()
    claimed = [disk.id for disk in manifest.disks if disk.disk_type == "boot" and disk is not boot]
    if claimed and boot.disk_type != "boot":
        # hypersdk leaves out a boot_order_hint of 0 (Go's omitempty), so the true boot disk counts as 999.
        said.append(f"boot disk is {boot.id} by its boot_order_hint, though {claimed[0]} has the disk_type boot")
    stages = manifest.pipeline.enabled() if manifest.pipeline is not None else None
    if manifest.configuration is not None and stages is not None and "fix" not in stages:
        said.append("configuration is not applied to the guest, because the pipeline has fix disabled")
    return said


def _broken(document: Any) -> Iterator[tuple[Location, tuple[str, str]]]:
    if not isinstance(document, dict):
        return
    yield from _runnable(document)
    yield from _repeated(document)
    yield from _output_clash(document)


def _runnable(document: dict[str, Any]) -> Iterator[tuple[Location, tuple[str, str]]]:
    pending: list[tuple[Location, Any]] = [((), document)]
    while pending:
        location, value = pending.pop()
        if location == ("metadata", "tags"):
            continue  # strings that people chose; no program reads them
        if isinstance(value, dict):
            for key, item in value.items():
                if isinstance(key, str) and re.search(RUNNABLE, key):
                    yield (
                        (*location, key),
                        ("something to run", "no hooks, commands or scripts in a manifest"),
                    )
                else:
                    pending.append(((*location, key), item))
        elif isinstance(value, list):
            pending.extend(((*location, index), item) for index, item in enumerate(value))


def _repeated(document: dict[str, Any]) -> Iterator[tuple[Location, tuple[str, str]]]:
    """Find disks that share their id or their file: two images would be made of one, and one of none."""
    for key, word in (("id", "an id"), ("local_path", "a file")):
        first: dict[str, int] = {}
        for index, disk in enumerate(_list(document, "disks")):
            value = disk.get(key) if isinstance(disk, dict) else None
            if not isinstance(value, str):
                continue
            if value in first:
                yield (
                    ("disks", index, key),
                    (f"{show(value)} again", f"{word} other than that of disks[{first[value]}]"),
                )
            first.setdefault(value, index)


def _output_clash(document: dict[str, Any]) -> Iterator[tuple[Location, tuple[str, str]]]:
    output = document.get("output")
    if not isinstance(output, dict) or not isinstance(output.get("filename"), str):
        return
    disks = [disk for disk in _list(document, "disks") if isinstance(disk, dict)]
    others = {f"{disk.get('id')}.{output.get('format', 'qcow2')}" for disk in disks}
    if len(disks) > 1 and output["filename"] in others:
        yield ("output", "filename"), (show(output["filename"]), "a name that no disk's image has of itself")


def _list(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    return value if isinstance(value, list) else []
