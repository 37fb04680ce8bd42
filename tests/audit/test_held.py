"""An audit file is held to what its run's report and head know, and what that is worth is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hyperflow.audit.anchors import head_file
from hyperflow.audit.chain import append, head
from hyperflow.audit.entry import Entry
from hyperflow.audit.held import hold
from hyperflow.cli.__main__ import main

Verify = Callable[..., tuple[int, dict[str, str]]]


class Records:
    """A folder of records with the runs of a wave and of a VM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wave = folder / "wave.p.first" / "w1" / "audit.jsonl"
        self.vm = folder / "migrate.p.web01" / "r1" / "audit.jsonl"
        for number in range(1, 4):
            append(self.wave, Entry("run", f"act {number}", by="alice"))
            append(self.vm, Entry("host", f"act {number}"))
        (self.wave.parent / "wave-report.json").write_text("{}")
        (self.vm.parent / "report.json").write_text(json.dumps({"audit": asdict(head(self.vm))}))  # type: ignore[arg-type]
        append(self.vm, Entry("run", "report written"))


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "records")


@pytest.fixture
def verify(records: Records, capsys: pytest.CaptureFixture[str]) -> Verify:
    def ask(*arguments: object) -> tuple[int, dict[str, str]]:
        """What the command line says: exit status; file below the records -> what is told of it."""
        capsys.readouterr()
        status = main(["audit", "verify", *map(str, arguments or (records.folder,))])
        lines = [line.partition("audit.jsonl") for line in capsys.readouterr().out.splitlines()]
        return status, {str(Path(folder).resolve().relative_to(records.folder)): told for folder, _, told in lines}

    return ask


def cut(path: Path, lines: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))


WAVE, VM = "wave.p.first/w1", "migrate.p.web01/r1"


def test_what_is_whole_is_told_with_what_it_was_held_to(records: Records, verify: Verify) -> None:
    status, told = verify()
    assert status == 0
    assert told[WAVE].endswith("each follows the one before. Held to its head only, which knows entry 3.")
    report = records.vm.with_name("report.json")
    assert told[VM].endswith(f"Held to {report}, which knows entry 3, and to its head, which knows entry 4.")


def test_what_heads_and_reports_are_worth_is_told(records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    main(["audit", "verify", str(records.folder)])
    assert "whoever can write there can write them too" in capsys.readouterr().err


def test_a_waves_file_whose_end_was_cut_off_is_found(records: Records, verify: Verify) -> None:
    cut(records.wave, 1)
    status, told = verify()
    assert (status, "Held to" in told[VM]) == (1, True)
    assert told[WAVE] == ":2: the run's head knows of entry 3, which is not here: the end was removed"


def test_entries_after_the_report_that_were_cut_off_are_found(records: Records, verify: Verify) -> None:
    cut(records.vm, 3)
    status, told = verify(records.vm)
    assert (status, told) == (1, {VM: ":4: the run's head knows of entry 4, which is not here: the end was removed"})


def test_a_waves_file_that_is_another_is_found(records: Records, verify: Verify) -> None:
    shutil.copy(records.vm, records.wave)
    status, told = verify(records.wave)
    assert (status, told[WAVE]) == (1, ":3: entry 3 is not the one that the run's head knows: the file was rewritten")


def test_entries_that_were_added_at_the_end_are_found(records: Records, verify: Verify) -> None:
    known = head_file(records.wave).read_bytes()
    append(records.wave, Entry("run", "act 4"))
    head_file(records.wave).write_bytes(known)
    assert verify(records.wave)[0] == 0  # a writer that was killed leaves the same
    append(records.wave, Entry("run", "act 5"))
    head_file(records.wave).write_bytes(known)
    status, told = verify(records.wave)
    assert status == 1 and "the run's head knows no more than entry 3 of 5" in told[WAVE]


def test_a_file_that_nothing_knows_is_no_proof(records: Records, verify: Verify) -> None:
    shutil.rmtree(records.folder / ".audit")
    status, told = verify()
    assert status == 1
    assert "Held to nothing: neither a report nor a head knows how many entries there should be" in told[WAVE]
    assert told[VM].endswith("which knows entry 3; no head tells how many came after it.")
    assert verify(records.vm)[0] == 0  # of before there were heads


def test_a_file_that_is_gone_is_found(records: Records, verify: Verify) -> None:
    records.vm.unlink()
    records.wave.unlink()
    gone = (
        ": is not there, and the run's report knows entry 3 of it, the run's head knows entry 4 of it: it was removed"
    )
    expected = {VM: gone, WAVE: ": is not there, and the run's head knows entry 3 of it: it was removed"}
    assert verify() == (1, expected)
    assert verify(records.vm) == (1, {VM: gone})
    shutil.rmtree(records.folder / ".audit")
    status, told = verify()
    assert status == 1
    assert told[VM] == ": is not there, and the run's report knows entry 3 of it: it was removed"
    assert (
        told[WAVE] == ": is not there, and the run has a report: it was removed, or the run is older than audit files"
    )


@pytest.mark.parametrize("asked", ["", "wave.p.first", ".."])
def test_a_runs_folder_that_is_gone_as_a_whole_is_found(records: Records, verify: Verify, asked: str) -> None:
    shutil.rmtree(records.wave.parent)
    status, told = verify(records.folder / asked)
    assert status == 1
    found = {str(Path(folder)): said for folder, said in told.items() if said.startswith(": is not there")}
    assert list(found.values()) == [": is not there, and the run's head knows entry 3 of it: it was removed"]


def test_a_folder_is_searched_for_its_own_runs_only(records: Records, verify: Verify) -> None:
    records.vm.unlink()
    assert set(verify(records.folder / "wave.p.first")[1]) == {WAVE}
    assert set(verify(records.vm.parent)[1]) == {VM}


def test_a_file_that_nobody_knows_of_is_a_mistake(records: Records, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "audit.jsonl"):
        assert main(["audit", "verify", str(path)]) == 2


@pytest.mark.parametrize(
    "content", ["", "[]", '{"audit": {"entries": "3"}}', '{"audit": {"entries": 3, "sha256": "0"}}']
)
def test_a_report_or_head_that_is_damaged_is_found_and_the_rest_is_still_read(
    records: Records, verify: Verify, content: str
) -> None:
    records.vm.with_name("report.json").write_text(content)
    head_file(records.wave).write_text(content)
    status, told = verify()
    assert status == 1
    assert told[VM].startswith(": the run's report cannot be read: ")
    assert told[WAVE].startswith(": the run's head cannot be read: ")


def test_a_report_from_elsewhere_is_held_to_and_must_be_one(records: Records, verify: Verify, tmp_path: Path) -> None:
    elsewhere = tmp_path / "on-the-host.json"
    shutil.move(records.vm.with_name("report.json"), elsewhere)
    status, told = verify(records.vm, "--report", elsewhere)
    assert status == 0 and f"Held to {elsewhere}, which knows entry 3" in told[VM]
    records.vm.unlink()
    assert verify(records.vm, "--report", elsewhere)[0] == 1
    elsewhere.write_text("{")
    assert main(["audit", "verify", str(records.vm), "--report", str(elsewhere)]) == 2


def test_another_runs_file_with_all_that_knows_of_it_is_found(records: Records, verify: Verify) -> None:
    other = records.folder / "migrate.p.web02" / "r1" / "audit.jsonl"
    append(other, Entry("run", "what nobody is to see"))
    assert verify(other)[0] == 0
    shutil.copytree(records.vm.parent, other.parent, dirs_exist_ok=True)
    shutil.copy(head_file(records.vm), head_file(other))
    status, told = verify(other)
    assert status == 1
    assert told["migrate.p.web02/r1"] == f":1: says that this is the file of run {VM}: it was put in this run's place"
    head_file(other).unlink()
    assert verify(other)[0] == 1


def test_a_copy_elsewhere_has_no_head(records: Records, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "audit.jsonl"
    copy.parent.mkdir()
    shutil.copy(records.wave, copy)
    held = hold(copy, None)
    assert (held.findings, held.to_nothing) == ((), True)


def test_an_entry_is_shown_whatever_its_texts_are_and_a_line_that_was_changed_is_not(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    append(records.wave, Entry("run", "one\u2028line"))
    assert main(["audit", "show", str(records.wave)]) == 0
    records.wave.write_bytes(records.wave.read_bytes().replace(b'"by"', b'"by": "mallory", "by"'))
    capsys.readouterr()
    assert main(["audit", "show", str(records.wave)]) == 1
    assert "mallory" in capsys.readouterr().out
