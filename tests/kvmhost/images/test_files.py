"""Files of a stage's own, and how they are told from somebody else's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hyperflow.kvmhost.images import files
from hyperflow.kvmhost.stage import BadRequest

NOTE = {"kind": "hyperflow-image", "observed": {"bytes": 4}}


def finished(target: Path) -> Path:
    """Leave a partial file that is complete."""
    descriptor = files.create_partial(target)
    os.write(descriptor, b"ours")
    os.close(descriptor)
    return target


def put_in_place(target: Path) -> None:
    """Do so with the partial file that is there."""
    files.put_in_place(target, NOTE, files.partial_path(target).stat().st_ino)


def test_a_finished_file_has_its_name_and_a_note_by_which_it_is_known(tmp_path: Path) -> None:
    target = finished(tmp_path / "disk")
    put_in_place(target)
    note = files.read_note(target)
    assert note is not None
    assert {key: note[key] for key in NOTE} == NOTE
    assert files.is_untouched(target, note)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".disk.json", "disk"]


def test_a_note_that_is_there_with_somebody_elses_file_stays_as_it_is(tmp_path: Path) -> None:
    target = finished(tmp_path / "disk")
    target.write_text("theirs")
    files.note_path(target).write_text("their note")
    with pytest.raises(BadRequest, match="appeared"):
        put_in_place(target)
    assert (target.read_text(), files.note_path(target).read_text()) == ("theirs", "their note")


def test_a_note_that_another_run_has_written_over_ours_stays_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = finished(tmp_path / "disk")

    def write_and_be_overtaken(path: Path, text: str) -> None:
        target.write_text("theirs")
        path.write_text(json.dumps({"kind": "theirs"}))

    monkeypatch.setattr(files, "write_atomically", write_and_be_overtaken)
    with pytest.raises(BadRequest, match="appeared"):
        put_in_place(target)
    assert target.read_text() == "theirs"
    assert files.read_note(target) == {"kind": "theirs"}


def test_a_note_that_a_killed_run_was_writing_goes_with_the_partial_file(tmp_path: Path) -> None:
    (tmp_path / "..disk.json.77.tmp").write_text("of a killed run")
    (tmp_path / "..disk.json.by-hand.tmp").write_text("theirs")
    target = finished(tmp_path / "disk")
    put_in_place(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["..disk.json.by-hand.tmp", ".disk.json", "disk"]


def test_a_partial_file_that_another_run_has_made_is_not_taken_for_ours(tmp_path: Path) -> None:
    target = tmp_path / "disk"
    ours = files.create_partial(target)
    theirs = files.create_partial(target)
    try:
        with pytest.raises(BadRequest, match="another run writes the same file"):
            files.put_in_place(target, NOTE, os.fstat(ours).st_ino)
        files.put_in_place(target, NOTE, os.fstat(theirs).st_ino)
    finally:
        os.close(ours)
        os.close(theirs)
    assert target.stat().st_mode & 0o777 == 0o600, "a guest's files are for nobody else"


def test_a_file_that_cannot_be_named_leaves_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(os, "link", fail)
    target = finished(tmp_path / "disk")
    with pytest.raises(OSError, match="No space left on device"):
        put_in_place(target)
    assert list(tmp_path.iterdir()) == [files.partial_path(target)]


@pytest.mark.parametrize("change", ["written to", "replaced"])
def test_an_earlier_file_of_ours_that_was_changed_while_the_work_ran_is_not_removed(
    tmp_path: Path, change: str
) -> None:
    target = finished(tmp_path / "disk")
    put_in_place(target)
    held = files.state(target)
    if change == "replaced":
        target.unlink()
    target.write_text("work of a guest")

    with pytest.raises(BadRequest, match="was changed while the work ran"):
        files.remove_earlier(target, held)

    assert target.read_text() == "work of a guest"
    target.unlink()
    files.remove_earlier(target, held)
    assert list(tmp_path.iterdir()) == []
