"""``./hyperflow manifest validate|verify``: a manifest against the contract, and its disks against it."""

from __future__ import annotations

import threading
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from hyperflow.cli.__main__ import EXIT_FAILED
from hyperflow.manifest.load import ManifestError, load_manifest
from hyperflow.manifest.models import Manifest
from hyperflow.manifest.rules import concerns
from hyperflow.manifest.verify import verify_manifest


def validate(file: Path) -> int:
    """Check a manifest against the contract and list all its faults.

    :return: 0 valid, 1 invalid
    """
    return 0 if _load(file, Console(highlight=False)) is not None else EXIT_FAILED


def verify(file: Path) -> int:
    """Check a manifest, and the size and digest of every disk it names.

    :return: 0 when all is as the manifest says, 1 when not
    """
    console = Console(highlight=False)
    manifest = _load(file, console)
    if manifest is None:
        return EXIT_FAILED
    with Progress(console=console, transient=True) as display:
        shown = _Display(display)
        verdicts = verify_manifest(manifest, progress=shown.advance)
    for each in verdicts:
        color = "green" if each.good else "red"
        text = f"{each.path}: found {each.found}, expected {each.expected}"
        console.print(f"[{color}]{each.disk_id}: {each.verdict}[/{color}] {escape(text)}", soft_wrap=True)
    return 0 if all(each.good for each in verdicts) else EXIT_FAILED


class _Display:
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


def _load(file: Path, console: Console) -> Manifest | None:
    try:
        manifest = load_manifest(file)
    except ManifestError as error:
        for fault in error.faults:
            console.print(f"[red]{escape(str(file))}:[/red] {escape(str(fault))}", soft_wrap=True)
        return None
    for concern in concerns(manifest):
        console.print(f"[yellow]{escape(str(file))}:[/yellow] {escape(concern)}", soft_wrap=True)
    console.print(f"[green]{escape(str(file))}:[/green] valid, {len(manifest.disks)} disk(s)", soft_wrap=True)
    return manifest
