"""Hostile and broken files end in a list of faults, never in a traceback."""

import os
import socket

import pytest
from hyperflow.manifest.documents import parse_json, parse_yaml, read_document
from hyperflow.manifest.faults import DocumentError
from hyperflow.manifest.load import ManifestError, load_manifest
from hyperflow.manifest.save import save
from hypothesis import given
from hypothesis import strategies as st


def json_fault(text):
    with pytest.raises(DocumentError) as refused:
        parse_json(text, "file")
    return str(refused.value)


def yaml_fault(text):
    with pytest.raises(DocumentError) as refused:
        parse_yaml(text, "file")
    return str(refused.value)


def file_fault(path):
    with pytest.raises(ManifestError) as refused:
        load_manifest(path)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a JSON document"),
        ("{'a': 1}", "(line 1, column 2)"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": 1e999}', "a: found Infinity, expected a finite number"),
        ('{"a": 1, "a": 2}', "a: found the key twice"),
        ('{"a": "\\ud800"}', "a: found half a surrogate pair"),
        ('{"\\udfff": 1}', "half a surrogate pair"),
        ("[" * 100_000, "deeper nesting"),
        ("[" * 40 + "]" * 40, "deeper nesting"),
        ('{"a": ' + "9" * 5000 + "}", "expected a JSON document"),
    ],
)
def test_json_that_is_not_plain_data_is_refused(text, said):
    assert said in json_fault(text)


def test_a_whole_surrogate_pair_is_one_character():
    assert parse_json('"\\ud83d\\ude00"', "file").value == "\U0001f600"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found nothing, expected a YAML document"),
        ("a: [1", "(line 2, column 1)"),
        ("a: 1\n b: 2", "(line 2, column 3)"),
        (
            "a: 1\nb: 2\na: 3",
            "a: found the key twice (first in line 1), expected each key once (line 3, column 1)",
        ),
        ("a: &x 1\nb: *x", "anchor or alias 'x'"),
        ("b: *x", "anchor or alias 'x'"),
        ("a: !!python/object/apply:os.system ['true']", "found tag"),
        ("a: !!binary aGk=", "found tag"),
        ("a: !local 1", "found tag"),
        ("a: .inf\nb: 1e999", "b: found Infinity"),
        ("? [a]\n: 1", "a key that is no string"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: \x07", "expected a YAML document"),
        ("[" * 50_000, "deeper nesting"),
        ("{a: " * 40 + "1" + "}" * 40, "deeper nesting"),
        ("\t- a", "(line 1, column 1)"),
    ],
)
def test_yaml_that_is_not_plain_data_is_refused_with_its_place(text, said):
    assert said in yaml_fault(text)


def test_words_that_yaml_1_1_would_change_stay_strings():
    text = "{a: no, b: on, c: 1:30, d: 010, e: 2026-01-01, f: '1', g: 0x10, h: 1_000}"
    assert list(parse_yaml(text, "file").value.values()) == [
        "no",
        "on",
        "1:30",
        "010",
        "2026-01-01",
        "1",
        "0x10",
        "1_000",
    ]


def test_yamls_own_plain_values_are_read():
    text = "{a: true, b: null, c: -3, d: 1.5, e: ~, f: '', g: 00:50:56:9a:10:01, h: 1e3, 1: x, on: y}"
    assert parse_yaml(text, "file").value == {
        "a": True,
        "b": None,
        "c": -3,
        "d": 1.5,
        "e": None,
        "f": "",
        "g": "00:50:56:9a:10:01",
        "h": 1000.0,
        "1": "x",
        "on": "y",
    }


@given(st.text() | st.text(alphabet="{}[]:,-?&*!|>'\"%@` \n#a1"))
def test_no_text_breaks_either_reader(text):
    for parse in (parse_json, parse_yaml):
        try:
            parse(text, "file")
        except DocumentError as refused:
            assert refused.faults


@given(st.binary())
def test_no_bytes_break_the_loader(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "manifest.json"
    path.write_bytes(content)
    assert file_fault(path)


def test_files_that_cannot_be_read_are_told_apart(tmp_path):
    assert "found no file" in file_fault(tmp_path / "none.json")
    assert "found no regular file" in file_fault(tmp_path)
    os.mkfifo(tmp_path / "fifo.json")
    assert "found no regular file" in file_fault(tmp_path / "fifo.json")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.json"))
        assert "found no regular file" in file_fault(tmp_path / "s.json")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe4"}')
    assert "byte 0xe4 at offset 7, expected text in UTF-8" in file_fault(tmp_path / "latin.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    assert "more than 8388608 bytes" in file_fault(tmp_path / "huge.json")


def test_a_yaml_manifest_is_read_and_its_faults_have_lines(tmp_path):
    path = tmp_path / "manifest.yaml"
    path.write_text(
        "manifest_version: '1.0'\ndisks:\n  - id: disk-0\n    source_format: vmdk\n    bytes: '1'\n"
        "    local_path: /s/d.vmdk\n"
    )
    assert 'disks[0].bytes: found "1", expected an integer (line 5, column 5)' in file_fault(path)
    path.write_text(path.read_text().replace("'1'", "1"))
    assert load_manifest(path).disks[0].bytes == 1


def test_a_saved_document_replaces_the_old_one_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "artifact-manifest.json"
    save({"a": 1}, path)
    save({"b": "Größe"}, path)
    assert path.read_text() == '{\n  "b": "Größe"\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["artifact-manifest.json"]
    assert read_document(path, 100).value == {"b": "Größe"}


def test_a_document_that_json_cannot_carry_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "artifact-manifest.json"
    save({"a": 1}, path)
    with pytest.raises(ValueError, match="JSON"):
        save({"a": float("nan")}, path)
    assert read_document(path, 100).value == {"a": 1}
