"""Where a wave's report is kept, and the page made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from hyperflow.hooks.records import keep, run_folder

if TYPE_CHECKING:
    from hyperflow.manifest.wave_report import WaveReport

JSON_NAME, PAGE_NAME = "wave-report.json", "wave-report.html"
TEMPLATE = "wave-report.html.j2"


def keep_wave_report(dag_id: str, run_id: str, report: WaveReport) -> Path:
    """Write the report as JSON and as a page.

    :return: path of the JSON
    """
    folder = run_folder(dag_id, run_id)
    keep(folder / PAGE_NAME, wave_page(report).encode())
    keep(folder / JSON_NAME, json.dumps(report.to_document(), indent=2, ensure_ascii=False).encode() + b"\n")
    return folder / JSON_NAME


def wave_page(report: WaveReport) -> str:
    """Make the page that a person reads; everything in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"size": _size, "duration": _duration}
    of_vms = [(vm.name or vm.slug, one) for vm in report.vms for one in vm.decisions or ()]
    decisions = [*(("", one) for one in report.decisions), *of_vms]
    return environment.get_template(TEMPLATE).render(report=report, decisions=decisions, style_of=STYLES)


STYLES = {
    "migrated": "good",
    "already done": "good",
    "complete": "good",
    "unproven": "doubt",
    "rehearsed": "doubt",
    "partial": "doubt",
    "not started": "quiet",
    "failed": "bad",
    "rolled back": "bad",
}


def _size(count: Any) -> str:
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _duration(seconds: Any) -> str:
    if seconds is None:
        return ""
    whole = round(float(seconds))
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
