"""``./hyperflow convert MANIFEST``: the disks of any exporter's manifest become images, here, without Airflow."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.markup import escape

from hyperflow.cli.__main__ import EXIT_FAILED, EXIT_USAGE
from hyperflow.cli.explain import advice
from hyperflow.cli.host_stage import run_stage
from hyperflow.cli.interrupted import ended_in_order
from hyperflow.errors.catalogue import explain as known_as
from hyperflow.manifest.documents import read_text
from hyperflow.manifest.faults import DocumentError, Fault
from hyperflow.manifest.load import load_manifest
from hyperflow.manifest.models import STAGES, Manifest, OutputFormat
from hyperflow.manifest.report import Hosts, Message, Report, ReportedVm, Run, Stage, StagePart, is_report
from hyperflow.manifest.report_builder import build_report, host_part, stage_of_parts
from hyperflow.manifest.save import save
from hyperflow.manifest.verify import verify_manifest
from hyperflow.plans.conversion import DEFAULT_PROFILE, Conversion, decide
from hyperflow.plans.library import load_profile, project_profile
from hyperflow.plans.plan import PlanError
from hyperflow.plans.profile import Profile

HERE = "localhost"
REPORT_LIMIT = 64 * 1024 * 1024  # bytes; far more than a report has
PROGRESS = "progress: "  # how a stage's log marks bytes done, rate and time left
QUIET, STEPS, LOG, OPTIONS = range(4)  # options.verbose of a manifest


class StageFailed(Exception):
    """A stage failed; its result is kept for the report."""


def convert(
    file: Path, *, output: Path | None, profile: str | None, image_format: OutputFormat | None, dry_run: bool
) -> int:
    """Run the pipeline of a manifest, or a profile's where it has none, and write the report.

    :param output: folder of images and report, in place of the manifest's
    :param profile: name of a profile of the project, or its file
    :return: 0 done, 1 failed, 2 when the manifest or what was asked is faulty; nothing was written then
    """
    console = Console(highlight=False, soft_wrap=True)
    try:
        manifest = load_manifest(file)
        run = decide(
            manifest,
            PurePosixPath(file.absolute()),
            find_profile(profile or DEFAULT_PROFILE),
            host_connection=HERE,
            output_directory=str(output.absolute()) if output else None,
            output_format=image_format,
            dry_run=dry_run,
        )
        require_report_or_nothing(run)
    except DocumentError as error:
        for fault in error.faults:
            console.print(f"[red]{escape(error.source)}:[/red] {escape(str(fault))}")
        return EXIT_USAGE
    if run.dry_run:
        return rehearse(run, manifest, console)
    with ended_in_order():  # so that a stage that runs is ended too
        return Converting(run, manifest, console).to_the_end()


def find_profile(name: str) -> Profile:
    """Find a profile by name, or by its file.

    :raises PlanError: when there is none, or it is faulty
    """
    by_file = "/" in name or name.endswith((".yaml", ".yml", ".json"))
    return load_profile(Path(name)) if by_file else project_profile(name)


def require_report_or_nothing(run: Conversion) -> None:
    """Refuse a report's path where something else lies: the manifest itself, or a file of somebody else.

    :raises PlanError: naming it
    """
    if run.report is None or not os.path.lexists(run.report):
        return
    path = Path(run.report)
    try:
        found = json.loads(read_text(path, REPORT_LIMIT)) if not path.is_symlink() else None
    except (DocumentError, ValueError, RecursionError):
        found = None
    if not is_report(found):
        wanted = "nothing, or an earlier report: move it away, or name the report otherwise (options.report.path)"
        raise PlanError(run.source, [Fault(run.report, "a file that is no report", wanted)])


def rehearse(run: Conversion, manifest: Manifest, console: Console) -> int:
    """Say what would be done, and compare the disks with the manifest; nothing is written.

    :return: 0 when the disks are as the manifest says
    """
    for warning in run.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    verdicts = verify_manifest(manifest)
    for verdict in verdicts:
        console.print(f"[{'green' if verdict.good else 'red'}]{escape(str(verdict))}[/]")
    for stage in STAGES:
        console.print(f"{stage}: {'would run' if run.wants(stage) else run.why_off(stage)}")
    if run.wants("convert"):
        for disk_id in run.images:
            console.print(f"{disk_id}: would become {escape(run.image(disk_id))}")
    if run.report is not None:
        console.print(f"report: would be written to {escape(run.report)}")
    console.print("dry run: nothing was written")
    return 0 if all(verdict.good for verdict in verdicts) else EXIT_FAILED


class Converting:
    """One conversion: the stages in their order, what each left, and the report of it."""

    def __init__(self, run: Conversion, manifest: Manifest, console: Console) -> None:
        self.run = run
        self.manifest = manifest
        self.console = console
        self.started = datetime.now(UTC)
        self.stages: dict[str, Stage | StagePart] = {}
        self.errors: list[Message] = []
        self.reference: dict[str, str] = {}
        self.read_sha256 = sha256_of(Path(run.source))

    def to_the_end(self) -> int:
        """Run all that is wanted, and write the report whatever became of it.

        :return: the exit status
        """
        for warning in self.run.warnings:
            self.say(QUIET, f"[yellow]warning:[/yellow] {escape(warning)}")
        try:
            with working_folder(Path(self.run.staging_directory)) as folder:
                self.run_stages(folder)
        except StageFailed:
            for name in ("checksum", *STAGES):
                reason = "not reached, because an earlier stage failed"
                self.stages.setdefault(name, Stage(success=False, duration=0.0, skipped=reason))
        except OSError as fault:
            message = f"{fault.filename}: {fault.strerror}" if fault.filename else str(fault)
            self.errors.append(Message(stage="convert", message=message, code=known_as(message, "convert").code))
        return self.conclude()

    def run_stages(self, folder: Path) -> None:
        """Run checksum and the pipeline's stages.

        :raises StageFailed: at the first that fails
        """
        run = self.run
        save(self.manifest, Path(run.manifest_path))
        self.reference = {"path": run.manifest_path, "sha256": sha256_of(Path(run.manifest_path))}
        ask = partial(self.ask, folder)
        disks = list(run.images)
        self.per_disk("checksum", disks, lambda disk_id: {"manifest": self.reference, "disk_id": disk_id}, ask)
        overlays: dict[str, str] = {}
        if self.wanted("inspect"):
            self.stages["inspect"] = ask("inspect", run.inspect_options(self.reference))
            self.require("inspect")
        if self.wanted("fix"):
            options = run.fix_options(self.reference, [{"mac": mac} for mac in run.macs])
            self.stages["fix"] = ask("fix", options)
            overlays = self.require("fix")["overlays"]
        images: list[dict[str, Any]] = []
        if self.wanted("convert"):
            images = self.per_disk(
                "convert", disks, lambda one: run.convert_options(self.reference, one, overlays.get(one)), ask
            )
        if self.wanted("validate", bool(images)):
            self.stages["validate"] = ask("validate", run.validate_options(images))
            self.require("validate")

    def wanted(self, stage: str, possible: bool = True) -> bool:
        """Tell whether a stage runs, and keep the reason when it does not."""
        if self.run.wants(stage) and possible:
            return True
        self.stages[stage] = Stage(success=False, duration=0.0, skipped=self.run.why_off(stage))
        self.say(STEPS, f"{stage}: {self.run.why_off(stage)}")
        return False

    def per_disk(
        self,
        stage: str,
        disks: list[str],
        options: Callable[[str], dict[str, Any]],
        ask: Callable[[str, dict[str, Any]], StagePart],
    ) -> list[dict[str, Any]]:
        """Run a stage for each disk, to the first that fails; what was observed of each."""
        parts: dict[str, StagePart] = {}
        for disk_id in disks:
            parts[disk_id] = ask(stage, options(disk_id))
            self.stages[stage] = stage_of_parts(parts)
            self.require(stage)
        return [part.result or {} for part in parts.values()]

    def ask(self, folder: Path, stage: str, options: dict[str, Any]) -> StagePart:
        """Run one stage and show what it says."""
        self.say(STEPS, f"[bold]{stage}[/bold] {options.get('disk_id', '')}")
        if self.run.verbose >= OPTIONS:
            self.say(OPTIONS, escape(f"  options: {options}"))
        with self.console.status(stage) as status:
            part = host_part(run_stage(stage, options, folder, lambda line: self.show(line, status)))
        if part.error is not None:
            part = part.model_copy(update={"code": known_as(part.error, stage).code})
        for warning in part.warnings or []:
            self.say(QUIET, f"[yellow]warning:[/yellow] {stage}: {escape(warning)}")
        return part

    def show(self, line: str, status: Any) -> None:
        """Show a line of a stage's log: progress in its place on a terminal, the rest as the manifest wants it."""
        if line.startswith(PROGRESS):
            status.update(escape(line.removeprefix(PROGRESS)))
            if not self.console.is_terminal or line.endswith("/s"):  # the last one has no time left
                self.say(STEPS, escape(f"  {line.removeprefix(PROGRESS)}"))
        elif not line.startswith("warning: "):
            self.say(LOG, escape(f"  {line}"))

    def require(self, stage: str) -> dict[str, Any]:
        """Give what a stage observed.

        :raises StageFailed: when it did not succeed
        """
        if not self.stages[stage].success:
            raise StageFailed
        return self.stages[stage].result or {}

    def say(self, level: int, text: str) -> None:
        """Print a line that the manifest's ``verbose`` wants."""
        if self.run.verbose >= level:
            self.console.print(text)

    def conclude(self) -> int:
        """Write the report, say the outcome."""
        report = self.build_report()
        for error in report.errors:
            self.console.print(f"[red]error:[/red] {error.stage}: {escape(error.message)}")
            if error.code:
                self.console.print(f"[red]{escape(advice(error.code))}[/red]")
        if self.run.report is not None:
            try:
                path = Path(self.run.report)
                path.parent.mkdir(parents=True, exist_ok=True)
                save(report, path)
                self.say(STEPS, f"report: {escape(str(path))}")
            except OSError as fault:
                self.console.print(f"[red]error:[/red] the report could not be written: {escape(str(fault))}")
                return EXIT_FAILED
        for artifact in report.artifacts:
            self.say(STEPS, f"[green]{artifact.disk_id}:[/green] {escape(artifact.path)}")
        return 0 if report.pipeline.success else EXIT_FAILED

    def build_report(self) -> Report:
        """Make the report of what the stages left."""
        order = [name for name in ("checksum", *STAGES) if name in self.stages]
        warnings = [Message(stage="manifest", message=text) for text in self.run.warnings]
        source = self.manifest.source
        vm: dict[str, Any] = {
            "name": self.run.name,
            "provider": source and source.provider,
            "vm_id": source and source.vm_id,
        }
        guest = self.stages["inspect"].result if "inspect" in self.stages else None
        vm |= {"datacenter": source and source.datacenter, "guest": guest}
        known = {key: value for key, value in vm.items() if value is not None}
        return build_report(
            run=Run.model_validate({} if self.run.profile is None else {"profile": self.run.profile}),
            vm=ReportedVm.model_validate(known),
            hosts=Hosts(kvm=HERE, kvm_name=platform.node()),
            stages={name: self.stages[name] for name in order},
            started=self.started,
            ended=datetime.now(UTC),
            manifest=self.manifest,
            manifest_path=self.run.source,
            manifest_sha256=self.read_sha256,
            warnings=warnings,
            errors=self.errors,
            boot_wanted=False,
        )


def sha256_of(path: Path) -> str:
    """Digest of a manifest's file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def working_folder(folder: Path) -> Iterator[Path]:
    """Have a folder for overlays and results, for this process alone, and remove it at the end.

    :raises OSError: when it cannot be made, or another conversion has it
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            raise OSError(fault.errno, "another conversion works here; wait for its end", str(folder)) from fault
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
    finally:
        os.close(descriptor)
