"""Each ruling of the contract (docs/manifest.md) has a test that names it; those of the manifest itself are here."""

import ast
import re
from pathlib import Path

import pytest
from hyperflow.manifest.load import ManifestError, load_manifest, manifest_of
from hyperflow.manifest.rules import concerns

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "manifest.md").read_text()
SECTION = PAGE.partition("## Rulings\n")[2].partition("\n## ")[0]

# Rulings of the run are held where the run is: what is said here must be there.
ELSEWHERE = {
    "every_disk": [
        ("tests/kvmhost/stages/test_convert.py", "test_every_source_format_is_converted"),
        ("tests/cli/test_convert.py", "test_disks_of_every_format_without_checksums_are_converted_and_not_touched"),
    ],
    "no_pipeline": [
        ("tests/plans/test_conversion.py", "test_ruling_without_a_pipeline_the_profiles_runs_in_the_profiles_format")
    ],
    "no_stage": [("tests/plans/test_conversion.py", "test_ruling_a_run_in_which_no_stage_does_anything_is_refused")],
    "checksum_first": [
        ("tests/kvmhost/stages/test_convert.py", "test_a_byte_changed_since_the_export_is_refused_as_that"),
        ("tests/kvmhost/stages/test_convert.py", "test_a_byte_changed_in_another_format_is_refused_as_well"),
        ("tests/cli/test_convert.py", "test_a_disk_that_is_not_what_its_checksum_says_ends_the_run_with_a_report"),
    ],
    "inputs_untouched": [
        ("tests/cli/test_convert.py", "test_disks_of_every_format_without_checksums_are_converted_and_not_touched")
    ],
    "other_files": [
        ("tests/kvmhost/images/test_sources.py", "test_a_qcow2_with_a_backing_file_is_refused"),
        ("tests/kvmhost/images/test_sources.py", "test_a_qcow2_with_an_external_data_file_is_refused"),
        ("tests/cli/test_convert.py", "test_ruling_a_disk_that_names_other_files_is_refused"),
    ],
    "raw_is_raw": [("tests/kvmhost/stages/test_convert.py", "test_a_raw_disk_that_looks_like_qcow2_stays_raw")],
}


def manifest(*disks, **sections):
    base = {"source_format": "raw", "bytes": 1}
    listed = [base | {"id": f"disk-{n}", "local_path": f"/s/{n}"} | disk for n, disk in enumerate(disks or ({},))]
    return {"manifest_version": "1.0", "disks": listed, **sections}


def faults(document):
    with pytest.raises(ManifestError) as refused:
        manifest_of(document)
    return [str(fault) for fault in refused.value.faults]


def functions(path):
    return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_ruling_on_the_page_has_a_test_that_names_it():
    rulings = re.findall(r"^\* `(\w+)`:", SECTION, re.MULTILINE)
    assert len(rulings) == 11
    here = functions("tests/manifest/test_rulings.py")
    for ruling in rulings:
        assert ruling in ELSEWHERE or any(name.startswith(f"test_ruling_{ruling}") for name in here), ruling
    assert set(ELSEWHERE) <= set(rulings)


@pytest.mark.parametrize("ruling", ELSEWHERE)
def test_ruling_of_the_run_is_held_by_tests_that_exist(ruling):
    assert [place for place in ELSEWHERE[ruling] if place[1] not in functions(place[0])] == []


@pytest.mark.parametrize(
    ("disks", "boots"),
    [
        ([{}, {}], "disk-0"),
        ([{}, {"disk_type": "boot"}], "disk-1"),
        ([{"disk_type": "boot"}, {"boot_order_hint": 998}], "disk-1"),
        ([{"boot_order_hint": 1}, {"boot_order_hint": 0}], "disk-1"),
        ([{"boot_order_hint": 5}, {"boot_order_hint": 5, "disk_type": "boot"}], "disk-1"),
        ([{"disk_type": "boot"}, {"disk_type": "boot"}], "disk-0"),
        ([{"boot_order_hint": 0, "disk_type": "data"}, {"boot_order_hint": 1, "disk_type": "boot"}], "disk-0"),
    ],
)
def test_ruling_boot_disk_is_that_of_the_lowest_hint_then_of_type_boot_then_the_first(disks, boots):
    assert manifest_of(manifest(*disks)).boot_disk().id == boots


def test_ruling_boot_disk_of_a_writer_that_leaves_out_a_hint_of_0_is_a_warning():
    said = concerns(manifest_of(manifest({"disk_type": "boot"}, {"boot_order_hint": 1})))
    assert any(
        "boot disk is disk-1 by its boot_order_hint, though disk-0 has the disk_type boot" in one for one in said
    )


def test_ruling_boot_disk_has_a_hint_of_0_that_survives():
    assert manifest_of(manifest({"boot_order_hint": 0})).to_document()["disks"][0]["boot_order_hint"] == 0


def test_ruling_no_checksum_is_a_warning_for_each_such_disk():
    checksum = {"checksum": "sha256:" + "0" * 64}
    said = concerns(manifest_of(manifest({}, checksum, {})))
    assert [one.partition(":")[0] for one in said] == ["disks[0] disk-0", "disks[2] disk-2"]


@pytest.mark.parametrize(
    "key",
    [
        *(
            "hooks",
            "hook",
            "Hooks",
            "HOOKS",
            "pre_hook",
            "pre-hooks",
            "postHook",
            "on.command",
            "commands",
            "runCommand",
        ),
        *("script", "scripts", "first_boot_script", "hooks ", "hooks\n"),
    ],
)
def test_ruling_nothing_to_run_is_taken_at_any_depth(key):
    expected = "found something to run, expected no hooks, commands or scripts in a manifest"
    for document in (
        manifest(**{key: []}),
        manifest({key: "rm -rf /"}),
        manifest(vendor=[{"deep": [{key: {}}]}]),
        manifest(pipeline={"fix": {"enabled": True, key: "x"}}),
    ):
        assert any(expected in fault for fault in faults(document))


@pytest.mark.parametrize("key", ["description", "transcript", "hooked", "recommended", "commander", "subscription"])
def test_ruling_nothing_to_run_is_meant_by_other_words(key):
    assert manifest_of(manifest(**{key: "x"})).to_document()[key] == "x"
    assert manifest_of(manifest(metadata={"tags": {"hooks": "x"}})).metadata.tags == {"hooks": "x"}


def test_ruling_every_fault_is_told_in_one_run_with_its_place(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(
        '{"manifest_version": "1.1",\n "disks": [\n  {"id": "a b", "source_format": "ova",\n   "bytes": true,'
        ' "checksum": null},\n  {"id": "x"}, {"id": "x"}],\n "vm": {"cpu": "4"}, "hooks": [],\n'
        ' "pipeline": {"covert": {}}, "vm": {}}\n'
    )
    with pytest.raises(ManifestError) as refused:
        load_manifest(path)
    told = {fault.path: (fault.line, fault.expected) for fault in refused.value.faults}
    assert told.keys() >= {
        *("manifest_version", "disks[0].id", "disks[0].source_format", "disks[0].bytes", "disks[0].checksum"),
        *("disks[0].local_path", "disks[1].bytes", "disks[2].id", "vm", "hooks", "pipeline.covert"),
    }
    assert told["disks[0].bytes"] == (4, "an integer")
    assert told["disks[2].id"] == (5, "an id other than that of disks[1]")
    assert told["vm"] == (6, "each key once")
    assert all(fault.found and fault.expected for fault in refused.value.faults)
