"""The page of a wave's report: a reader tells apart what became of each VM, and finds who decided it."""

from __future__ import annotations

import html
from typing import Any

import pytest
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
            "overrides": {"skip_boot": True},
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

    page = page_of({"slug": "a", "outcome": "rolled back", "decisions": [yes, nobody]})
    decided = page.partition("Who decided")[2]

    assert "It was given skip_boot: True." in page
    assert "<td>May wave night begin?</td><td>Approve</td><td>Alice</td>" in decided
    assert "<td>a</td><td>Shut down a?</td><td>Approve</td><td>Bob</td><td>2026-11-26T22:10:00Z</td>" in decided
    assert "<td>a</td><td>Start a on KVM for good?</td><td>Reject</td><td>nobody in time</td>" in decided


def test_an_error_has_its_code_and_the_vms_name_leads_to_the_page_of_its_run() -> None:
    told = {"stage": "boot", "message": "the guest's kernel panicked", "code": "HF-BOOT-002"}
    run_id = "manual__2026-11-26T22:00:00+00:00"
    vms = (
        {"slug": "a", "outcome": "failed", "run_id": run_id, "errors": [told]},
        {"slug": "b", "outcome": "not started"},
    )

    page = page_of(*vms)

    assert "<summary>boot <code>HF-BOOT-002</code></summary>the guest's kernel panicked" in row_of(page, "a")
    assert '<td><a href="../../migrate.p.a/manual__2026-11-26T22%3A00%3A00%2B00%3A00/">a</a>' in page
    assert "<td>b<br>" in page, "a VM without a run has no page"


def test_a_run_whose_id_is_markup_stays_inside_its_link() -> None:
    page = page_of({"slug": "a", "outcome": "failed", "run_id": '"><script>alert(1)</script>', "name": "<b>a</b>"})

    assert '<a href="../../migrate.p.a/%22%3E%3Cscript%3Ealert%281%29%3C/script%3E/">' in page


@pytest.mark.parametrize(("proven", "told"), [(True, "booted in 61 s"), (False, "not proven")])
def test_screen_and_console_are_linked_where_the_run_has_them_also_when_the_guest_did_not_come_up(
    proven: bool, told: str
) -> None:
    proof = {"proven": proven, "screenshot": "/srv/a/boot/screenshot.png", "console_log": "/srv/a/boot/console.log"}
    proof |= {"seconds_to_up": 61.5} if proven else {}
    of_old_qemu = {"proven": proven, "screenshot": "/srv/a/boot/screenshot.ppm"}
    vms = [
        {"slug": slug, "outcome": "failed", "run_id": "r", "boot_proof": left}
        for slug, left in (("a", proof), ("b", of_old_qemu), ("c", {"proven": proven}))
    ]

    rows = {slug: row_of(page_of(*vms), slug) for slug in "abc"}

    assert told in rows["a"]
    assert '<a href="../../migrate.p.a/r/screenshot.png">screen</a>' in rows["a"]
    assert '<a href="../../migrate.p.a/r/console.log">console</a>' in rows["a"]
    assert not [slug for slug in "bc" if "screenshot" in rows[slug] or "console.log" in rows[slug]]


def test_a_vm_that_is_unproven_says_why() -> None:
    boot = {"seconds": 0, "success": False, "skipped": "skip_boot of the run: nothing proves that this guest boots"}
    page = page_of({"slug": "a", "outcome": "unproven", "run_id": "r", "stages": {"boot": boot}})

    assert "<small>skip_boot of the run: nothing proves that this guest boots</small>" in row_of(page, "a")


def test_the_page_leads_to_the_record_of_who_asked_what_of_the_wave() -> None:
    assert '<a href="audit">audit</a>' in page_of({"slug": "a", "outcome": "migrated"})
