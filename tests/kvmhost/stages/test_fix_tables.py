"""What fix tells of a guest's tables, without an appliance."""

from __future__ import annotations

from pathlib import Path

import pytest
from hyperflow.kvmhost.guest import fstab
from hyperflow.kvmhost.guest.configuration import Configuration
from hyperflow.kvmhost.guest.devices import Devices, FileSystem
from hyperflow.kvmhost.guest.inspection import Guest
from hyperflow.kvmhost.manifest_file import ManifestReference
from hyperflow.kvmhost.stage import Job, StageError
from hyperflow.kvmhost.stages import fix

from tests.kvmhost.guest.memory import Memory

ROOT = FileSystem("/dev/sda1", "ext4", "1111", "", "disk-0")


def tables(text: str, job: Job, crypttab: str = "") -> dict[str, object]:
    guest = Guest(ROOT, {"type": "linux"}, Devices([ROOT], ["disk-0"]), {}, text, ())
    reference = ManifestReference(Path("/m.json"), "0" * 64)
    options = fix.Options(reference, Path("/w"), False, False, False, False, False, fstab.STABILIZE_ALL, [])
    return fix.Fix(
        Memory({fstab.FSTAB: text, fstab.CRYPTTAB: crypttab}), guest, options, Configuration(), fix.Steps(job)
    )._tables()


def test_a_table_full_of_what_stays_does_not_fill_the_log() -> None:
    job = Job("fix")
    observed = tables("/dev/sdz9 /x ext4 nofail 0 0\n" * 1000, job)
    assert len(job.warnings) == fix.LEFT_TOLD + 1
    assert job.warnings[0].startswith("fstab, line 1: /dev/sdz9 on /x stays: no such file system")
    assert job.warnings[-1] == "fstab: 950 more entries stay for such reasons"
    assert observed["changed"] == []


def test_an_entry_that_a_boot_needs_stops_fix_wherever_it_stands() -> None:
    table = "/dev/sdz9 /x ext4 nofail 0 0\n" * 1000 + "/dev/sdz8 /y ext4 defaults 0 0\n"
    with pytest.raises(StageError, match="line 1001: /dev/sdz8 on /y stays"):
        tables(table, Job("fix"))


def test_an_entry_of_crypttab_that_a_boot_waits_for_stops_fix_too() -> None:
    with pytest.raises(StageError, match="crypttab, line 1: /dev/sdz2 on swap1 stays: "):
        tables("", Job("fix"), "swap1 /dev/sdz2 /dev/urandom swap\n")


def test_an_entry_of_crypttab_that_no_boot_waits_for_is_a_warning() -> None:
    job = Job("fix")
    tables("", job, "data /dev/sdz2 none luks,nofail\n")
    assert job.warnings[0].startswith("crypttab, line 1: /dev/sdz2 on data stays: no such file system")
