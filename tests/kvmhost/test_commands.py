"""A stage tells which programs it ran on the host, with exit status and seconds; nothing else starts any."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST_PACKAGE = ROOT / "plugins" / "hyperflow" / "kvmhost"
STARTS_STAGES = HOST_PACKAGE / "supervisor.py"  # starts the stage itself, which is no program of the host


def told_by(script: str) -> list[dict[str, object]]:
    """What a process of its own remembers after a script."""
    code = "from hyperflow.kvmhost import commands\n" + textwrap.dedent(script)
    code += "\nimport json; print(json.dumps(commands.remembered()))"
    environment = {"PYTHONPATH": str(ROOT / "plugins"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, list)
    return found


def test_a_program_that_ended_is_told_of_with_its_status_and_seconds() -> None:
    (one,) = told_by("commands.run(['sh', '-c', 'sleep 0.3; exit 3'])")
    assert (one["command"], one["exit"]) == ("sh -c 'sleep 0.3; exit 3'", 3)
    assert 0.3 <= float(str(one["seconds"])) < 60


def test_a_program_beside_the_stage_is_told_of_when_it_ended_and_while_it_runs() -> None:
    killed, running = told_by(
        """
        one, two = commands.Started(["sleep", "100"]), commands.Started(["sleep", "0.1"])
        one.kill(); one.wait()
        """
    )
    assert (killed["command"], killed["exit"]) == ("sleep 100", -9)
    assert running["exit"] is None


def test_a_program_that_is_not_there_or_takes_too_long_is_told_of_without_a_status() -> None:
    missing, slow = told_by(
        """
        import contextlib
        with contextlib.suppress(FileNotFoundError): commands.run(["no-such-program"])
        with contextlib.suppress(commands.TimeoutExpired): commands.run(["sleep", "9"], timeout=0.1)
        """
    )
    assert (missing["exit"], slow["exit"]) == (None, None)


def test_many_programs_are_counted_and_the_first_ones_told() -> None:
    told = told_by("for _ in range(203): commands.run(['true'])")
    assert len(told) == 201
    assert told[-1]["command"] == "... and 3 more"


def test_nothing_else_on_the_host_starts_programs() -> None:
    others = {
        path
        for path in HOST_PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and any(alias.name == "subprocess" for alias in node.names)
    }
    assert others == {HOST_PACKAGE / "commands.py", STARTS_STAGES}
