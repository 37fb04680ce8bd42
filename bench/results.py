"""What was measured: ``results.json`` for programs, a table for people, ``measured.json`` for those who doubt."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
MEASURED = HERE / "measured.json"
PAGE = HERE.parent / "docs" / "performance.md"


@dataclass(frozen=True)
class Result:
    """One line of the table.

    :param ours: median, in ``unit``
    :param peer: likewise; None where there is nobody to compare with
    :param goal: largest ratio, or, without a peer, the largest value
    :param rounds: every measurement, in the order it was made
    :param notes: facts that the numbers need, for ``measured.json``
    """

    name: str
    ours: float
    peer: float | None
    goal: float
    unit: str
    rounds: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Ours of peer."""
        return None if self.peer is None else round(self.ours / self.peer, 3)

    @property
    def is_met(self) -> bool:
        """Whether the goal is reached."""
        return (self.ours if self.ratio is None else self.ratio) <= self.goal

    def document(self) -> dict[str, Any]:
        """The entry of ``results.json``."""
        values = {"ours": round(self.ours, 3), "peer": None if self.peer is None else round(self.peer, 3)}
        return {**values, "ratio": self.ratio, "goal": self.goal, "unit": self.unit}


def of_pair(
    name: str, ours: list[float], peer: list[float], goal: float, notes: dict[str, Any] | None = None
) -> Result:
    """Make the result of seconds measured in turns."""
    medians = statistics.median(ours), statistics.median(peer)
    return Result(name, *medians, goal, "s", {"ours": ours, "peer": peer}, notes or {})


def of_values(name: str, values: list[float], goal: float, unit: str, notes: dict[str, Any] | None = None) -> Result:
    """Make the result of something that has no peer."""
    return Result(name, statistics.median(values), None, goal, unit, {"ours": values}, notes or {})


def store(results: list[Result]) -> None:
    """Merge results into both files: what was not measured this time stays."""
    _merge(RESULTS, {each.name: each.document() for each in results})
    where = machine()
    details = {
        each.name: {
            "rounds": {key: [round(value, 3) for value in values] for key, values in each.rounds.items()},
            **each.notes,
            "machine": asdict(where),
        }
        for each in results
    }
    _merge(MEASURED, details)


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    kernel: str
    python: str
    host_python: str
    qemu: str
    commit: str
    load: float
    date: str


def machine() -> Machine:
    """Describe this machine; ``load`` is its load average of five minutes, the measuring itself included."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    system = re.search(r'PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text())
    return Machine(
        cpu=cpu[1] if cpu else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        system=system[1] if system else platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        host_python=_said("/usr/bin/python3", "--version").removeprefix("Python "),
        qemu=_said("qemu-img", "--version").splitlines()[0].removeprefix("qemu-img version "),
        commit=_commit(),
        load=round(os.getloadavg()[1], 2),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def show(results: list[Result], console: Console) -> None:
    """Print the table."""
    where = machine()
    console.print(f"{where.cpu}, {where.cores} cores, {where.memory_gib} GiB, {where.system}, {where.kernel}")
    console.print(f"QEMU {where.qemu}, Python {where.python}, commit {where.commit}, load {where.load}, {where.date}")
    table = Table(box=None, pad_edge=False)
    for title in ("name", "ours", "peer", "unit", "ratio", "goal", ""):
        table.add_column(title, justify="left" if title in ("name", "unit", "") else "right", no_wrap=True)
    for each in results:
        ratio, peer = ("-", "-") if each.peer is None else (f"{each.ratio:.3f}", f"{each.peer:.2f}")
        verdict = "[green]met[/green]" if each.is_met else "[red]goal not met[/red]"
        table.add_row(each.name, f"{each.ours:.2f}", peer, each.unit, ratio, f"{each.goal:g}", verdict)
    console.print(table)


def _merge(path: Path, entries: dict[str, Any]) -> None:
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        json.dump(known | entries, file, indent=2)
        file.write("\n")
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def _commit() -> str:
    """The commit that was measured; what measuring itself has written makes it no other."""
    git = ("git", "-C", str(HERE.parent))
    ours = [f":!{path.relative_to(HERE.parent)}" for path in (RESULTS, MEASURED, PAGE)]
    changed = _said(*git, "status", "--porcelain", "--untracked-files=no", "--", ".", *ours) not in ("", "unknown")
    return _said(*git, "describe", "--always") + ("-dirty" if changed else "")


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
