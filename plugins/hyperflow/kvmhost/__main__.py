"""``python3 hyperflow-kvmhost.pyz STAGE < options.json``: run one stage, or handle a detached job or the ledger."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from hyperflow.kvmhost import ledger
from hyperflow.kvmhost.stage import STAGES, run_stage


def main(arguments: list[str]) -> int:
    """Run the command line.

    :return: the exit status: of the stage, or of :mod:`hyperflow.kvmhost.jobs` or :mod:`hyperflow.kvmhost.ledger`
    """
    parser = argparse.ArgumentParser(prog="hyperflow-kvmhost", description=__doc__)
    parser.add_argument("what", choices=[*STAGES, "job", "ledger"], metavar="STAGE|job|ledger", help=", ".join(STAGES))
    if arguments[:1] == ["job"]:
        from hyperflow.kvmhost import jobs  # a stage has no need of it, and starts sooner without it

        return jobs.main(arguments[1:])
    if arguments[:1] == ["ledger"]:
        return ledger.main(arguments[1:])
    parser.add_argument("--result", default="result.json", help="where the result goes; - for standard output")
    parsed = parser.parse_args(arguments)
    if parsed.result == "-":
        return _run_inline(parsed.what)
    return run_stage(parsed.what, sys.stdin.read(), Path(parsed.result))


def _run_inline(stage: str) -> int:
    """Run a short stage for a caller that waits: its log goes to standard error, its result to standard output."""
    with tempfile.TemporaryDirectory(prefix="hyperflow-") as folder:
        result = Path(folder) / "result.json"
        with contextlib.redirect_stdout(sys.stderr):
            status = run_stage(stage, sys.stdin.read(), result)
        sys.stdout.write(result.read_text(encoding="utf-8"))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
