"""The contract, field by field, and its rulings."""

import copy
import json
from pathlib import Path, PurePosixPath

import pytest
from hyperflow.manifest.load import ManifestError, load_manifest, manifest_of, parse_manifest
from hyperflow.manifest.models import Manifest
from hyperflow.manifest.rules import concerns
from hyperflow.manifest.save import canonical

SEED_EXAMPLE = Path(__file__).parent / "seed-example.json"


def seed():
    return json.loads(SEED_EXAMPLE.read_text())


def minimal(**disk):
    base = {"id": "disk-0", "source_format": "vmdk", "bytes": 1, "local_path": "/s/disk1.vmdk"}
    return {"manifest_version": "1.0", "disks": [base | disk]}


def disks(*changes):
    made = [minimal(**{"local_path": f"/s/{number}.vmdk", **change}) for number, change in enumerate(changes)]
    return {"manifest_version": "1.0", "disks": [each["disks"][0] for each in made]}


def faults(document):
    with pytest.raises(ManifestError) as refused:
        manifest_of(document)
    return [str(fault) for fault in refused.value.faults]


def test_the_seeds_example_is_accepted_and_written_back_byte_for_byte():
    written = canonical(load_manifest(SEED_EXAMPLE))
    assert written == json.dumps(seed(), indent=2) + "\n"
    assert canonical(parse_manifest(written)) == written


def test_defaults_are_those_of_the_contract():
    manifest = manifest_of(
        minimal()
        | {
            "vm": {},
            "pipeline": {
                "inspect": {"enabled": True},
                "fix": {"enabled": True},
                "convert": {"enabled": False},
                "validate": {"enabled": True},
            },
            "output": {},
            "options": {"report": {}},
        }
    )
    disk = manifest.disks[0]
    assert (disk.boot_order_hint, disk.disk_type, disk.checksum) == (999, "unknown", None)
    assert (manifest.vm.firmware, manifest.vm.secureboot, manifest.vm.os_hint) == ("bios", False, "unknown")
    fix = manifest.pipeline.fix
    assert (fix.backup, fix.update_grub, fix.regen_initramfs) == (True, True, True)
    assert (fix.print_fstab, fix.remove_vmware_tools, fix.fstab_mode) == (False, False, "stabilize-all")
    assert manifest.pipeline.inspect.collect_guest_info is False
    assert (manifest.pipeline.convert.compress, manifest.pipeline.convert.compress_level) == (False, None)
    assert manifest.pipeline.validation.check_image_integrity is True
    assert manifest.pipeline.enabled() == ["inspect", "fix", "validate"]
    assert (manifest.options.dry_run, manifest.options.verbose) == (False, 1)
    assert (manifest.options.report.enabled, manifest.options.report.path) == (True, "report.json")
    assert manifest.output_directory(PurePosixPath("/s/web01/artifact-manifest.json")) == PurePosixPath(
        "/s/web01/output"
    )
    assert manifest.output_name(disk) == "disk-0.qcow2"


def test_what_was_not_written_is_not_written_back_and_what_was_is():
    document = minimal(boot_order_hint=0, label="") | {
        "pipeline": {"fix": {"regen_initramfs": False, "enabled": False, "fstab_mode": "stabilize-all"}},
        "vm": {"secureboot": False, "firmware": "bios"},
        "notes": [],
    }
    assert canonical(manifest_of(document)) == canonical(document)


def test_unknown_keys_survive_in_their_place():
    document = {"z": [None, {"a": 1.5}]} | minimal(_x=1, copy=True, model_config={}) | {"source": {"uuid": "1"}}
    document["pipeline"] = {"convert": {"threads": 4, "enabled": True}}
    assert canonical(manifest_of(document)) == canonical(document)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "(document): found a list of 0, expected an object"),
        ({}, "manifest_version: found nothing, expected a value, it is required"),
        (minimal() | {"manifest_version": "1.1"}, "manifest_version: found \"1.1\", expected '1.0'"),
        (minimal() | {"manifest_version": 1.0}, "manifest_version: found 1.0, expected '1.0'"),
        (minimal() | {"disks": []}, "disks: found a list of 0, expected at least 1"),
        (minimal(bytes=True), "disks[0].bytes: found true, expected an integer"),
        (minimal(bytes="1"), 'disks[0].bytes: found "1", expected an integer'),
        (minimal(bytes=-1), "disks[0].bytes: found -1, expected at least 0"),
        (minimal(bytes=1.5), "disks[0].bytes: found 1.5, expected an integer"),
        (minimal(id="a\n"), "disks[0].id: found \"a\\n\", expected letters, digits, '_' and '-'"),
        (minimal(id=""), "disks[0].id: found \"\", expected letters, digits, '_' and '-'"),
        (minimal(checksum=None), "disks[0].checksum: found null, expected a string"),
        (minimal(local_path=""), 'disks[0].local_path: found "", expected the absolute path of a file'),
        (minimal(local_path="/s/"), 'disks[0].local_path: found "/s/", expected the absolute path of a file'),
        (
            minimal(local_path="disk"),
            'disks[0].local_path: found "disk", expected the absolute path of a file',
        ),
        (minimal(boot_order_hint=False), "disks[0].boot_order_hint: found false, expected an integer"),
        (minimal() | {"vm": {"mem_gb": 0}}, "vm.mem_gb: found 0, expected at least 1"),
        (minimal() | {"vm": None}, "vm: found null, expected an object"),
        (
            minimal() | {"vm": {"firmware": "efi"}},
            "vm.firmware: found \"efi\", expected 'bios', 'uefi' or 'unknown'",
        ),
        (
            minimal() | {"nics": [{"mac": "00:50:56:9a:10"}]},
            'nics[0].mac: found "00:50:56:9a:10", expected six pairs of hexadecimal digits',
        ),
        (
            minimal() | {"source": {"export_timestamp": "2026-02-30T00:00:00Z"}},
            'source.export_timestamp: found "2026-02-30T00:00:00Z", expected a day of the calendar',
        ),
        (
            minimal() | {"source": {"export_timestamp": "2026-02-03T00:00:00"}},
            'source.export_timestamp: found "2026-02-03T00:00:00", expected a time as 2026-01-21T20:00:00Z',
        ),
        (
            minimal() | {"metadata": {"tags": {"owner": 7}}},
            "metadata.tags.owner: found 7, expected a string; put it in quotes",
        ),
        (
            minimal() | {"pipeline": {"fix": {}}},
            "pipeline.fix.enabled: found nothing, expected a value, it is required",
        ),
        (
            minimal() | {"pipeline": {"covert": {"enabled": True}}},
            "pipeline.covert: found an unknown key, expected convert (did you mean that?), or one of "
            "inspect, fix, validate",
        ),
        (
            minimal() | {"pipeline": {"convert": {"enabled": True, "compress_level": 10}}},
            "pipeline.convert.compress_level: found 10, expected at most 9",
        ),
        (
            minimal() | {"configuration": {"run": []}},
            "configuration.run: found an unknown key, expected one of users, services, hostname, network",
        ),
        (
            minimal() | {"output": {"filename": "../x"}},
            'output.filename: found "../x", expected a file name without a folder',
        ),
        (minimal() | {"options": {"verbose": 4}}, "options.verbose: found 4, expected at most 3"),
    ],
)
def test_a_fault_is_named_with_its_path_what_was_found_and_what_is_allowed(document, said):
    assert said in faults(document)


def test_two_disks_share_no_file():
    document = disks({"id": "a", "local_path": "/s/one"}, {"id": "b", "local_path": "/s/one"})
    assert faults(document) == [
        'disks[1].local_path: found "/s/one" again, expected a file other than that of disks[0]'
    ]


def test_one_run_lists_every_fault_types_and_rules_together():
    document = disks({"bytes": "x"}, {"checksum": "md5:1"}) | {"hooks": {"pre": "rm"}, "vm": {"cpu": 0}}
    paths = [fault.partition(":")[0] for fault in faults(document)]
    assert sorted(paths) == ["disks[0].bytes", "disks[1].checksum", "disks[1].id", "hooks", "vm.cpu"]


def test_the_models_alone_refuse_a_broken_rule_too():
    with pytest.raises(ValueError, match=r"disks\[1\].id"):
        Manifest.model_validate(disks({}, {}))


@pytest.mark.parametrize("key", ["hooks", "post_hook", "commands", "script", "pre-scripts"])
def test_ruling_hooks_and_commands_are_refused_at_any_depth(key):
    assert key in str(faults(minimal() | {key: []}))
    assert key in str(faults(minimal(extra=[{"deep": {key: "rm -rf /"}}])))
    assert key in str(faults(minimal() | {"configuration": {"services": {key: "x"}}}))


def test_a_tag_may_be_called_script_for_it_is_only_a_string():
    tags = {"script": "nightly"}
    assert manifest_of(minimal() | {"metadata": {"tags": tags}}).metadata.tags == tags


def test_ruling_the_lowest_hint_boots_then_type_boot_then_the_lists_order():
    three = ({"id": "a"}, {"id": "b", "disk_type": "boot"}, {"id": "c"})
    assert manifest_of(disks(*three)).boot_disk().id == "b"
    hinted = ({"id": "a"}, {"id": "b", "disk_type": "boot"}, {"id": "c", "boot_order_hint": 0})
    assert [disk.id for disk in manifest_of(disks(*hinted)).disks_in_boot_order()] == ["c", "a", "b"]
    assert manifest_of(disks({"id": "a"}, {"id": "b"})).boot_disk().id == "a"


def test_a_boot_disk_whose_hint_of_0_was_left_out_by_its_writer_is_a_concern():
    # hypersdk's Go structs have omitempty on boot_order_hint
    manifest = manifest_of(disks({"id": "a", "disk_type": "boot"}, {"id": "b", "boot_order_hint": 1}))
    assert manifest.boot_disk().id == "b"
    assert any("though a has the disk_type boot" in said for said in concerns(manifest))


def test_ruling_a_disk_without_a_checksum_is_a_concern():
    assert any("disks[0] disk-0: no checksum" in said for said in concerns(manifest_of(minimal())))
    assert concerns(manifest_of(seed())) == []


def test_a_configuration_that_nothing_applies_is_a_concern():
    document = minimal() | {"configuration": {"hostname": {"hostname": "x"}}}
    said = "configuration is not applied to the guest, because the pipeline has fix disabled"
    assert said not in concerns(manifest_of(document)), "without a pipeline the profile's runs"
    assert said in concerns(manifest_of(document | {"pipeline": {"convert": {"enabled": True}}}))
    assert said not in concerns(manifest_of(document | {"pipeline": {"fix": {"enabled": True}}}))


def test_a_file_name_for_the_output_is_the_boot_disks_and_must_not_be_anothers():
    document = disks({"id": "a"}, {"id": "b"}) | {"output": {"filename": "web.img", "format": "raw"}}
    manifest = manifest_of(document)
    assert [manifest.output_name(disk) for disk in manifest.disks] == ["web.img", "b.raw"]
    document["output"]["filename"] = "b.raw"
    assert any(said.startswith("output.filename:") for said in faults(document))


def test_time_stamps_of_other_writers_may_have_an_offset_and_fractions():
    for text in ("2026-01-21T20:00:00.123456789+05:30", "2026-01-21t20:00:00z", "2024-02-29T23:59:60Z"):
        assert manifest_of(minimal() | {"metadata": {"created_at": text}}).metadata.created_at == text


def test_a_manifest_is_not_changed_by_reading_it():
    document = seed()
    before = copy.deepcopy(document)
    manifest_of(document)
    assert document == before


def test_a_whole_floating_point_number_is_an_integer_as_it_is_to_json_schema():
    manifest = manifest_of(minimal(bytes=4.0))
    assert manifest.disks[0].bytes == 4
    assert '"bytes": 4,' in canonical(manifest)  # hypersdk's reader, Go, takes no 4.0
