"""The published schemas, and that they say what the models do."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
from hyperflow.manifest.load import ManifestError, manifest_of
from hyperflow.manifest.schema import manifest_schema, schema_text
from hyperflow.plans.schema import all_schemas
from hypothesis import HealthCheck, given, settings
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


@st.composite
def mutated(draw):
    document = copy.deepcopy(FULL)
    for _ in range(draw(st.integers(1, 3))):
        spots = list(places(document))
        if not spots:
            break
        container, key = draw(st.sampled_from(spots))
        action = draw(st.sampled_from(["replace", "delete", "add"]))
        if action == "replace":
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


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_schema_and_models_agree_on_any_document(document):
    by_schema = VALIDATOR.is_valid(document)
    try:
        manifest_of(document)
        by_models, beyond = True, True
    except ManifestError as refused:
        by_models = False
        beyond = all(fault.expected.startswith(BEYOND) for fault in refused.faults)
    assert by_schema == by_models or (by_schema and beyond)
