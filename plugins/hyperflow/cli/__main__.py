"""``./hyperflow``: plans, migrations, manifests, hosts and the lab, from a terminal.

exit status: 0 done, 1 failed or invalid manifest, 2 wrong usage or faulty plan, 69 Airflow cannot be reached
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SHOWN = 20  # characters of a text that cannot be written
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h


def main(arguments: list[str]) -> int:
    """Run one command.

    :return: the exit status
    """
    parsed = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        status = run(parsed)
        _flush()
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError:
        why = _refused_by_stdout()
        if why is None:  # it was another file's, and a defect of ours that no command has told it
            raise
        print(f"standard output: {why}; not all was written", file=sys.stderr)
        return EXIT_FAILED
    except UnicodeEncodeError as fault:
        text = ascii(fault.object[fault.start : fault.end][:SHOWN])
        print(f"found {text}, expected text in {fault.encoding}: set PYTHONIOENCODING=utf-8", file=sys.stderr)
        return EXIT_FAILED


def _flush() -> None:
    if sys.stdout is not None:  # where the shell has closed it, Python has none
        sys.stdout.flush()


def _refused_by_stdout() -> str | None:
    """Say why standard output takes nothing more, and give it up; None where it takes a line.

    An error of writing does not say which file it was. What is left in a buffer is tried again when Python ends, and
    then told as a traceback, so it goes nowhere.
    """
    try:
        print(flush=True)
    except OSError as fault:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return fault.strerror or type(fault).__name__
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hyperflow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="move the lab's guest from its vCenter to KVM, from nothing to the report")
    demo.set_defaults(run=_demo)

    lab = commands.add_parser("lab", help="the lab: vCenter, guest, KVM host and Airflow on this machine")
    lab.add_argument("action", choices=["up", "status", "down"])
    lab.set_defaults(run=_lab)

    plan = commands.add_parser("plan", help="what a person writes").add_subparsers(required=True, metavar="ACTION")
    check = plan.add_parser("check", help="list every fault of plan files; exit status 2 when there is one")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    _add_airflow(check)
    check.set_defaults(run=_plan_check)

    _add_wave(commands.add_parser("wave", help="many VMs: what a wave will do, its start, and how far it is"))

    _add_limits(commands)
    _add_aftermath(commands)

    migrate = commands.add_parser("migrate", help="start the migration of one VM through Airflow")
    migrate.add_argument("plan", metavar="PLAN", help="the plan's name, or its file")
    migrate.add_argument("vm", metavar="VM", help="the VM's name in the plan")
    migrate.add_argument("--wait", action="store_true", help="show progress until it ended; exit status 1 if it failed")
    migrate.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override for this run")
    _add_airflow(migrate)
    migrate.set_defaults(run=_migrate)

    _add_manifest(commands.add_parser("manifest", help="Artifact Manifest v1.0; exit status 0 valid, 1 invalid"))

    convert = commands.add_parser("convert", help="convert the disks of a manifest on this machine, without Airflow")
    convert.add_argument("file", type=Path, metavar="MANIFEST")
    convert.add_argument("--output", type=Path, metavar="DIR", help="for images and report; else as the manifest says")
    convert.add_argument("--profile", metavar="NAME", help="or its file: what runs where the manifest has no pipeline")
    convert.add_argument("--format", choices=["qcow2", "raw", "vdi"], help="of the images; else as the manifest says")
    convert.add_argument("--dry-run", action="store_true", help="check disks and say what would be done; write nothing")
    convert.set_defaults(run=_convert)

    host = commands.add_parser("host", help="KVM hosts").add_subparsers(required=True, metavar="ACTION")
    checking = host.add_parser("check", help="tools, acceleration and space of a host, through Airflow")
    checking.add_argument("connection", metavar="CONNECTION", help="the host's Airflow connection")
    checking.add_argument("--staging", default="/var/lib/hyperflow", metavar="DIR", help="staging directory")
    checking.add_argument("--output", default="/var/lib/libvirt/images", metavar="DIR", help="output directory")
    _add_airflow(checking)
    checking.set_defaults(run=_host_check)

    explain = commands.add_parser("explain", help="what an error means and what to do; without arguments all codes")
    explain.add_argument("code", nargs="?", metavar="CODE", help="as a log or report names it: HF-EXPORT-013")
    explain.add_argument("--message", metavar="TEXT", help="find the entry of a message; - reads standard input")
    explain.add_argument("--json", action="store_true", help="print JSON")
    explain.set_defaults(run=_explain)

    _add_audit(commands)

    janitor = commands.add_parser("janitor", help="find and remove what dead runs have left, through Airflow")
    janitor.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    janitor.add_argument(
        "--keep-days", type=float, metavar="DAYS", help="for how long a failed run keeps what a person can go on from"
    )
    janitor.add_argument("--json", action="store_true", help="print the findings as JSON")
    _add_airflow(janitor)
    janitor.set_defaults(run=_janitor)
    return parser


def _add_limits(commands: Any) -> None:
    limits = commands.add_parser("limits", help="Airflow pools that hold what plans limit")
    limits.add_argument("action", choices=["check", "apply"], help="compare them with the plans, or make them so")
    limits.add_argument("files", nargs="+", type=Path, metavar="PLAN")
    _add_airflow(limits)
    limits.set_defaults(run=_limits)


def _add_audit(commands: Any) -> None:
    audit = commands.add_parser("audit", help="who did and decided what in a run; exit status 1 when not all is there")
    audit.add_argument("action", choices=["verify", "show"], help="look for removed, changed or added entries, or show")
    audit.add_argument("paths", nargs="+", type=Path, metavar="FILE|DIR", help="audit.jsonl, or a folder of such files")
    audit.add_argument("--report", type=Path, metavar="FILE", help="the run's report, else report.json beside it")
    audit.set_defaults(run=_audit)


def _add_aftermath(commands: Any) -> None:
    for what, meaning in (
        ("rollback", "take a cold cutover back: target stopped, source on the network and on again"),
        ("finalize", "make a cold cutover final: the source is renamed and marked, never deleted"),
    ):
        command = commands.add_parser(what, help=meaning)
        command.add_argument("plan", metavar="PLAN", help="the plan's name, or its file")
        command.add_argument("vm", metavar="VM", help="the VM's name in the plan")
        if what == "rollback":
            told = "you have seen that the target runs nowhere, though it does not run on its host any more"
            command.add_argument("--target-is-off", action="store_true", help=told)
        _add_airflow(command)
        command.set_defaults(run=_aftermath, what=what)


def _add_wave(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    for action, meaning in (
        ("check", "order, dates, and the expected time against the window; exit status 1 when something is wrong"),
        ("start", "start it through Airflow"),
        ("status", "its last run, live"),
        ("survey", "ask the vCenter for sizes, folders, hosts and tags of the plan's VMs"),
    ):
        command = actions.add_parser(action, help=meaning)
        command.add_argument("plan", type=Path, metavar="PLAN", help="the plan's file")
        if action != "survey":
            command.add_argument("wave", metavar="WAVE", help="the wave's name")
        if action == "start":
            command.add_argument("--again", action="store_true", help="also VMs that are migrated and proven already")
            command.add_argument(
                "--rehearse",
                action="store_true",
                help="preflight of every VM only; nothing is changed. Implies --wait where the wave's DAG is paused, "
                "which it is again afterwards",
            )
            command.add_argument("--wait", action="store_true", help="show it until it ended")
        _add_airflow(command)
    parser.set_defaults(run=_wave)


def _add_manifest(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    for action, meaning in (
        ("validate", "check a manifest against schema and rules of the contract"),
        ("verify", "check the manifest, and its disks' sizes and digests"),
        ("show", "show a manifest as tables"),
    ):
        command = actions.add_parser(action, help=meaning)
        command.add_argument("file", type=Path, metavar="FILE")
        command.add_argument("--json", action="store_true", help="print one JSON object")
    build = actions.add_parser("build", help="make the manifest of what an exporter left")
    build.add_argument("export", type=Path, metavar="DIR|OVF", help="a descriptor, or a folder with one or with images")
    build.add_argument("--output", type=Path, metavar="FILE", help="artifact-manifest.json beside the disks, else")
    build.add_argument("--no-checksums", action="store_true", help="do not read the disks for their SHA-256")
    build.add_argument("--force", action="store_true", help="replace a manifest that is there")
    build.add_argument("--json", action="store_true", help="print one JSON object")
    actions.add_parser("schema", help="print the JSON Schema, Draft 7")
    parser.set_defaults(run=_manifest)


def _add_airflow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--airflow",
        type=Path,
        metavar="FILE",
        help="JSON with url, user and password of Airflow's API (HYPERFLOW_AIRFLOW, or the lab's)",
    )


# Each command imports what it needs when it runs: plans and manifests work without Airflow and without the lab.


def _demo(_: argparse.Namespace) -> int:
    from lab.demo import demo

    return demo()


def _lab(parsed: argparse.Namespace) -> int:
    from lab import lab

    return lab.command(parsed.action)


def _plan_check(parsed: argparse.Namespace) -> int:
    from hyperflow.cli.plan import check

    return check(parsed.files, parsed.airflow)


def _wave(parsed: argparse.Namespace) -> int:
    from hyperflow.cli.wave import wave

    return wave(
        parsed.action,
        parsed.plan,
        getattr(parsed, "wave", None),
        asked={
            name for name, option in (("again", "again"), ("dry_run", "rehearse")) if getattr(parsed, option, False)
        },
        wait=getattr(parsed, "wait", False),
        endpoint=parsed.airflow,
    )


def _aftermath(parsed: argparse.Namespace) -> int:
    from hyperflow.cli.aftermath import aftermath

    off = parsed.what == "rollback" and parsed.target_is_off
    return aftermath(parsed.what, parsed.plan, parsed.vm, target_is_off=off, endpoint=parsed.airflow)


def _limits(parsed: argparse.Namespace) -> int:
    from hyperflow.cli.limits import limits

    return limits(parsed.files, apply=parsed.action == "apply", endpoint=parsed.airflow)


def _migrate(parsed: argparse.Namespace) -> int:
    from hyperflow.cli.migrate import migrate

    return migrate(parsed.plan, parsed.vm, overrides=parsed.set, wait=parsed.wait, endpoint=parsed.airflow)


def _manifest(parsed: argparse.Namespace) -> int:
    from hyperflow.cli import manifest

    if parsed.action == "schema":
        return manifest.schema()
    if parsed.action == "build":
        return manifest.build(
            parsed.export,
            output=parsed.output,
            checksums=not parsed.no_checksums,
            replace=parsed.force,
            as_json=parsed.json,
        )
    check = {"validate": manifest.validate, "verify": manifest.verify, "show": manifest.show}[parsed.action]
    return check(parsed.file, as_json=parsed.json)


def _convert(parsed: argparse.Namespace) -> int:
    from hyperflow.cli.convert import convert

    return convert(
        parsed.file,
        output=parsed.output,
        profile=parsed.profile,
        image_format=parsed.format,
        dry_run=parsed.dry_run,
    )


def _host_check(parsed: argparse.Namespace) -> int:
    from hyperflow.cli.host import check

    return check(parsed.connection, parsed.staging, parsed.output, endpoint=parsed.airflow)


def _explain(parsed: argparse.Namespace) -> int:
    from hyperflow.cli.explain import explain

    return explain(parsed.code, parsed.message, as_json=parsed.json)


def _audit(parsed: argparse.Namespace) -> int:
    from hyperflow.cli.audit import audit

    return audit(parsed.action, parsed.paths, parsed.report)


def _janitor(parsed: argparse.Namespace) -> int:
    from hyperflow.cli.janitor import janitor

    return janitor(dry_run=parsed.dry_run, keep_days=parsed.keep_days, as_json=parsed.json, endpoint=parsed.airflow)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
