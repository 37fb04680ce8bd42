"""``./hyperflow audit``: looks for entries of audit files that were removed, changed or added, and shows them."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hyperflow.audit.anchors import REPORT, AnchorFault, read_report
from hyperflow.audit.chain import NAME, read_entry
from hyperflow.audit.held import audit_files, hold
from hyperflow.cli.__main__ import EXIT_FAILED, EXIT_USAGE
from hyperflow.manifest.shown import shown

LONGEST_SHOWN = 500  # characters of a line that is no entry
WORTH = (
    "Heads, and reports beside the files, lie in the records' folder: whoever can write there can write them too. "
    "Elsewhere are a migration's report on its KVM host (--report) and the tasks' logs: each entry is there too, "
    "and its number and digest where the run has a head."
)


class Unreadable(Exception):
    """A file that the command was given is not what it takes."""


def audit(action: str, paths: list[Path], report: Path | None) -> int:
    """Verify or show audit files.

    :param action: ``verify`` or ``show``
    :param paths: audit files, or folders that are searched for them
    :param report: the run's report that the file is held to; else the one beside it
    :return: 0 nothing is wrong, 1 something is or nothing tells how many entries there should be, 2 no such file
    """
    try:
        files = [file for path in paths for file in _files(path, there=action == "show")]
        if report is not None and len(files) != 1:
            raise Unreadable(f"--report: found {len(files)} audit files, expected one that this report is of")
        if report is not None:
            read_report(report)
        found = [_verify(file, report) if action == "verify" else _show(file) for file in files]
    except (Unreadable, AnchorFault, OSError) as fault:
        print(fault, file=sys.stderr)
        return EXIT_USAGE
    if action == "verify":
        print(WORTH, file=sys.stderr)
    return EXIT_FAILED if any(found) else 0


def _files(path: Path, *, there: bool) -> list[Path]:
    """List a folder's audit files; with ``there`` without those that only a report or a head knows."""
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob(NAME)) if there else audit_files(path)
    if not found:
        raise Unreadable(f"{path}: found no {NAME} in it or below, expected one for each run")
    return found


def _verify(file: Path, report: Path | None) -> int:
    """Print what is wrong with a file, or what it was held to.

    :return: how many findings; that nothing tells how many entries there should be is one
    """
    told = report or file.with_name(REPORT)
    held = hold(file, told)
    for finding in held.findings:
        print(f"{file}:{finding.line}: {finding.problem}" if finding.line else f"{file}: {finding.problem}")
    if not held.findings:
        last = f", last {held.last.sha256}" if held.last else ""
        print(f"{file}: {held.entries} entries{last}; each follows the one before. {held.told(str(told))}")
    return len(held.findings) or int(held.to_nothing)


def _show(file: Path) -> int:
    """Print a file's entries as a table; a line that is none is shown as it is.

    :return: how many lines are no entries
    """
    table = Table(box=None, pad_edge=False, title=Text(shown(str(file))), title_justify="left")
    for title in ("", "when (UTC)", "task", "who", "what", "on", "", "s", "exit"):
        table.add_column(title, overflow="fold")
    damaged = 0
    for line in file.read_bytes().splitlines():
        entry = read_entry(line)
        if entry is None:
            damaged += 1
            told, entry = ["?", "", "", "", f"no entry: {line.decode(errors='replace')[:LONGEST_SHOWN]}"], {}
        else:
            told = [entry["seq"], entry["at"][:19], entry.get("task", ""), entry.get("by", ""), entry["what"]]
        told += [entry.get("on", ""), entry.get("state", ""), entry.get("seconds", ""), entry.get("exit", "")]
        table.add_row(*(Text(shown(str(each))) for each in told))
    Console(highlight=False).print(table)
    return damaged
