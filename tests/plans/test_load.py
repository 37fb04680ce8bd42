"""What a plan may say, and that every fault is named at once with its place."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from hyperflow.plans import check
from hyperflow.plans.check import check_plans
from hyperflow.plans.library import load_profile
from hyperflow.plans.load import discover, load_plan
from hyperflow.plans.plan import PlanError
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "include" / "profiles"

GOOD = """\
plan: web
vcenter: {connection: vcenter}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /staging, output_directory: /images}
vms:
  - name: web01
"""


def write(tmp_path, text, name="plan.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def refusal(path, profiles=PROFILES):
    with pytest.raises(PlanError) as refused:
        load_plan(path, profiles)
    return [str(fault) for fault in refused.value.faults]


def faults(tmp_path, text):
    return refusal(write(tmp_path, text))


def test_the_smallest_plan_loads(tmp_path):
    plan = load_plan(write(tmp_path, GOOD), PROFILES)
    assert plan.name == "web"
    (vm,) = plan.vms
    assert (vm.slug, vm.dag_id, vm.profile.name) == ("web01", "migrate.web.web01", "kvm-migration")
    assert (vm.selector.kind, vm.selector.value) == ("name", "web01")


def test_the_projects_example_loads_without_a_fault_and_is_not_among_the_plans():
    """There it would become DAGs, its hosts the janitor's, and its folders a fault of whatever is copied from it."""
    assert [checked.faults for checked in check_plans([ROOT / "include" / "example-plan.yaml"])] == [()]
    assert [path for path in discover(ROOT / "include" / "plans") if "example" in path.name] == []


@pytest.mark.parametrize("path", sorted(PROFILES.iterdir()), ids=lambda path: path.name)
def test_the_projects_profiles_load(path):
    assert load_profile(path).name == path.stem


def test_the_seeds_profile_loads_as_it_is(tmp_path):
    text = """{
      "name": "kvm-migration",
      "description": "Export for KVM migration via hyper2kvm",
      "format": "ovf",
      "compress": false,
      "generate_manifest": true,
      "verify_manifest": true,
      "manifest_checksum": true,
      "manifest_target_format": "qcow2"
    }"""
    assert load_profile(write(tmp_path, text, "kvm-migration.json")).format == "ovf"
    assert load_plan(write(tmp_path, GOOD), tmp_path).vms[0].profile.description.endswith("hyper2kvm")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "vcenter: {con",
            "vcentre: {con",
            "vcentre: found an unknown key, expected vcenter (did you mean that?), or one of profile, "
            "profile_overrides, host, networks, target, boot_proof, snapshots, limits, cutover, drift and 10 more "
            "(line 2, column 1)",
        ),
        (
            "connection: kvm01",
            "conection: kvm01",
            "host.conection: found an unknown key, expected connection (did you mean that?), or one of "
            "staging_directory, output_directory (line 4, column 8)",
        ),
        (
            "connection: kvm01, ",
            "",
            "host.connection: found nothing, expected a value, here or at each VM (line 4, column 1)",
        ),
        (
            "/staging",
            "/a/../b",
            "host.staging_directory: found \"/a/../b\", expected an absolute path without '..', '.' or a "
            "last '/' (line 4, column 27)",
        ),
        (
            "name: web01",
            "name: 7",
            "vms[0].name: found 7, expected a string; put it in quotes (line 6, column 5)",
        ),
        (
            "name: web01",
            "name: ../web01",
            "vms[0].name: found \"../web01\", expected a VM's name, not empty, without control characters and '/', "
            "which vSphere writes as %2f (line 6, column 5)",
        ),
        (
            "name: web01",
            'name: ""',
            "vms[0].name: found \"\", expected a VM's name, not empty, without control characters and '/', "
            "which vSphere writes as %2f (line 6, column 5)",
        ),
        (
            "name: web01",
            'name: "web\\x1b01"',
            "vms[0].name: found \"web\\u001b01\", expected a VM's name, not empty, without control characters and '/', "
            "which vSphere writes as %2f (line 6, column 5)",
        ),
        (
            "  - name: web01",
            "  - target: {start: true}",
            "vms[0]: found none of them, expected exactly one of name, inventory_path, moref (line 6, column 5)",
        ),
        (
            "name: web01",
            "{name: web01, moref: vm-1}",
            "vms[0]: found name and moref, expected exactly one of name, inventory_path, moref (line 6, column 5)",
        ),
        (
            "name: web01",
            "moref: web01",
            'vms[0].moref: found "web01", expected a MoRef as vm-42 (line 6, column 5)',
        ),
        (
            "name: web01",
            "inventory_path: /DC0/vm/../../etc",
            'vms[0].inventory_path: found "/DC0/vm/../../etc", expected a path as /Datacenter/vm/folder/name '
            "(line 6, column 5)",
        ),
        (
            "kvm-migration",
            "kvm-migratoin",
            'profile: found "kvm-migratoin", expected kvm-migration (did you mean that?) (line 3, column 1)',
        ),
        (
            "profile: kvm-migration\n",
            "",
            "profile: found nothing, expected the name of a profile: kvm-migration (line 1, column 1)",
        ),
        (
            "plan: web",
            "plan: web.x",
            "plan: found \"web.x\", expected letters, digits, '_' and '-' (line 1, column 1)",
        ),
        (
            "vms:\n  - name: web01",
            "vms: []",
            "vms: found a list of 0, expected at least 1 (line 5, column 1)",
        ),
        (
            "vms:",
            "snapshots: remove\nvms:",
            "snapshots: found \"remove\", expected 'refuse' or 'allow' (line 5, column 1)",
        ),
        (
            "vms:",
            "networks: {VM Network: 'a,model=e1000'}\nvms:",
            'networks["VM Network"]: found "a,model=e1000", expected a libvirt name of letters, digits and '
            "_ . + - (line 5, column 12)",
        ),
        (
            "vms:",
            "limits: {parallel_disks: true}\nvms:",
            "limits.parallel_disks: found true, expected an integer (line 5, column 10)",
        ),
        (
            "vms:",
            "profile_overrides: {compress: true, manifest_target_format: raw}\nvms:",
            "profile_overrides.compress: found true with the format raw, expected true with qcow2 only "
            "(line 5, column 21)",
        ),
        (
            "vms:",
            "profile_overrides: {manifest_checksum: false}\nvms:",
            "profile_overrides.verify_manifest: found true without manifest_checksum, expected "
            "manifest_checksum: true with it (line 5, column 1)",
        ),
        (
            "vms:",
            "profile_overrides: {pipeline: {convert: {enabled: false}}}\nvms:",
            "profile_overrides.pipeline.convert.enabled: found false, expected true: without converted "
            "images there is no guest to boot and define (line 5, column 42)",
        ),
        (
            "vms:",
            "networks:\nvms:",
            "networks: found null, expected an object (line 5, column 1)",
        ),
    ],
)
def test_a_fault_is_named_with_its_place_and_what_is_allowed(tmp_path, old, new, said):
    assert old in GOOD
    assert said in faults(tmp_path, GOOD.replace(old, new))


@pytest.mark.parametrize("entry", ["web01", "7", "[a]", ""])
def test_a_vm_that_is_no_object_is_one_fault(tmp_path, entry):
    text = GOOD.replace("profile: kvm-migration\n", "") + f"    profile: kvm-migration\n  - {entry}\n"
    (said,) = faults(tmp_path, text)
    assert re.fullmatch(r"vms\[1\]: found .*, expected an object as {name: web01} \(line 7, column [45]\)", said)


def test_one_run_lists_every_fault_in_the_files_order(tmp_path):
    text = GOOD.replace("profile: kvm-migration", "profile: none\ncolour: red") + (
        "  - name: web01\n  - name: a\n    target: {name: d}\n"
        "  - moref: vm-7\n    target: {name: d, cpus: 0}\n"
        "    boot_proof: {timeout_seconds: soon}\n"
    )
    assert [fault.partition(": found")[0] for fault in faults(tmp_path, text)] == [
        "profile",
        "colour",
        "vms[1].name",
        "vms[3].target.name",
        "vms[3].target.cpus",
        "vms[3].boot_proof.timeout_seconds",
    ]


def test_a_host_setting_that_some_vms_lack_is_named_at_those(tmp_path):
    text = GOOD.replace("connection: kvm01, ", "") + "  - name: b\n    host: {connection: kvm02}\n"
    assert faults(tmp_path, text) == [
        "vms[0].host.connection: found nothing, expected a value, here or at the plan's top (line 6, column 5)"
    ]


def test_a_fault_in_a_profile_is_named_where_the_plan_names_the_profile(tmp_path):
    write(tmp_path, "name: other\nformat: ova\n", "broken.yaml")
    path = write(tmp_path, GOOD.replace("kvm-migration", "broken"))
    (said,) = refusal(path, tmp_path)
    assert said.startswith(f'profile: found a faulty profile, {tmp_path / "broken.yaml"}: format: found "ova"')
    assert said.endswith("(line 3, column 1)")


def test_a_profiles_name_is_its_files_name(tmp_path):
    with pytest.raises(PlanError, match='name: found "b", expected the file\'s name, "a"'):
        load_profile(write(tmp_path, "name: b\n", "a.yaml"))


@pytest.mark.parametrize("switch", ["generate_manifest: false", "pipeline: {inspect: {enabled: false}}"])
def test_a_switch_that_cannot_be_off_says_why(tmp_path, switch):
    with pytest.raises(PlanError, match="found false, expected true: "):
        load_profile(write(tmp_path, f"name: a\n{switch}\n", "a.yaml"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found nothing, expected a YAML document"),
        (b"plan: [", "(line 2, column 1)"),
        (b"plan: a\nplan: b\n", "plan: found the key twice (first in line 1)"),
        (b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "anchor or alias"),
        (b"plan: !!python/object/new:os.system [id]", "tag"),
        (b"plan: \xff", "byte 0xff at offset 6"),
        (b"- a\n- b\n", "(document): found a list of 2, expected an object"),
        (b"just text", '(document): found "just text", expected an object'),
        (b"[" * 3000, "deeper nesting"),
        (b"#" * (1024 * 1024 + 1), "more than 1048576 bytes"),
    ],
)
def test_a_hostile_or_broken_file_is_refused_with_a_reason(tmp_path, content, said):
    path = tmp_path / "plan.yaml"
    path.write_bytes(content)
    assert any(said in fault for fault in refusal(path))


def test_a_plan_that_is_no_readable_file_is_refused(tmp_path):
    assert "no file" in refusal(tmp_path / "none.yaml")[0]
    assert "no regular file" in refusal(tmp_path)[0]
    os.mkfifo(tmp_path / "fifo.yaml")
    assert "no regular file" in refusal(tmp_path / "fifo.yaml")[0]


@given(st.binary() | st.text(alphabet="planvms:-{}[]\n &*!'\"").map(str.encode))
def test_no_file_ends_in_a_traceback(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_bytes(content)
    assert refusal(path)


def test_plans_are_found_by_their_ending_sorted_and_without_hidden_files(tmp_path):
    for name in ("b.yaml", "a.yml", ".hidden.yaml", "notes.txt"):
        write(tmp_path, "", name)
    assert [path.name for path in discover(tmp_path)] == ["a.yml", "b.yaml"]
    with pytest.raises(PlanError, match="expected a folder of plans"):
        discover(tmp_path / "none")


def test_profiles_beside_the_plan_come_before_the_projects(tmp_path):
    (tmp_path / "profiles").mkdir()
    write(tmp_path / "profiles", "name: mine\ndescription: here\n", "mine.yaml")
    path = write(tmp_path, GOOD.replace("kvm-migration", "mine"))
    assert load_plan(path).vms[0].profile.description == "here"
    assert load_plan(write(tmp_path, GOOD)).vms[0].profile.name == "kvm-migration"


def test_a_folder_of_profiles_that_cannot_be_read_is_named_where_a_plan_names_a_profile(tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    listed = Path.iterdir

    def refused(folder):
        if folder == tmp_path / "profiles":  # which root may read all the same
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refused)
    (said,) = refusal(write(tmp_path, GOOD), None)
    assert said == (
        f"profile: found {tmp_path / 'profiles'}: Permission denied, expected a folder of profiles that can be read "
        "(line 3, column 1)"
    )


def test_plans_are_checked_against_each_other(tmp_path):
    first = write(tmp_path, GOOD, "a.yaml")
    same = write(tmp_path, GOOD, "b.yaml")
    apart = write(tmp_path, GOOD.replace("plan: web", "plan: c").replace("web01", "web02"), "c.yaml")
    broken = write(tmp_path, "", "d.yaml")
    checked = check_plans([first, same, apart, broken], PROFILES)
    assert [len(each.faults) for each in checked] == [0, 3, 0, 1]
    assert [fault.path for fault in checked[1].faults] == [
        "plan",
        "vms[0].host.staging_directory",
        "vms[0].host.output_directory",
    ]
    assert checked[3].plan is None


@pytest.mark.parametrize(
    ("vms", "said"),
    [
        ("[{name: web}, {name: b, target: {name: web}}]", "vms[1].target.name: found the domain name of vms[0] again"),
        (
            "[{name: b, target: {name: web}}, {name: web}]",
            'vms[1].target.name: found nothing, and so the slug "web", the domain name of vms[0] again',
        ),
        (
            "[{name: a, target: {name: web}}, {name: b, target: {name: web}}]",
            "vms[1].target.name: found the domain name of vms[0] again",
        ),
    ],
)
def test_two_domains_of_one_host_have_not_one_name(tmp_path, vms, said):
    text = GOOD.replace("vms:\n  - name: web01\n", f"vms: {vms}\n")
    (found,) = faults(tmp_path, text)
    assert found.startswith(f"{said}, expected a name for each domain of a host")
    elsewhere = text.replace("target", "host: {connection: kvm02}, target", 1)
    assert load_plan(write(tmp_path, elsewhere), PROFILES).vms


def against(tmp_path, old, new):
    """Faults of a plan of other folders, with one thing as it is in another plan beside it."""
    first = write(tmp_path, GOOD, "a.yaml")
    apart = GOOD.replace("plan: web", "plan: b").replace("/staging", "/s").replace("/images", "/i")
    assert old in apart
    second = write(tmp_path, apart.replace(old, new), "b.yaml")
    checked = check_plans([first, second], PROFILES)
    assert checked[0].faults == ()
    return [str(fault) for fault in checked[1].faults]


def test_domains_of_two_plans_have_not_one_name_but_for_one_vm(tmp_path):
    (said,) = against(tmp_path, "name: web01", "{name: b, target: {name: web01}}")
    assert said == (
        f'vms[0].target.name: found "web01", the domain name on kvm01 of VM "web01" in {tmp_path / "a.yaml"}, '
        "expected a name for each domain of a host"
    )
    assert len(against(tmp_path, "name: web01", "{moref: vm-7, target: {name: web01}}")) == 1
    for same in ("name: web01", "inventory_path: /DC/vm/web01", "{name: web01, target: {name: other}}"):
        assert against(tmp_path, "name: web01", same) == []
    (tmp_path / "a.yaml").unlink()
    assert check_plans([tmp_path / "b.yaml"], PROFILES)[0].faults == ()


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [("/i,", "/images,", "output"), ("/s,", "/staging,", "staging"), ("/i}", "/staging}", "output")],
)
def test_a_folder_is_of_one_vm_of_one_plan(tmp_path, old, new, key):
    (said,) = against(tmp_path, old, new) if old.endswith("}") else against(tmp_path, old.rstrip(","), new.rstrip(","))
    assert said == (
        f"vms[0].host.{key}_directory: found {new.rstrip(',}')}/web01 of kvm01, which {tmp_path / 'a.yaml'} uses, "
        "expected a folder for each VM"
    )


@pytest.mark.parametrize("name", ["plan.txt", "plan.json", "plan", ".plan.yaml"])
def test_a_file_that_airflow_does_not_read_as_a_plan_is_told(tmp_path, name):
    path = write(tmp_path, GOOD if name != "plan.json" else json.dumps(yaml.safe_load(GOOD)), name)
    (checked,) = check_plans([path], PROFILES)
    assert [str(fault) for fault in checked.faults] == [
        f'(file): found "{name}", expected a name that ends in .yaml or .yml and begins with no dot: Airflow reads no '
        "other file as a plan"
    ]
    (missing,) = check_plans([tmp_path / "none.txt"], PROFILES)
    assert len(missing.faults) == 1


def test_the_plans_beside_are_read_once_and_given(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(check, "load_plan", lambda path, *a, **k: read.append(path.name) or load_plan(path, *a, **k))
    (tmp_path / "profiles").symlink_to(PROFILES)
    paths = [write(tmp_path, GOOD.replace("web", name), f"{name}.yaml") for name in ("a", "b")]
    write(tmp_path, "plan: [", "broken.yaml")
    (checked,), beside = check.check_beside(paths[:1])
    assert checked.faults == ()
    assert [each.plan.name for each in beside if each.plan] == ["b"]
    assert sorted(read) == ["a.yaml", "b.yaml", "broken.yaml"]


def test_a_faulty_plan_beside_is_named_for_what_could_not_be_held_against_it(tmp_path):
    (tmp_path / "profiles").symlink_to(PROFILES)
    path = write(tmp_path, GOOD, "a.yaml")
    write(tmp_path, "plan: [", "b.yaml")
    write(tmp_path, GOOD.replace("plan: web", "plan: c") + "waves: [{name: one, members: [nobody]}]\n", "c.yaml")
    write(tmp_path, GOOD.replace("plan: web", "plan: d"), "d.yaml")
    assert check.not_compared(check.check_beside([path])[1]) == [
        "b.yaml beside it has faults and was not compared",
        "c.yaml beside it has faults and was compared as far as it could be read; its pools were not",
    ]
    plans, left_out = check.plans_of(check.plans_beside([path]))
    assert [plan.name for plan in plans] == ["d"]
    assert left_out == [f"{name}.yaml beside it has faults and its pools were not compared" for name in ("b", "c")]


def test_a_slug_counts_before_another_vms_name(tmp_path):
    slug = load_plan(write(tmp_path, GOOD.replace("web01", "web 01")), PROFILES).vms[0].slug
    plan = load_plan(write(tmp_path, GOOD.replace("web01", "web 01") + f"  - name: {slug}\n"), PROFILES)
    assert plan.vm(slug) is plan.vms[0]
    assert plan.vm(plan.vms[1].slug) is plan.vms[1]


def test_of_many_vms_the_one_that_was_meant_is_named_and_not_all(tmp_path):
    vms = "".join(f"  - name: w{number:03}-app\n" for number in range(300))
    plan = load_plan(write(tmp_path, GOOD.replace("  - name: web01\n", vms)), PROFILES)
    with pytest.raises(KeyError) as refused:
        plan.vm("w123-ap")
    assert refused.value.args[0].startswith(
        "vm: found 0 called 'w123-ap' in plan web, expected w123-app (did you mean that?), or one of w000-app, "
    )
    assert refused.value.args[0].endswith(", w009-app and 289 more")
    with pytest.raises(KeyError, match=r"expected one of w000-app, .*, w009-app and 290 more"):
        plan.vm("x")


def test_a_vm_is_found_by_slug_dag_id_or_its_word_in_the_plan(tmp_path):
    text = GOOD + "  - name: Web 02\n  - moref: vm-7\n"
    plan = load_plan(write(tmp_path, text), PROFILES)
    assert plan.vm("web01") is plan.vm("migrate.web.web01") is plan.vms[0]
    assert plan.vm("Web 02") is plan.vms[1]
    assert plan.vm("vm-7") is plan.vms[2]
    with pytest.raises(KeyError, match="found 0 called 'x' in plan web, expected one of web01, Web-02-"):
        plan.vm("x")
