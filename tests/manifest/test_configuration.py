"""``configuration`` of a manifest: what may be asked of a guest, and what is refused in which words."""

import jsonschema
import pytest
from hyperflow.manifest.load import ManifestError, manifest_of
from hyperflow.manifest.schema import manifest_schema

KEY = "ssh-ed25519 " + "A" * 68
HASH = "$6$saltsalt$" + "a" * 86
SCHEMA = jsonschema.Draft7Validator(manifest_schema())


def document(configuration):
    disk = {"id": "disk-0", "source_format": "raw", "bytes": 1, "local_path": "/srv/a.raw"}
    return {"manifest_version": "1.0", "disks": [disk], "configuration": configuration}


def fault(configuration):
    with pytest.raises(ManifestError) as refused:
        manifest_of(document(configuration))
    (only,) = refused.value.faults
    return str(only)


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ({"users": {"root\nx": {}}}, 'configuration.users["root\\nx"]: found "root\\n'),
        ({"users": {"../x": {}}}, "expected a user name of a-z, 0-9, '_' and '-'"),
        ({"users": {"u" * 33: {}}}, "at most 32 characters"),
        ({"users": {"a": {"ssh_keys": [KEY + "\n" + KEY]}}}, "expected a public key as ssh-keygen writes it"),
        ({"users": {"a": {"ssh_keys": ['command="sh" ' + KEY]}}}, "without options in front"),
        ({"users": {"a": {"sudo": True}}}, "expected 'password' or 'nopasswd'"),
        ({"users": {"a": {"password": "x"}}}, "expected password_hash (did you mean that?), or one of ssh_keys, sudo"),
        ({"services": {"enable": ["../../etc/x"]}}, "services.enable[0]"),
        ({"services": {"mask": ["a\n"]}}, "expected the name of a systemd unit"),
        ({"services": {"start": ["a"]}}, "found an unknown key, expected one of enable, disable, mask"),
        ({"hostname": {"hostname": "a b"}}, "hostname.hostname"),
        ({"hostname": {"hostname": "a", "hosts": {"10.0.0.1": ["b\t10.0.0.2 c"]}}}, "hosts"),
        ({"hostname": {}}, "configuration.hostname.hostname: found nothing"),
        ({"network": {"interfaces": {"../e": {"dhcp": True}}}}, "expected the name of an interface"),
        ({"network": {"interfaces": {"e": {"addresses": ["10.0.0.1"]}}}}, "with its prefix length"),
    ],
)
def test_a_hostile_value_is_refused_by_models_and_schema_alike(configuration, said):
    assert said in fault(configuration)
    assert not SCHEMA.is_valid(document(configuration))


@pytest.mark.parametrize("password", ["secret", "$1$salt$" + "a" * 22, HASH + "\nroot::0:0", HASH + ":"])
def test_a_plain_or_weakly_hashed_password_is_refused_and_not_repeated(password):
    said = fault({"users": {"a": {"password_hash": password}}})
    assert "configuration.users.a.password_hash" in said
    assert "a password's hash" in said
    assert password[:6] not in said


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ({"services": {"enable": ["ssh"], "mask": ["ssh.service"]}}, "each unit in one of the lists only"),
        ({"network": {"interfaces": {"e": {}}}}, "either dhcp: true or addresses"),
        ({"network": {"interfaces": {"e": {"dhcp": True, "dns": ["10.0.0.1"]}}}}, "with addresses only"),
        ({"hostname": {"hostname": "a", "hosts": {"999.0.0.1": ["b"]}}}, "a real IP address"),
    ],
)
def test_what_a_schema_cannot_say_the_models_do(configuration, said):
    assert said in fault(configuration)


@pytest.mark.parametrize(
    "hashed", [HASH, "$y$j9T$saltsaltsalt$" + "a" * 43, "$2b$12$" + "a" * 53, "$6$rounds=5000$salt$" + "a" * 86]
)
def test_the_hashes_of_todays_distributions_are_taken(hashed):
    wanted = {"users": {"a": {"password_hash": hashed, "ssh_keys": [KEY, KEY + " me@example.com"]}}}
    assert manifest_of(document(wanted)).to_document()["configuration"] == wanted
    SCHEMA.validate(document(wanted))
