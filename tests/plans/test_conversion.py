"""What a conversion does is decided before anything runs: by the manifest, a profile, and what the person asked."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest
from hyperflow.manifest.load import manifest_of
from hyperflow.plans.conversion import Conversion, decide
from hyperflow.plans.plan import PlanError
from hyperflow.plans.profile import Profile

PATH = PurePosixPath("/srv/export/manifest.json")
DISK = {"id": "disk-0", "source_format": "qcow2", "bytes": 1, "local_path": "/srv/export/a.qcow2"}
PROFILE = Profile(name="mine", manifest_target_format="raw")
CONVERT = {"convert": {"enabled": True}}
MAC = "00:50:56:9a:10:01"
HASH = "$6$saltsalt$" + "a" * 86


def decided(document: dict[str, Any], **asked: Any) -> Conversion:
    manifest = manifest_of({"manifest_version": "1.0", "disks": [DISK], **document})
    return decide(manifest, PATH, PROFILE, host_connection="localhost", **asked)


def faults(document: dict[str, Any], **asked: Any) -> list[str]:
    with pytest.raises(PlanError) as refused:
        decided(document, **asked)
    return [str(fault) for fault in refused.value.faults]


def test_ruling_without_a_pipeline_the_profiles_runs_in_the_profiles_format() -> None:
    run = decided({})
    assert run.pipeline.enabled() == ["inspect", "fix", "convert", "validate"]
    assert (run.profile, run.output.format, run.images) == ("mine", "raw", {"disk-0": "disk-0.raw"})


def test_a_manifests_own_pipeline_output_and_options_count() -> None:
    run = decided(
        {
            "pipeline": CONVERT,
            "output": {"directory": "images", "filename": "web.img"},
            "options": {"verbose": 3, "report": {"path": "reports/web.json"}},
        }
    )
    assert (run.profile, run.pipeline.enabled(), run.output.format) == (None, ["convert"], "qcow2")
    assert run.image("disk-0") == "/srv/export/images/web.img"
    assert (run.verbose, run.report) == (3, "/srv/export/images/reports/web.json")


def test_what_the_person_asks_comes_last() -> None:
    document = {"pipeline": CONVERT, "output": {"directory": "/a", "format": "vdi"}}
    run = decided(document, output_directory="/b", output_format="raw", dry_run=True)
    assert (run.image("disk-0"), run.report, run.dry_run) == ("/b/disk-0.raw", "/b/report.json", True)


def test_passwords_hashes_stay_in_the_manifest_on_the_host() -> None:
    run = decided({"configuration": {"users": {"deploy": {"password_hash": HASH}}}})
    assert HASH not in run.model_dump_json() + str(run.fix_options({}, []))


def test_fix_is_told_what_vmware_tools_saw_on_each_card() -> None:
    run = decided({"pipeline": {"fix": {"enabled": True}, "convert": {"enabled": True}}})
    cards = [{"mac": MAC, "addresses": ["192.0.2.10/24"], "type": "vmxnet3"}, {"mac": MAC[:-1] + "2"}]
    assert run.fix_options({}, cards)["nics"] == [
        {"mac": MAC, "addresses": ["192.0.2.10/24"]},
        {"mac": MAC[:-1] + "2", "addresses": []},
    ]


def test_a_stage_is_asked_with_the_contracts_defaults_and_without_foreign_keys() -> None:
    run = decided({"pipeline": {"fix": {"enabled": True, "x_vendor": 1}, "convert": {"enabled": True, "x": 2}}})
    asked = run.fix_options({}, [])
    assert (asked["backup"], asked["fstab_mode"], asked["remove_vmware_tools"]) == (True, "stabilize-all", False)
    assert not {"enabled", "x_vendor", "configuration"} & asked.keys()
    assert run.convert_options({}, "disk-0", None) == {
        "manifest": {},
        "disk_id": "disk-0",
        "overlay": None,
        "output_directory": "/srv/export/output",
        "filename": "disk-0.qcow2",
        "format": "qcow2",
        "compress": False,
        "compress_level": None,
        "compress_type": "zstd",
        "hash_image": True,
    }


@pytest.mark.parametrize(
    ("pipeline", "found"),
    [({}, "every stage disabled"), ({"validate": {"enabled": True}}, "only validate enabled")],
)
def test_ruling_a_run_in_which_no_stage_does_anything_is_refused(pipeline: dict[str, Any], found: str) -> None:
    (fault,) = faults({"pipeline": pipeline})
    assert fault.startswith(f"pipeline: found {found}")


def test_names_that_root_must_not_write_by_somebody_elses_wish_are_refused_all_at_once() -> None:
    told = faults({"output": {"filename": ".bashrc"}, "options": {"report": {"path": "../../root/x.json"}}})
    assert [fault.split(":")[0] for fault in told] == ["output.filename", "options.report.path"]
    for path in ("/etc/cron.d/x.json", "authorized_keys", ".ssh/x.json", "disk-0.json"):
        document = {"options": {"report": {"path": path}}, "output": {"filename": "disk-0.json"}}
        assert any("options.report.path" in fault for fault in faults(document)), path


def test_compression_is_for_qcow2_and_two_images_do_not_share_a_name() -> None:
    (fault,) = faults({"pipeline": {"convert": {"enabled": True, "compress": True}}}, output_format="raw")
    assert fault.startswith("pipeline.convert.compress: found true with the format raw")
    two = [DISK, DISK | {"id": "disk-1", "local_path": "/b"}]
    document = {"disks": two, "pipeline": CONVERT, "output": {"filename": "disk-1.raw"}}
    (fault,) = faults(document, output_format="raw")
    assert fault.startswith("output.filename")


def test_what_comes_to_nothing_is_a_warning() -> None:
    hostname = {"configuration": {"hostname": {"hostname": "a"}}}
    assert "configuration is not applied" in " ".join(decided({**hostname, "pipeline": CONVERT}).warnings)
    assert "thrown away" in " ".join(decided({"pipeline": {"fix": {"enabled": True}}}).warnings)
    assert not any("configuration" in warning for warning in decided(hostname).warnings)
