"""The published schemas, and that they say what the models do."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
from hyperflow.manifest.load import ManifestError, manifest_of, parse_manifest
from hyperflow.manifest.save import canonical
from hyperflow.manifest.schema import BEYOND_SCHEMA, manifest_schema, schema_text
from hyperflow.plans.schema import all_schemas
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
SEED = json.loads((Path(__file__).parent / "seed-example.json").read_text())
VALIDATOR = jsonschema.Draft7Validator(manifest_schema())

FULL = copy.deepcopy(SEED) | {
    "nics": [{"id": "nic-0", "mac": "00:50:56:9a:10:01", "network": "VM Network"}],
    "warnings": [{"stage": "export", "message": "slow", "timestamp": "2026-01-21T20:00:00Z"}],
    "configuration": {
        "users": {
            "deploy": {
                "ssh_keys": ["ssh-ed25519 " + "A" * 68 + " deploy@example.com"],
                "password_hash": "$6$saltsalt$" + "a" * 86,
                "sudo": "nopasswd",
            }
        },
        "services": {"enable": ["ssh"], "disable": ["cron.service"], "mask": ["apt-daily.timer"]},
        "hostname": {"hostname": "web", "domain": "example.com", "hosts": {"192.0.2.1": ["db", "db.example.com"]}},
        "network": {
            "interfaces": {
                "ens192": {"addresses": ["192.0.2.10/24"], "gateway": "192.0.2.1", "dns": ["2001:db8::53"]},
                "ens224": {"dhcp": True},
            }
        },
    },
    "options": {"dry_run": False, "verbose": 0, "report": {"enabled": True, "path": "report.json"}},
}
FULL["pipeline"]["fix"]["fstab_mode"] = "noop"
FULL["pipeline"]["convert"]["compress_level"] = 9
FULL["disks"][0] |= {"label": "Hard disk 1", "virtual_bytes": 1}
FULL["output"]["filename"] = "web.qcow2"
FULL_TEXT = json.dumps(FULL)

# Expectations that a schema cannot state: see hyperflow.manifest.schema.BEYOND_SCHEMA.
BEYOND = (
    "a day of the calendar",
    "an id other than that of disks",
    "a file other than that of disks",
    "a name that no disk's image has of itself",
    "a real IP address",
    "each unit in one of the lists only",
    "either dhcp: true or addresses",
    "gateway and dns with addresses only",
)

EDGES = st.sampled_from(
    [
        *(
            None,
            True,
            False,
            0,
            1,
            -1,
            10,
            1.0,
            1.5,
            1e300,
            "",
            "1",
            "1.0",
            "a\n",
            "/",
            "/a",
            "/a/",
            "a\x00b",
        ),
        *("..", "efi", "2026-02-30T00:00:00Z", "2026-1-1", "boot", "qcow2", "00-50-56-9a-10-01", "disk-1"),
        *("sha256:" + "0" * 64, "sha256:" + "0" * 64 + "\n", "disk-1.qcow2"),
        *("../x", "ssh.socket", "999.1.1.1", "10.0.0.1/24", "10.0.0.1", "fe80::1", "$6$plain", "ssh-rsa AAAA"),
        *([], {}, [None], {"hooks": 1}, {"enabled": True}, {"a": []}),
    ]
)
VALUES = EDGES | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [
        *(
            "hooks",
            "pre_hook",
            "Scripts",
            "command",
            "script_name",
            "id",
            "enabled",
            "checksum",
            "_x",
            "title",
        ),
        *("__class__", "to_document", "model_config", "validate", "copy", "fix", "bytes", "format", ""),
        *("virtual_bytes", "mem_mb"),
    ]
)


def places(value):
    """Yield every container with every key or index in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


def spoilt(text):
    """Change one character of a text, or put one more into it."""
    letters = st.sampled_from([*"aZ0-_./: \n\r\t\0", "", "\x85", "\u2028", "\u00e9", "\u0661", "\U0001f600"])
    return st.builds(
        lambda at, width, letter: text[:at] + letter + text[at + width :],
        st.integers(0, len(text)),
        st.integers(0, 1),
        letters,
    )


@st.composite
def mutated(draw):
    document = json.loads(FULL_TEXT)
    for _ in range(draw(st.integers(1, 3))):
        spots = list(places(document))
        if not spots:
            break
        container, key = spots[draw(st.integers(0, len(spots) - 1))]
        action = draw(st.sampled_from(["replace", "delete", "add", "spoil", "rename"]))
        if action == "spoil" and isinstance(container[key], str):
            container[key] = draw(spoilt(container[key]))
        elif action == "rename" and isinstance(container, dict):
            container[draw(KEYS | spoilt(key))] = container.pop(key)
        elif action == "replace":
            container[key] = copy.deepcopy(draw(VALUES))  # the next change may be inside it
        elif action == "delete":
            del container[key]
        elif isinstance(container, dict):
            container[draw(KEYS)] = copy.deepcopy(draw(VALUES))
        else:
            container.append(copy.deepcopy(container[key]))
    return document


@pytest.mark.parametrize("name", sorted(all_schemas()))
def test_a_schema_is_valid_draft_7_and_its_file_is_up_to_date(name):
    schema = all_schemas()[name]
    jsonschema.Draft7Validator.check_schema(schema)
    file = ROOT / "include" / "schemas" / f"{name}.schema.json"
    assert file.read_text() == schema_text(schema), "run: make schemas"


def test_the_schema_accepts_the_seeds_example_and_one_with_every_field():
    VALIDATOR.validate(SEED)
    VALIDATOR.validate(FULL)
    manifest_of(FULL)


def agree(document):
    """Ask both; False where they differ in more than what a schema cannot state."""
    by_schema = VALIDATOR.is_valid(document)
    try:
        manifest_of(document)
        by_models, beyond = True, True
    except ManifestError as refused:
        by_models = False
        beyond = all(fault.expected.startswith(BEYOND) for fault in refused.faults)
    return by_schema == by_models or (by_schema and beyond)


NAMES = sorted(
    {key for definition in manifest_schema()["definitions"].values() for key in definition.get("properties", ())}
)
ANYTHING = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | KEYS, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_schema_and_models_agree_on_mutated_manifests(document):
    assert agree(document)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(ANYTHING | st.dictionaries(st.sampled_from(sorted(FULL)), ANYTHING, max_size=6))
def test_schema_and_models_agree_on_any_document(document):
    assert agree(document)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_schema_and_models_agree_on_the_value_of_each_field(data):
    document = copy.deepcopy(FULL)
    container, key = data.draw(st.sampled_from(list(places(document))))
    container[key] = data.draw(ANYTHING)
    assert agree(document)


@st.composite
def rearranged(draw, value):
    """Give an object with its keys in another order and some that nobody knows, at every depth."""
    if isinstance(value, list):
        return [draw(rearranged(item)) for item in value]
    if not isinstance(value, dict):
        return value
    items = {key: draw(rearranged(item)) for key, item in value.items()}
    items |= draw(st.dictionaries(KEYS.filter(lambda key: key not in items), VALUES, max_size=1))
    return {key: items[key] for key in draw(st.permutations(sorted(items)))}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(rearranged({key: value for key, value in FULL.items() if key not in ("pipeline", "configuration", "metadata")}))
def test_a_valid_manifest_is_written_back_byte_for_byte(document):
    if not VALIDATOR.is_valid(document):
        reject()
    try:
        manifest = manifest_of(document)
    except ManifestError:  # what a schema cannot state
        reject()
    assert canonical(manifest) == canonical(document)
    assert parse_manifest(canonical(manifest)) == manifest


DISK = '{"id": "a", "source_format": "raw", "bytes": 1, "local_path": "/s/a"}'
OTHER = DISK.replace('"a"', '"b"').replace("/s/a", "/s/b")


def with_disks(*disks, more=""):
    return f'{{"manifest_version": "1.0", "disks": [{", ".join(disks)}]{more}}}'


def nested(levels):
    return '{"x": ' * levels + "1" + "}" * levels


BEYOND_CASES = {
    "the ids of the disks differ from each other, and so do their files": [
        with_disks(DISK, OTHER.replace('"b"', '"a"')),
        with_disks(DISK, OTHER.replace("/s/b", "/s/a")),
    ],
    "a date is a day of the calendar (30 February is none)": [
        with_disks(DISK, more=', "source": {"export_timestamp": "2026-02-30T00:00:00Z"}')
    ],
    "output.filename is not the name another disk's image has of itself": [
        with_disks(DISK, OTHER, more=', "output": {"filename": "b.qcow2"}')
    ],
    "an IP address is one (not 999.1.1.1)": [
        with_disks(DISK, more=', "configuration": {"network": {"interfaces": {"e0": {"addresses": ["999.1.1.1/8"]}}}}')
    ],
    "a unit of configuration.services is in one of its lists only": [
        with_disks(DISK, more=', "configuration": {"services": {"enable": ["ssh"], "mask": ["ssh.service"]}}')
    ],
    "an interface of configuration.network has either dhcp or addresses, and gateway and dns with addresses only": [
        with_disks(DISK, more=', "configuration": {"network": {"interfaces": {"e0": {}}}}')
    ],
    "no two keys of one object are the same": [with_disks(DISK, more=', "notes": [], "notes": []')],
    "the document has at most 8 MiB, 32 levels and 50,000 values": [
        with_disks(DISK, more=f', "x": {nested(32)}')  # the others: tests/plans/test_hostile_files.py
    ],
    "strings hold no half of a surrogate pair, numbers are finite": [
        with_disks(DISK, more=', "x": "\\ud800"'),
        with_disks(DISK, more=', "x": 1e999'),
    ],
}


def test_what_the_schema_cannot_state_is_refused_by_the_loader_and_listed():
    assert set(BEYOND_CASES) == set(BEYOND_SCHEMA)
    for sentence, texts in BEYOND_CASES.items():
        for text in texts:
            assert VALIDATOR.is_valid(json.loads(text)), sentence
            with pytest.raises(ManifestError):
                parse_manifest(text)
    assert parse_manifest(with_disks(DISK, OTHER))


def test_the_patterns_of_the_published_schema_are_read_by_every_engine():
    # Go's RE2, with which hypersdk would read the schema, knows no look-around, no \\uXXXX and no back-reference.
    text = schema_text(manifest_schema())
    patterns = {json.loads(f'"{found}"') for found in re.findall(r'"pattern": "(.*)"', text)}
    assert len(patterns) > 10
    assert [pattern for pattern in patterns if re.search(r"\(\?[^:]|\\u|\\[1-9]|\\[zZAbB]", pattern)] == []
