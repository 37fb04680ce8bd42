"""The page of a wave's report: a reader tells apart what became of each VM, and finds who decided it."""

from __future__ import annotations

import html
from typing import Any

from hyperflow.manifest.wave_report import VmSummary, WaveReport, summarise_wave
from hyperflow.operators.wave_record import wave_page


def page_of(*vms: dict[str, Any]) -> str:
    summaries = [VmSummary.model_validate({"dag_id": f"migrate.p.{vm['slug']}", **vm}) for vm in vms]
    report = WaveReport.model_validate(
        {
            "version": "1.0",
            "plan": "p",
            "wave": "night",
            "dag_id": "wave.p.night",
            "run_id": "manual__1",
            "started": "2026-11-26T22:00:00Z",
            "ended": "2026-11-26T23:00:00Z",
            "summary": summarise_wave(summaries).to_document(),
            "decisions": [{"question": "May wave night begin?", "answer": "Approve", "by": "Alice"}],
            "vms": [one.to_document() for one in summaries],
        }
    )
    return html.unescape(wave_page(report))


def row_of(page: str, slug: str) -> str:
    return page.partition(f"<code>migrate.p.{slug}</code>")[2].partition("</tr>")[0]


def test_a_drifted_a_rejected_and_a_rolled_back_vm_are_marked_as_such() -> None:
    no = {"question": "Shut down b?", "answer": "Reject", "by": "Bob", "at": "2026-11-26T22:10:00Z"}
    page = page_of(
        {"slug": "a", "outcome": "failed", "drifted": True, "reason": "a snapshot was taken"},
        {"slug": "b", "outcome": "failed", "decisions": [no], "reason": "rejected by Bob"},
        {"slug": "c", "outcome": "rolled back", "reason": "no answer from address 192.0.2.99"},
    )

    assert [mark for mark in ("drifted", "rejected<") if f">{mark}" in row_of(page, "a")] == ["drifted"]
    assert [mark for mark in ("drifted", "rejected<") if f">{mark}" in row_of(page, "b")] == ["rejected<"]
    assert ">rolled back<" in row_of(page, "c")


def test_what_people_decided_about_the_wave_and_about_each_vm_is_listed_with_who_and_when() -> None:
    yes = {"question": "Shut down a?", "answer": "Approve", "by": "Bob", "at": "2026-11-26T22:10:00Z"}
    nobody = {"question": "Start a on KVM for good?", "answer": "Reject"}

    decided = page_of({"slug": "a", "outcome": "rolled back", "decisions": [yes, nobody]}).partition("Who decided")[2]

    assert "<td>May wave night begin?</td><td>Approve</td><td>Alice</td>" in decided
    assert "<td>a</td><td>Shut down a?</td><td>Approve</td><td>Bob</td><td>2026-11-26T22:10:00Z</td>" in decided
    assert "<td>a</td><td>Start a on KVM for good?</td><td>Reject</td><td>nobody in time</td>" in decided
