"""Where a wave's report is kept, and the page made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from airflow.configuration import AIRFLOW_HOME, conf

from hyperflow.operators.base import safe

if TYPE_CHECKING:
    from hyperflow.manifest.wave_report import WaveReport

JSON_NAME, PAGE_NAME = "wave-report.json", "wave-report.html"
TEMPLATE = "wave-report.html.j2"


def records_folder() -> Path:
    """Airflow's setting ``[hyperflow] records_folder``, by default ``hyperflow`` in Airflow's home."""
    return Path(conf.get("hyperflow", "records_folder", fallback=str(Path(AIRFLOW_HOME) / "hyperflow")))


def keep_wave_report(dag_id: str, run_id: str, report: WaveReport) -> Path:
    """Write the report as JSON and as a page.

    :return: path of the JSON
    """
    folder = records_folder() / safe(dag_id) / safe(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / PAGE_NAME, wave_page(report))
    _write(folder / JSON_NAME, json.dumps(report.to_document(), indent=2, ensure_ascii=False) + "\n")
    return folder / JSON_NAME


def wave_page(report: WaveReport) -> str:
    """Make the page that a person reads; everything in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"size": _size, "duration": _duration}
    return environment.get_template(TEMPLATE).render(report=report, style_of=STYLES)


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


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
