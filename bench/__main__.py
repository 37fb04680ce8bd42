"""Measures by name, or all, in the order of the table: ``python -m bench [NAME...]``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hyperflow.cli.interrupted import ended_in_order
from rich.console import Console

from bench import control, conversions, data, downloads, guests, memory, page, results, scale
from bench.results import Result
from bench.stages import BenchError

EXIT_USAGE = 64


def main(names: list[str]) -> int:
    """Measure, print, store.

    :return: the exit status; that a goal is not met is a finding and no failure
    """
    console = Console(highlight=False)
    if unknown := [name for name in names if name not in MEASURES]:
        console.print(f"found {', '.join(unknown)}, expected names out of {', '.join(MEASURES)}")
        return EXIT_USAGE
    done: list[Result] = []
    failed = []
    for name in names or MEASURES:
        console.print(f"measuring {name}")
        data.cache().mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=data.cache(), prefix="run-") as folder:
                done.append(MEASURES[name](Path(folder), console))
        except BenchError as fault:
            failed.append(name)
            console.print(f"[red]{name} could not be measured[/red]: {fault}", markup=True)
            continue
        results.store(done[-1:])
        results.PAGE.write_text(page.page(), encoding="utf-8")
    results.show(done, console)
    if failed:
        console.print(f"[red]not measured: {', '.join(failed)}[/red]")
    return 1 if failed else 0


def _conversion(name: str) -> Callable[[Path, Console], Result]:
    return lambda folder, console: conversions.measure(name, data.disk(console), folder)


def _download(name: str) -> Callable[[Path, Console], Result]:
    return lambda folder, console: downloads.measure(name, data.disk(console), folder)


MEASURES: dict[str, Callable[[Path, Console], Result]] = {
    **{name: _conversion(name) for name in conversions.KINDS},
    **{name: _download(name) for name in downloads.GOALS},
    "bandwidth_off_percent": lambda folder, console: downloads.measure_limit(data.disk(console), folder),
    "fix": guests.measure_fix,
    "migration": lambda folder, console: guests.measure_migration(console),
    "peak_rss_mib": lambda folder, console: memory.measure(data.disk(console), folder, console),
    "manifest_ms": lambda folder, console: control.measure_manifest(),
    "dag_parse_1000_s": lambda folder, console: control.measure_parse(),
    "dag_start_s": lambda folder, console: control.measure_start(),
    "wave_1000_s_per_task": scale.measure,
}

if __name__ == "__main__":
    with ended_in_order():  # so that what was started for it ends with it
        sys.exit(main(sys.argv[1:]))
