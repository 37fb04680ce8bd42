"""profile < plan < VM < run."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hyperflow.plans.load import load_plan
from hyperflow.plans.merge import merge
from hyperflow.plans.migration import Migration, effective
from hyperflow.plans.overrides import Overrides, parse_overrides
from hyperflow.plans.plan import PlanError
from hypothesis import given
from hypothesis import strategies as st

PROFILES = Path(__file__).parents[2] / "include" / "profiles"

PLAN = """\
plan: web
vcenter: {connection: vcenter, datacenter: DC0}
profile: kvm-migration
profile_overrides: {pipeline: {fix: {backup: false}}}
host: {connection: kvm01, staging_directory: /staging, output_directory: /images}
networks: {VM Network: default, "*": isolated}
target: {cpus: 2}
snapshots: allow
vms:
  - name: web01
  - name: db 1
    profile_overrides: {compress: true, pipeline: {fix: {update_grub: false}, convert: {compress_level: 3}}}
    host: {connection: kvm02}
    networks: {VM Network: db}
    target: {memory_mb: 4096, name: db1, firmware: uefi}
    boot_proof: {timeout_seconds: 60, memory_mb: 512}
    snapshots: refuse
    limits: {parallel_disks: 4}
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN)
    return load_plan(tmp_path / "plan.yaml", PROFILES)


def test_the_plans_settings_hold_for_a_vm_that_says_nothing(plan):
    migration = effective(plan, plan.vms[0])
    assert (migration.vcenter_connection, migration.datacenter, migration.host_connection) == (
        "vcenter",
        "DC0",
        "kvm01",
    )
    assert (migration.staging_directory, migration.output_directory) == ("/staging/web01", "/images/web01")
    assert (migration.domain_name, migration.cpus, migration.memory_mb) == (
        "web01",
        2,
        None,
    )
    assert (migration.snapshots, migration.parallel_disks, migration.boot_timeout_seconds) == (
        "allow",
        2,
        900,
    )
    assert migration.libvirt_network("VM Network") == "default"
    assert migration.libvirt_network("DMZ") == "isolated"


def test_a_vms_settings_are_laid_over_the_plans_key_by_key(plan):
    migration = effective(plan, plan.vms[1])
    assert migration.host_connection == "kvm02"
    assert migration.staging_directory == f"/staging/{plan.vms[1].slug}"
    assert (migration.cpus, migration.memory_mb, migration.domain_name) == (2, 4096, "db1")
    assert migration.firmware == "uefi"
    assert migration.networks == {"VM Network": "db", "*": "isolated"}
    assert (migration.snapshots, migration.parallel_disks) == ("refuse", 4)
    assert (migration.boot_timeout_seconds, migration.boot_memory_mb) == (60, 512)


def test_overrides_of_the_profile_reach_the_manifests_pipeline(plan):
    pipeline = effective(plan, plan.vms[1]).pipeline.to_document()
    assert pipeline["fix"]["backup"] is False  # of the plan
    assert pipeline["fix"]["update_grub"] is False  # of the VM
    assert pipeline["fix"]["regen_initramfs"] is True  # of the profile
    assert pipeline["convert"] == {
        "enabled": True,
        "compress": True,
        "compress_level": 3,
        "compress_type": "zstd",
    }
    assert list(pipeline) == ["inspect", "fix", "convert", "validate"]


def test_a_run_sets_host_directory_format_compression_and_the_two_switches(plan):
    run = parse_overrides(
        {
            "host_connection": "kvm09",
            "output_directory": "/elsewhere",
            "output_format": "raw",
            "compress": False,
            "skip_boot": True,
            "dry_run": True,
        }
    )
    migration = effective(plan, plan.vms[1], run)
    assert (migration.host_connection, migration.skip_boot, migration.dry_run) == ("kvm09", True, True)
    assert migration.output.to_document() == {"directory": f"/elsewhere/{migration.slug}", "format": "raw"}
    assert migration.pipeline.to_document()["convert"] == {"enabled": True, "compress": False}


def test_a_plan_leaves_the_boot_proof_out_for_one_vm_and_the_report_says_why(tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN.replace("boot_proof: {", "boot_proof: {enabled: false, "))
    web, db = (effective(one, vm) for one in [load_plan(tmp_path / "plan.yaml", PROFILES)] for vm in one.vms)
    assert (web.skip_boot, db.skip_boot) == (False, True)
    assert "boot_proof.enabled of the plan" in db.why_skipped("boot")


@pytest.mark.parametrize(
    ("conf", "task", "reason"),
    [
        ({}, "export", None),
        ({}, "boot", None),
        (
            {"skip_boot": True},
            "boot",
            "skip_boot of the run, or boot_proof.enabled of the plan: nothing proves that this guest boots",
        ),
        ({"skip_boot": True}, "define", None),
        ({"dry_run": True}, "define", "dry run"),
    ],
)
def test_a_task_skips_itself_for_a_reason_that_the_run_knows(plan, conf, task, reason):
    """So that one which was skipped without a reason is known as one that somebody has ended."""
    assert effective(plan, plan.vms[0], parse_overrides(conf)).why_skipped(task) == reason


def test_a_stage_that_the_profile_has_switched_off_says_so(plan):
    migration = effective(plan, plan.vms[0])
    pipeline = migration.pipeline.model_copy(update={"convert": None})
    without = migration.model_copy(update={"pipeline": pipeline, "verify_manifest": False})
    assert "disabled in the profile" in without.why_skipped("convert")
    assert "convert is disabled" in without.why_skipped("validate")
    assert "verify_manifest disabled" in without.why_skipped("checksum")
    assert without.why_skipped("inspect") is None


def test_null_in_a_run_is_as_in_the_plan(plan):
    conf = dict.fromkeys(("host_connection", "output_directory", "output_format", "compress"))
    assert effective(plan, plan.vms[1], parse_overrides(conf)) == effective(plan, plan.vms[1])
    assert parse_overrides({}) == Overrides()


def test_a_run_may_end_with_its_window(plan):
    migration = effective(plan, plan.vms[0], parse_overrides({"not_after": "2026-11-28T04:00:00+01:00"}))
    assert migration.not_after == datetime(2026, 11, 28, 3, 0, tzinfo=UTC)
    assert Migration.model_validate(migration.model_dump(mode="json", by_alias=True)) == migration
    for wrong in ("2026-11-28T04:00:00", "tonight"):
        with pytest.raises(PlanError, match=r"not_after: .* a time with its zone"):
            parse_overrides({"not_after": wrong})


def test_a_wrong_conf_is_refused_with_all_its_faults():
    conf = {"outputformat": "raw", "output_directory": "images", "compress": "yes", "skip_boot": None}
    with pytest.raises(PlanError) as refused:
        parse_overrides(conf)
    said = {fault.path: str(fault) for fault in refused.value.faults}
    assert set(said) == set(conf)
    assert "output_format (did you mean that?)" in said["outputformat"]
    assert str(refused.value).startswith("dag_run.conf: ")
    with pytest.raises(PlanError, match="found a list of 0, expected an object"):
        parse_overrides([])


def test_a_run_that_contradicts_the_plan_is_refused(plan):
    with pytest.raises(PlanError, match="compress: found true with the format raw"):
        effective(plan, plan.vms[1], parse_overrides({"output_format": "raw"}))


@pytest.mark.parametrize("directory", ["/staging", "/staging/web01/work"])
def test_images_never_go_into_the_staging_folder_of_the_vm(plan, directory):
    with pytest.raises(PlanError, match=r"output_directory: found .*which meets the staging folder"):
        effective(plan, plan.vms[0], parse_overrides({"output_directory": directory}))


def test_every_path_of_a_migration_is_inside_the_vms_own_folders(plan):
    migration = effective(plan, plan.vms[0])
    assert migration.staged_disk(0) == "/staging/web01/web01-disk1.vmdk"
    assert migration.manifest_path == "/staging/web01/artifact-manifest.json"
    assert migration.ovf_path == "/staging/web01/web01.ovf"
    assert migration.work_directory == "/staging/web01/work"
    assert migration.report_path == "/images/web01/report.json"
    assert migration.boot_directory == "/images/web01/boot"


def test_a_migration_survives_json(plan):
    for vm in plan.vms:
        migration = effective(plan, vm)
        assert Migration.model_validate_json(migration.model_dump_json()) == migration
        assert Migration.model_validate(migration.model_dump(mode="json")) == migration


# Layers of one shape, as the models make them: what is an object in one is none else in another.
LEAVES = {"a": st.integers(), "b": st.none() | st.lists(st.integers())}
LAYER = st.fixed_dictionaries(
    {},
    optional=LEAVES | {"o": st.fixed_dictionaries({}, optional=LEAVES | {"p": st.dictionaries(st.text(), st.text())})},
)


@given(LAYER, LAYER, LAYER)
def test_merging_is_associative_and_the_last_layer_is_kept_whole(one, two, three):
    assert merge(merge(one, two), three) == merge(one, merge(two, three)) == merge(one, two, three)
    assert merge(merge(one, two), two) == merge(one, two)
    assert merge(one, {}) == merge({}, one) == one
