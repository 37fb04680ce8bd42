"""``docs/errors.md``, made of the catalogue: ``python -m hyperflow.errors.page`` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hyperflow.errors.catalogue import FIELD, areas

PAGE = Path(__file__).resolve().parents[3] / "docs" / "errors.md"
HEAD = """# Errors: what they mean and what to do

Made of `plugins/hyperflow/errors/*.yaml` by `python -m hyperflow.errors.page`; do not edit it here.

Every failure of Hyperflow has a code. It stands in the task's log, one line with what to do, and in `report.json`
beside the error it belongs to. A code stays the same in later versions; the words around it may become better.

    ./hyperflow explain HF-EXPORT-013              one entry
    ./hyperflow explain --message "the message"    the entry of a message that you have; - reads standard input
    ./hyperflow explain                            all codes; --json for a program

A message is known by the parts quoted below; `...` is what is filled in. Where several fit, the one that knows most
of the message counts, and one marked *general* only where no other fits: its messages have the reason in them.
`HF-AREA-000` is a failure that nobody has foreseen: please report it.
"""


def page() -> str:
    """Write the catalogue as Markdown."""
    return "\n".join([HEAD, *_contents(), *_entries()])


def _contents() -> Iterator[str]:
    yield "| area | about | codes |"
    yield "|---|---|---|"
    for area in areas():
        yield f"| [{area.area}](#{area.area.lower()}) | {area.title} | {len(area.entries)} |"


def _entries() -> Iterator[str]:
    for area in areas():
        yield f"\n## {area.area}\n\nAbout {area.title}.\n"
        for entry in area.entries:
            yield f"### {entry.code}{' (general)' if entry.general else ''}\n"
            yield f"{entry.meaning}\n"
            yield f"* Likely cause: {entry.cause}"
            yield f"* What to do: {entry.what_to_do}"
            known = "; ".join(f"`` {pattern.replace(FIELD, '...')} ``" for pattern in entry.patterns)
            yield f"* Messages: {known}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
