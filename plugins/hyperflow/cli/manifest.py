"""``./hyperflow manifest``: an Artifact Manifest made, checked against the contract and its disks, shown.

Exit status: 0 valid, 1 invalid, 2 wrong usage. With ``--json`` standard output is one JSON object and nothing else.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from hyperflow.cli.__main__ import EXIT_FAILED, EXIT_USAGE
from hyperflow.cli.manifest_view import view
from hyperflow.manifest.documents import read_text
from hyperflow.manifest.exported import build_from_export
from hyperflow.manifest.faults import DocumentError, Fault
from hyperflow.manifest.load import SIZE_LIMIT, ManifestError, load_manifest
from hyperflow.manifest.models import Manifest
from hyperflow.manifest.rules import concerns
from hyperflow.manifest.save import save
from hyperflow.manifest.schema import manifest_schema, schema_text
from hyperflow.manifest.shown import shown
from hyperflow.manifest.verify import VerifiedDisk, verify_manifest

MANIFEST_NAME = "artifact-manifest.json"


def validate(file: Path, *, as_json: bool = False) -> int:
    """Check a manifest against schema and rules of the contract and list all its faults.

    :return: 0 valid, 1 invalid
    """
    answer = _Answer(file, as_json)
    answer.load()
    return answer.give()


def verify(file: Path, *, as_json: bool = False) -> int:
    """Check a manifest, and the size and digest of every disk it names.

    :return: 0 when all is as the manifest says, 1 when not
    """
    answer = _Answer(file, as_json)
    manifest = answer.load()
    if manifest is not None:
        with _progress() as bars:
            answer.disks(verify_manifest(manifest, folder=file.absolute().parent, progress=_Bars(bars).advance))
    return answer.give()


def show(file: Path, *, as_json: bool = False) -> int:
    """Show a manifest as tables.

    :return: 0 shown, 1 invalid
    """
    answer = _Answer(file, as_json)
    manifest = answer.load()
    if manifest is not None:
        answer.manifest(manifest)
    return answer.give()


def build(export: Path, *, output: Path | None, checksums: bool, replace: bool, as_json: bool = False) -> int:
    """Make the manifest of an export and write it.

    :param export: an OVF descriptor, or a folder with one or with disk images
    :param output: the manifest's file; ``artifact-manifest.json`` in the export's folder when None
    :param checksums: read every disk for its SHA-256
    :param replace: write over a manifest that is there, or a file of that name that is none; no other is replaced
    :return: 0 written, 1 refused, 2 wrong usage
    """
    file = output or (export if export.is_dir() else export.parent) / MANIFEST_NAME
    answer = _Answer(file, as_json)
    if not export.exists():
        return answer.refuse_usage(Fault(str(export), "nothing", "an OVF descriptor or a folder"))
    if file.exists() and not replace:
        return answer.refuse_usage(Fault(str(file), "a file that is there already", "none, or --force to replace it"))
    if file.exists() and not _is_manifest(file):
        expected = "a manifest to replace, or a name that nothing has"
        return answer.refuse_usage(Fault(str(file), "a file that is no manifest", expected))
    try:
        with _progress() as bars:
            manifest = build_from_export(
                export, made=datetime.now(UTC), checksums=checksums, progress=_Bars(bars).advance
            )
        save(manifest, file)
    except DocumentError as error:
        answer.refuse(error.faults)
    except OSError as fault:
        answer.refuse([Fault(str(file), fault.strerror or str(fault), "a file that can be written")])
    else:
        answer.manifest(manifest)
    return answer.give()


def _is_manifest(file: Path) -> bool:
    """Whether a file may be written over, also one that is faulty: not a disk, a descriptor, or somebody's document."""
    if file.name == MANIFEST_NAME and file.is_file():
        return True
    try:
        return "manifest_version" in read_text(file, SIZE_LIMIT)
    except DocumentError:
        return False


def schema() -> int:
    """Print the JSON Schema, Draft 7, of the manifest."""
    print(schema_text(manifest_schema()), end="")
    return 0


class _Answer:
    """What a command says of one file: in words as it goes, or as one JSON object at the end."""

    def __init__(self, file: Path, as_json: bool) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of another encoding has not every letter
            sys.stdout.reconfigure(errors="backslashreplace")
        self._file = file
        self._as_json = as_json
        self._console = Console(highlight=False, quiet=as_json)
        self._said: dict[str, Any] = {"file": str(file), "valid": True, "faults": [], "concerns": []}

    def load(self) -> Manifest | None:
        """Read the manifest; None when it is refused."""
        try:
            manifest = load_manifest(self._file)
        except ManifestError as error:
            self.refuse(error.faults)
            return None
        for concern in concerns(manifest):
            self._said["concerns"].append(concern)
            self._line("yellow", shown(concern))
        self._line("green", f"valid, {len(manifest.disks)} disk(s)")
        return manifest

    def refuse(self, faults: Sequence[Fault]) -> None:
        """Say what is wrong."""
        self._said["valid"] = False
        for fault in faults:
            self._said["faults"].append(dataclasses.asdict(fault))
            self._line("red", shown(str(fault)))

    def refuse_usage(self, fault: Fault) -> int:
        """Say what is wrong with the command, and give its exit status."""
        self.refuse([fault])
        self.give()
        return EXIT_USAGE

    def disks(self, verdicts: Sequence[VerifiedDisk]) -> None:
        """Say what came of comparing the disks."""
        self._said["disks"] = [{**dataclasses.asdict(each), "good": each.good} for each in verdicts]
        self._said["valid"] = all(each.good for each in verdicts)
        for each in verdicts:
            color = "green" if each.good else "red"
            text = f"{each.path}: found {each.found}, expected {each.expected}"
            self._console.print(f"[{color}]{each.disk_id}: {each.verdict}[/] {escape(shown(text))}", soft_wrap=True)

    def manifest(self, manifest: Manifest) -> None:
        """Say what is in the manifest, and what follows from it."""
        self._said |= {
            "manifest": manifest.to_document(),
            "boot_disk": manifest.boot_disk().id,
            "stages": manifest.pipeline.enabled() if manifest.pipeline else None,
            "images": {disk.id: manifest.output_name(disk) for disk in manifest.disks},
        }
        for part in view(manifest, self._file.absolute()):
            self._console.print(part)

    def give(self) -> int:
        """Print the JSON object where that was asked for, and give the exit status."""
        if self._as_json:
            print(json.dumps(self._said, indent=2))
        return 0 if self._said["valid"] else EXIT_FAILED

    def _line(self, color: str, text: str) -> None:
        self._console.print(f"[{color}]{escape(shown(str(self._file)))}:[/] {escape(text)}", soft_wrap=True)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class _Bars:
    """Shows one bar per disk; called from the threads that read."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._lock = threading.Lock()
        self._bars: dict[str, TaskID] = {}

    def advance(self, disk_id: str, done: int, total: int) -> None:
        with self._lock:
            if disk_id not in self._bars:
                self._bars[disk_id] = self._display.add_task(disk_id, total=total)
            self._display.update(self._bars[disk_id], completed=done)
