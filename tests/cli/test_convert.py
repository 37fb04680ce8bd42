"""``./hyperflow convert``: a manifest of any exporter becomes images, on a machine without Airflow."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hyperflow.manifest.schema import report_schema

from lab.small_guest import CAPACITY, ensure_small_guest

ROOT = Path(__file__).resolve().parents[2]
FORMATS = {"vmdk": "vmdk", "qcow2": "qcow2", "vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi"}  # ours -> qemu-img's
SIZE = 4 << 20  # bytes of a disk
CONVERT = {"convert": {"enabled": True}}
LIMIT = 180  # seconds a test waits before it gives up


def convert(file: Path, *arguments: str) -> tuple[int, str]:
    """Run it where importing Airflow fails; exit status, and all it printed."""
    blocked = file.parent / "blocked"
    (blocked / "airflow").mkdir(parents=True, exist_ok=True)
    (blocked / "airflow/__init__.py").write_text("raise ImportError('there is no Airflow here')")
    done = subprocess.run(
        [str(ROOT / "hyperflow"), "convert", str(file), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": str(blocked)},
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def entry(path: Path, source_format: str, **more: Any) -> dict[str, Any]:
    size = path.stat().st_size
    return {"id": path.stem, "source_format": source_format, "bytes": size, "local_path": str(path), **more}


def write(folder: Path, disks: list[dict[str, Any]], **more: Any) -> Path:
    file = folder / "manifest.json"
    file.write_text(json.dumps({"manifest_version": "1.0", "disks": disks, **more}))
    return file


def report(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "report.json").read_text())
    jsonschema.Draft7Validator(report_schema()).validate(document)
    assert isinstance(document, dict)
    return document


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw disk that begins as a qcow2 with a backing file does."""
    folder = tmp_path / "disks"
    folder.mkdir()
    path = folder / "raw.raw"
    path.write_bytes(b"QFI\xfb\0\0\0\3" + (1024).to_bytes(8, "big") + random.Random(1).randbytes(SIZE - 16))  # noqa: S311
    return path


def test_disks_of_every_format_without_checksums_are_converted_and_not_touched(raw: Path, tmp_path: Path) -> None:
    disks = [entry(raw, "raw")]
    for name, driver in FORMATS.items():
        path = raw.with_name(f"{name}.{name}")
        exact = ["-o", "force_size=on"] if driver == "vpc" else []
        qemu_img("convert", "-f", "raw", "-O", driver, *exact, raw, path)
        disks.append(entry(path, name))
    before = digests(raw.parent)
    pipeline = CONVERT | {"validate": {"enabled": True}}
    status, said = convert(write(tmp_path, disks, pipeline=pipeline, x_vendor={"kept": True}))
    assert status == 0, said
    assert digests(raw.parent) == before
    told = report(tmp_path / "output")
    assert [one["disk_id"] for one in told["artifacts"]] == ["raw", *FORMATS]
    for artifact in told["artifacts"]:
        qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, artifact["path"])
        assert hashlib.sha256(Path(artifact["path"]).read_bytes()).hexdigest() == artifact["sha256"]
    for disk in disks:
        assert any(f"disk {disk['id']}: the manifest has no checksum" in one["message"] for one in told["warnings"])
    assert told["pipeline"]["success"] is True
    assert told["summary"]["outcome"] == "unproven", "nothing was booted"
    assert told["input_manifest"]["checksum"] == f"sha256:{hash_of(tmp_path / 'manifest.json')}"
    assert told["pipeline"]["stages"]["fix"]["skipped"] == "disabled in the manifest's pipeline"
    assert "MiB/s" in said
    assert not (tmp_path / "output/.hyperflow-convert").exists()


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_without_a_pipeline_the_profiles_runs_and_inspects_the_guest(tmp_path: Path) -> None:
    guest = ensure_small_guest()
    profile = yaml.safe_load((ROOT / "include/profiles/kvm-migration.yaml").read_text())
    profile |= {"name": "unfixed", "manifest_target_format": "raw"}
    profile["pipeline"] |= {"inspect": {"enabled": True, "collect_guest_info": False}, "fix": {"enabled": False}}
    (tmp_path / "unfixed.yaml").write_text(yaml.safe_dump(profile))
    checksum = f"sha256:{hash_of(guest)}"
    document = {"manifest_version": "1.0", "disks": [entry(guest, "vmdk", checksum=checksum)]}
    file = tmp_path / "manifest.yaml"
    file.write_text(yaml.safe_dump(document))
    status, said = convert(file, "--profile", str(tmp_path / "unfixed.yaml"), "--output", str(tmp_path / "images"))
    assert status == 0, said
    told = report(tmp_path / "images")
    assert told["vm"]["guest"]["os"]["product_name"] == "Debian (small)"
    assert told["run"]["profile"] == "unfixed"
    assert told["warnings"] == []
    (artifact,) = told["artifacts"]
    assert (artifact["path"], artifact["virtual_bytes"]) == (str(tmp_path / "images/small.raw"), CAPACITY)
    qemu_img("compare", "-f", "vmdk", "-F", "raw", guest, artifact["path"])


def test_a_disk_that_is_not_what_its_checksum_says_ends_the_run_with_a_report(raw: Path, tmp_path: Path) -> None:
    file = write(tmp_path, [entry(raw, "raw", checksum="sha256:" + "0" * 64)])
    status, said = convert(file)
    assert status == 1
    assert "expected " + "0" * 64 in said
    told = report(tmp_path / "output")
    assert [one["stage"] for one in told["errors"]] == ["checksum"]
    for stage in ("inspect", "fix", "convert", "validate"):
        assert "not reached" in told["pipeline"]["stages"][stage]["skipped"]
    assert (told["pipeline"]["success"], told["artifacts"]) == (False, [])
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["report.json"]


@pytest.mark.parametrize("kind", ["backing file", "data file", "extent"])
def test_ruling_a_disk_that_names_other_files_is_refused(kind: str, raw: Path, tmp_path: Path) -> None:
    path = raw.with_name("a.disk")
    source_format = "qcow2"
    if kind == "backing file":
        qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", raw, path)
        expected = "backing file"
    elif kind == "data file":
        qemu_img("create", "-f", "qcow2", "-o", f"data_file={raw.with_name('data')}", path, "1M")
        expected = "keeps its data in another file"
    else:
        source_format, expected = "vmdk", "expected a bare name in the disk's own folder"
        path.write_text('# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\nRW 8 FLAT "/etc/shadow" 0\n')
    status, said = convert(write(tmp_path, [entry(path, source_format)], pipeline=CONVERT))
    assert status == 1
    assert expected in said
    (error,) = report(tmp_path / "output")["errors"]
    assert error["stage"] == ("checksum" if kind == "extent" else "convert")  # the first that looks at extents
    assert expected in error["message"]


@pytest.mark.parametrize("by_manifest", [True, False])
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(by_manifest: bool, raw: Path, tmp_path: Path) -> None:
    options = {"options": {"dry_run": True}} if by_manifest else {}
    file = write(tmp_path, [entry(raw, "raw")], pipeline=CONVERT, output={"directory": "new"}, **options)
    arguments = () if by_manifest else ("--dry-run",)
    (tmp_path / "blocked/airflow").mkdir(parents=True)
    (tmp_path / "blocked/airflow/__init__.py").write_text("raise ImportError('there is no Airflow here')")
    before = digests(tmp_path)
    status, said = convert(file, *arguments)
    assert status == 0, said
    assert digests(tmp_path) == before
    assert not (tmp_path / "new").exists()
    assert f"raw: would become {tmp_path}/new/raw.qcow2" in said
    assert f"report: would be written to {tmp_path}/new/report.json" in said
    raw.write_bytes(b"other")
    assert convert(file, *arguments)[0] == 1, "the disk is not what the manifest says"


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("name", ["manifest.json", "daemon.json"])
def test_a_report_never_takes_the_place_of_the_manifest_or_of_another_file(
    name: str, dry_run: bool, raw: Path, tmp_path: Path
) -> None:
    (tmp_path / "daemon.json").write_text('{"pipeline": "of somebody else"}')
    options = {"report": {"path": name}, "dry_run": dry_run}
    file = write(tmp_path, [entry(raw, "raw")], pipeline=CONVERT, output={"directory": "."}, options=options)
    before = digests(tmp_path)
    status, said = convert(file)
    assert status == 2
    assert f"{tmp_path}/{name}: found a file that is no report" in said
    assert {path: now for path, now in digests(tmp_path).items() if "blocked" not in path} == before


def test_what_is_asked_for_comes_before_the_manifest_and_a_second_run_finds_its_work_done(
    raw: Path, tmp_path: Path
) -> None:
    output = {"directory": str(tmp_path / "not-here"), "filename": "web.img", "format": "vdi"}
    file = write(tmp_path, [entry(raw, "raw")], pipeline=CONVERT, output=output, options={"verbose": 2})
    asked = ("--output", str(tmp_path / "here"), "--format", "raw")
    assert convert(file, *asked)[0] == 0
    assert (tmp_path / "here/web.img").read_bytes() == raw.read_bytes()
    assert not (tmp_path / "not-here").exists()
    status, said = convert(file, *asked)
    assert status == 0
    assert "already converted, its digest holds" in said


@pytest.mark.parametrize(
    ("more", "arguments", "said"),
    [
        ({"pipeline": {"convert": {"enabled": False}}}, (), "pipeline: found every stage disabled"),
        ({"hooks": {"pre": "sh"}}, (), "hooks: found something to run"),
        ({"disks": []}, (), "disks: found"),
        ({}, ("--profile", "unknwon"), "expected one of kvm-migration"),
        ({"options": {"report": {"path": "../x.json"}}}, (), "options.report.path: found"),
        ({}, ("--format", "vmdk"), "invalid choice: 'vmdk'"),
    ],
)
def test_a_faulty_manifest_or_wish_is_status_2_and_nothing_is_written(
    more: dict[str, Any], arguments: tuple[str, ...], said: str, raw: Path, tmp_path: Path
) -> None:
    file = write(tmp_path, **{"disks": [entry(raw, "raw")], **more})
    status, told = convert(file, *arguments)
    assert status == 2
    assert said in told
    assert "Traceback" not in told
    assert not (tmp_path / "output").exists()


def test_two_conversions_do_not_work_in_one_folder(raw: Path, tmp_path: Path) -> None:
    file = write(tmp_path, [entry(raw, "raw")], pipeline=CONVERT)
    work = tmp_path / "output/.hyperflow-convert"
    work.mkdir(parents=True)
    descriptor = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        status, said = convert(file)
    finally:
        os.close(descriptor)
    assert status == 1
    assert "another conversion works here" in said
    assert not (tmp_path / "output/raw.qcow2").exists()


def test_a_conversion_that_is_ended_takes_its_appliance_along_and_leaves_no_overlay(raw: Path, tmp_path: Path) -> None:
    file = write(tmp_path, [entry(raw, "raw")], pipeline={"inspect": {"enabled": True}})
    process = subprocess.Popen(
        [str(ROOT / "hyperflow"), "convert", str(file)], stdout=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: any("qemu-system" in command for command in naming(tmp_path)))
    process.terminate()
    assert process.wait(LIMIT) == 130
    wait_for(lambda: not naming(tmp_path))
    assert list((tmp_path / "output").iterdir()) == []


def naming(folder: Path) -> list[str]:
    """The command lines of processes that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found


def wait_for(condition: Callable[[], bool], seconds: float = LIMIT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
