"""Hostile and broken files end in a list of faults, never in a traceback."""

import json
import os
import resource
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hyperflow.manifest.documents import parse_json, parse_yaml, read_document
from hyperflow.manifest.faults import DocumentError
from hyperflow.manifest.load import ManifestError, load_manifest
from hyperflow.manifest.save import as_yaml, canonical, save
from hypothesis import given
from hypothesis import strategies as st

SEED_EXAMPLE = Path(__file__).parent / "seed-example.json"


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
        ('{"o": [1, {"a": 1, "b": 2,\n"a": 1}]}', "o[1].a: found the key twice in one object, expected each key once"),
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


DOUBLED = '{"manifest_version": "1.0", "disks": [{"id": "a",\n "id": "b c", "source_format": "vmdk",\n "bytes": true}]}'


@pytest.mark.parametrize("name", ["manifest.json", "manifest.yaml"])
def test_one_run_lists_faults_of_the_text_and_of_its_content_with_lines(tmp_path, name):
    path = tmp_path / name
    path.write_text(DOUBLED)
    faults = file_fault(path).splitlines()
    paths = [fault.removeprefix(f"{path}: ").partition(":")[0] for fault in faults]
    assert sorted(set(paths)) == ["disks[0].bytes", "disks[0].id", "disks[0].local_path"]
    assert any("the key twice" in fault for fault in faults)
    assert any("disks[0].bytes: found true, expected an integer (line 3, column 2)" in fault for fault in faults)


def test_json_that_is_no_yaml_is_refused_as_well_only_without_lines(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text('{"manifest_version": "\\ud83d\\ude00"}')
    assert "manifest_version: found \"😀\", expected '1.0'" in file_fault(path)
    assert "line" not in file_fault(path)


YAMLS_OWN = "no y On NULL ~ 1:30 010 0o10 0x1f 1e3 1_000 .5 - # = << !x &a *a 2026-01-01 2026-01-21T20:00:00Z"
WORDS = st.text() | st.sampled_from(
    [*YAMLS_OWN.split(), "", "- a", "a: b", "\x85", "\u2028", "\ufeff", "\r\n", "\t", "\U0001f600"]
)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(10**120, 10**130)
DATA = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(WORDS, DATA, max_size=4))
def test_what_is_written_as_yaml_is_read_as_it_was_by_us_and_by_readers_of_yaml_1_1(data):
    text = as_yaml(data)
    read = parse_yaml(text, "file").value
    assert read == data
    assert repr(read) == repr(data)  # the order of keys, and 1 is not 1.0
    assert yaml.safe_load(text) == data


@given(st.dictionaries(WORDS, DATA, max_size=4))
def test_what_is_written_as_json_is_read_as_it_was(data):
    read = parse_json(canonical(data), "file").value
    assert repr(read) == repr(data)
    assert canonical(read) == canonical(data)


def test_a_manifest_keeps_its_content_from_json_to_yaml_and_back(tmp_path):
    seed = load_manifest(SEED_EXAMPLE)
    save(seed, tmp_path / "manifest.yaml")
    assert (tmp_path / "manifest.yaml").read_text().startswith('manifest_version: "1.0"\nsource:\n')
    save(load_manifest(tmp_path / "manifest.yaml"), tmp_path / "manifest.json")
    assert (tmp_path / "manifest.json").read_text() == canonical(seed)
    assert canonical(seed) == json.dumps(json.loads(SEED_EXAMPLE.read_text()), indent=2) + "\n"


def test_threads_that_save_the_same_file_leave_one_whole_document(tmp_path):
    path = tmp_path / "artifact-manifest.json"
    documents = [{"writer": str(number) * 100_000} for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda document: save(document, path), documents))
    assert read_document(path, 1 << 20).value in documents
    assert [file.name for file in tmp_path.iterdir()] == ["artifact-manifest.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "artifact-manifest.json"
    save({"a": 1}, path)
    with limited_file_size(100), pytest.raises(OSError, match="File too large"):
        save({"a": "x" * 1000}, path)
    assert read_document(path, 100).value == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["artifact-manifest.json"]


@contextmanager
def limited_file_size(limit):
    """As a full disk does: the kernel refuses to write further bytes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)


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


def test_a_yaml_manifest_as_hypersdk_writes_it_is_read(tmp_path):
    # Written by hypersdk's own manifest package with gopkg.in/yaml.v3: plain time stamps, quotes only where needed.
    manifest = load_manifest(SEED_EXAMPLE.with_name("hypersdk-example.yaml"))
    assert manifest.metadata.tags == {"a": "1:30", "no": "on"}
    assert manifest.source.export_timestamp.startswith("2026-11-24T02:48:34.")
    assert [disk.boot_order_hint for disk in manifest.disks] == [999, 1]  # Go's omitempty leaves out a 0
    save(manifest, tmp_path / "again.yaml")
    assert load_manifest(tmp_path / "again.yaml").to_document() == manifest.to_document()
