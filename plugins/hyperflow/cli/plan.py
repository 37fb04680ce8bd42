"""``./hyperflow plan check``: every fault of plan files, with its path."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from hyperflow.cli.__main__ import EXIT_USAGE
from hyperflow.cli.notifiers import Judging
from hyperflow.plans.check import check_plans, plans_beside


def check(files: list[Path]) -> int:
    """Check plan files, also against each other and the others in their folders, and list all their faults.

    :return: 0, or 2 when there was a fault
    """
    console = Console(highlight=False)
    results = check_plans(files, notifiers=Judging(), beside=plans_beside(files))
    for each in results:
        for fault in each.faults:
            console.print(f"[red]{escape(str(each.path))}:[/red] {escape(str(fault))}", soft_wrap=True)
        if each.plan is not None and not each.faults:
            told = f"plan {each.plan.name}, {len(each.plan.vms)} VM(s)"
            console.print(f"[green]{escape(str(each.path))}:[/green] {escape(told)}", soft_wrap=True)
    return EXIT_USAGE if any(each.faults for each in results) else 0
