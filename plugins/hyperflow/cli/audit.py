"""``./hyperflow audit``: looks for entries of audit files that were removed, changed or added, and shows them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hyperflow.audit.chain import NAME, Anchor, verify
from hyperflow.cli.__main__ import EXIT_FAILED, EXIT_USAGE
from hyperflow.manifest.shown import shown

REPORT = "report.json"
REPORT_LIMIT = 32 << 20  # bytes; a report of 1,000 disks has less than 2 MiB


class Unreadable(Exception):
    """A file that the command was given is not what it takes."""


def audit(action: str, paths: list[Path], report: Path | None) -> int:
    """Verify or show audit files.

    :param action: ``verify`` or ``show``
    :param paths: audit files, or folders that are searched for them
    :param report: the run's report that the file is held to; else the one beside it
    :return: 0 nothing is wrong, 1 something is, 2 there is no such file
    """
    try:
        files = [file for path in paths for file in _files(path)]
        if report is not None and len(files) != 1:
            raise Unreadable(f"--report: found {len(files)} audit files, expected one that this report is of")
        found = [_verify(file, report) if action == "verify" else _show(file) for file in files]
    except (Unreadable, OSError) as fault:
        print(fault, file=sys.stderr)
        return EXIT_USAGE
    return EXIT_FAILED if any(found) else 0


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob(NAME))
    if not found:
        raise Unreadable(f"{path}: found no {NAME} in it or below, expected one for each run")
    return found


def _verify(file: Path, report: Path | None) -> int:
    """Print what is wrong with a file.

    :return: how many findings
    """
    beside = file.with_name(REPORT)
    anchor = _anchor(report) if report is not None else _anchor(beside) if beside.exists() else None
    found = verify(file, anchor)
    for finding in found.findings:
        print(f"{file}:{finding.line}: {finding.problem}")
    if not found.findings:
        last = f", last {found.last.sha256}" if found.last else ""
        held = f"entry {anchor.entries} is the one that {report or beside} knows" if anchor else "no report knows it"
        print(f"{file}: {found.entries} entries, whole{last}; {held}")
    return len(found.findings)


def _anchor(report: Path) -> Anchor | None:
    """What a report says of its run's audit file; None where it is one of before there were any."""
    if report.stat().st_size > REPORT_LIMIT:
        raise Unreadable(f"{report}: found more than {REPORT_LIMIT >> 20} MiB, expected a run's {REPORT}")
    try:
        document = json.loads(report.read_bytes())
        told = document.get("audit")
        return None if told is None else Anchor(int(told["entries"]), str(told["sha256"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as fault:
        raise Unreadable(f"{report}: found no report of a run ({fault}), expected its {REPORT}") from fault


def _show(file: Path) -> int:
    """Print a file's entries as a table; a line that is none is shown as it is.

    :return: how many lines are no entries
    """
    table = Table(box=None, pad_edge=False, title=str(file), title_justify="left")
    for title in ("", "when (UTC)", "task", "who", "what", "on", "", "s", "exit"):
        table.add_column(title, overflow="fold")
    damaged = 0
    for line in file.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            told = [entry["seq"], entry["at"][:19], entry.get("task", ""), entry.get("by", ""), entry["what"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += 1
            told, entry = ["?", "", "", "", f"no entry: {line[:200]}"], {}
        told += [entry.get("on", ""), entry.get("state", ""), entry.get("seconds", ""), entry.get("exit", "")]
        table.add_row(*(Text(shown(str(each))) for each in told))
    Console(highlight=False).print(table)
    return damaged
