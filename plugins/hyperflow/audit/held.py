"""Holds an audit file to all that is known of it elsewhere, and says what that is worth."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hyperflow.audit.anchors import HEAD, HEADS, REPORT, Anchor, AnchorFault, head_file, read_head, read_report
from hyperflow.audit.chain import NAME, Finding, run_of, verify

REPORTS = (REPORT, "wave-report.json")  # a run that has left one has had an audit file


@dataclass(frozen=True)
class Held:
    """What was found in an audit file, and what it was held to.

    :ivar entries: how many it has
    :ivar last: number and digest of the last one; None of an empty file, or where there is none
    :ivar findings: empty when nothing is wrong
    :ivar report: what the run's report knows; None where there is none, or it knows nothing
    :ivar head: what the run's head knows; None where there is none
    """

    entries: int
    last: Anchor | None
    findings: tuple[Finding, ...]
    report: Anchor | None
    head: Anchor | None

    @property
    def to_nothing(self) -> bool:
        """Whether nothing tells how many entries there should be: an end that was cut off would not be seen."""
        return self.report is None and self.head is None

    def told(self, report: str = "its report") -> str:
        """What the file was held to, in a sentence for a person.

        :param report: which one it is
        """
        if self.report and self.head:
            known = f"entry {self.report.entries}, and to its head, which knows entry {self.head.entries}"
            return f"Held to {report}, which knows {known}."
        if self.report:
            known = f"entry {self.report.entries}; no head tells how many came after it"
            return f"Held to {report}, which knows {known}."
        if self.head:
            return f"Held to its head only, which knows entry {self.head.entries}."
        return (
            "Held to nothing: neither a report nor a head knows how many entries there should be. An end that was cut "
            "off, or a file that was written anew, would not be seen."
        )


def hold(path: Path, report: Path | None) -> Held:
    """Verify an audit file, and hold it to the run's report and head; also one that is not there, but should be.

    :param report: the run's report; it may not be there
    :raises FileNotFoundError: there is no such file, and nothing tells that there was one
    :raises OSError: it cannot be read
    """
    known = _Known(path, report)
    try:
        found = verify(path, known.report, known.head)
    except FileNotFoundError:
        missing = lost(path, report)
        if missing is None:
            raise
        return missing
    findings = [*known.findings, *found.findings, *_after(found.last, _Known(path, None).head)]
    in_records = head_file(path).parents[2].is_dir()  # a copy elsewhere has a name of its own
    if in_records and found.run is not None and found.run != run_of(path):
        findings.insert(0, Finding(1, f"says that this is the file of run {found.run}: it was put in this run's place"))
    return Held(found.entries, found.last, tuple(findings), known.report, known.head)


def lost(path: Path, report: Path | None) -> Held | None:
    """Tell of an audit file that is not there; None where nothing tells that there was one.

    :param report: the run's report; it may not be there
    """
    known = _Known(path, report)
    by = [(known.report, "the run's report"), (known.head, "the run's head")]
    knowing = [f"{who} knows entry {anchor.entries} of it" for anchor, who in by if anchor is not None]
    findings = list(known.findings)
    if knowing:
        findings.append(Finding(0, f"is not there, and {', '.join(knowing)}: it was removed"))
    elif any(path.with_name(name).is_file() for name in REPORTS):
        findings.append(
            Finding(0, "is not there, and the run has a report: it was removed, or the run is older than audit files")
        )
    return Held(0, None, tuple(findings), known.report, known.head) if findings else None


def audit_files(folder: Path) -> list[Path]:
    """List the audit files of a folder and below, also those that should be there: a report or a head is left of them.

    :param folder: of the records, of a DAG or of a run
    """
    found = {os.path.abspath(path): path for path in _candidates(folder)}  # noqa: PTH100  which follows no link
    return sorted(found.values())


def _candidates(folder: Path) -> Iterator[Path]:
    for name in REPORTS:
        yield from (path.with_name(NAME) for path in folder.rglob(name))
    below = Path(os.path.abspath(folder))  # noqa: PTH100
    nested = (heads.parent for heads in below.rglob(HEADS))
    for records in (below, *below.parents[:2], *nested):
        for head in (records / HEADS).glob(f"*/*/{HEAD}"):
            file = records / head.parent.relative_to(records / HEADS) / NAME
            if file.is_relative_to(below):
                yield folder / file.relative_to(below)
    yield from folder.rglob(NAME)


def _after(last: Anchor | None, head: Anchor | None) -> Iterator[Finding]:
    """Entries that the head should know: it is written after each, so only the last one's may have been cut off.

    :param head: as it is after the file was read; a run that goes on writes both
    """
    if last is not None and head is not None and last.entries > head.entries + 1:
        yield Finding(
            0,
            f"the run's head knows no more than entry {head.entries} of {last.entries}: those after it were added by "
            "hand, or the head could not be written; the tasks' logs have each entry",
        )


class _Known:
    """What report and head know; one that is damaged knows nothing, and is a finding."""

    def __init__(self, path: Path, report: Path | None) -> None:
        self.report: Anchor | None = None
        self.head: Anchor | None = None
        self.findings: list[Finding] = []
        try:
            self.report = read_report(report) if report is not None else None
        except FileNotFoundError:
            pass
        except (AnchorFault, OSError) as fault:
            self.findings.append(Finding(0, f"the run's report cannot be read: {fault}"))
        try:
            self.head = read_head(path)
        except AnchorFault as fault:
            self.findings.append(Finding(0, f"the run's head cannot be read: {fault}"))
