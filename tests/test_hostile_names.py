"""Names that people and machines give to VMs, through everything that shows them or makes paths of them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from airflow.serialization.serialized_objects import DagSerialization
from hyperflow.hooks.records import safe
from hyperflow.kvmhost.stage import Job
from hyperflow.manifest.builder import build_manifest
from hyperflow.manifest.facts import DiskFacts, NicFacts, StagedDisk, VmFacts
from hyperflow.manifest.load import parse_manifest
from hyperflow.manifest.ovf import OVF, build_ovf
from hyperflow.manifest.report import Hosts, ReportedVm, Run
from hyperflow.manifest.report_builder import build_report
from hyperflow.manifest.save import canonical
from hyperflow.manifest.shown import shown, shown_in_markdown
from hyperflow.plans.load import load_plan
from hyperflow.plans.migration import effective
from hyperflow.triggers.job import JobTrigger
from hyperflow.workflows.migration import build_dag
from markdown_it import MarkdownIt
from structlog.testing import capture_logs

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "climbing": "../../../etc/cron.d/x",
    "dots": "..",
    "quotes": "a'b\"c`d$(reboot);e|f&g",
    "newline": "web01\n2026-01-01 ERROR forged",
    "carriage return": "web01\rforged",
    "ansi": "web01\x1b[2J\x1b]0;title\x07",
    "c1": "web01\x9b31m\x85next",
    "right to left": "web\u202e10\u2066evil\u2069",
    "separators": "a\u2028b\u2029c\u00a0d\u200b",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈" * 7 + "🚀🚀🚀",
    "80 emoji": "🚀" * 80,
    "markup": "<img src=x onerror=alert(1)>&amp;]]><!--",
    "markdown": "[x](javascript:alert(1)) ![y](http://evil.example/z) ``` **b**",
    "jinja": "{{ 7 * 7 }}{% raw %}",
    "template": "%s%n{0}",
    "option": "--help",
    "vsphere": "a%2fb%5cc%25",
    "yaml": "- no: [yes, ~] # x",
    "combining": "e" + "\u0301" * 79,
}
NAME = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]*")
SLUG = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,78}[A-Za-z0-9_])?")


def facts(name: str) -> VmFacts:
    return VmFacts(
        provider="vsphere",
        vm_id="vm-42",
        vm_name=name,
        datacenter=name,
        cpu=1,
        memory_mb=1024,
        firmware="bios",
        secureboot=False,
        guest_id="debian12_64Guest",
        guest_full_name=name,
        nics=(NicFacts("nic-0", "00:50:56:9a:10:01", name),),
        disks=(DiskFacts("disk-0", name, 512, 0),),
    )


def staged() -> list[StagedDisk]:
    return [StagedDisk(disk_id="disk-0", path="/s/web01-disk1.vmdk", bytes=1, sha256="0" * 64, virtual_bytes=512)]


def plan_of(folder: Path, name: str, **more: Any) -> Any:
    """A plan with that name, as a person writes it: a slash as vSphere shows it, what YAML cannot carry escaped.

    :param more: further keys of the plan
    """
    document = {
        "plan": "autumn",
        "vcenter": {"connection": "vc"},
        "profile": "kvm-migration",
        "host": {"connection": "kvm01", "staging_directory": "/srv/staging", "output_directory": "/srv/images"},
        "networks": {"*": "default"},
        "vms": [{"name": name.replace("/", "%2f")[:80]}],
        **more,
    }
    path = folder / "autumn.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=False))
    return load_plan(path, ROOT / "include" / "profiles")


def controls(name: str) -> bool:
    """Whether a plan refuses the name: vSphere gives no name with control characters."""
    return re.search("[\0-\x1f\x7f]", name) is not None


@NAME
def test_every_path_and_id_made_of_a_name_is_safe(tmp_path: Path, name: str) -> None:
    if controls(name):
        name = re.sub("[\0-\x1f\x7f]", "?", name)
    plan = plan_of(tmp_path, name)
    (vm,) = plan.vms
    run = effective(plan, vm)
    assert SLUG.fullmatch(vm.slug)
    assert vm.dag_id == f"migrate.autumn.{vm.slug}"
    assert safe(vm.dag_id) == vm.dag_id
    assert run.domain_name == vm.slug
    for path in (run.manifest_path, run.ovf_path, run.work_directory, run.staged_disk(0), run.image("disk-0")):
        assert path is not None
        assert Path(path).parts[:3] in (("/", "srv", "staging"), ("/", "srv", "images"))
        assert Path(path).parts[3] == vm.slug
        assert ".." not in Path(path).parts


@NAME
def test_a_plan_refuses_control_characters_and_says_so_in_one_line(tmp_path: Path, name: str) -> None:
    if not controls(name):
        assert plan_of(tmp_path, name).vms[0].selector.value == name.replace("/", "%2f")[:80]
        return
    with pytest.raises(ValueError, match="name: found") as refused:
        plan_of(tmp_path, name)
    assert PRINTABLE.fullmatch(str(refused.value))


@NAME
def test_a_dag_shows_a_name_and_obeys_none_of_it(tmp_path: Path, name: str) -> None:
    name = re.sub("[\0-\x1f\x7f]", "?", name)
    plan = plan_of(tmp_path, name)
    (vm,) = plan.vms
    dag = build_dag(plan, vm)
    assert DagSerialization.to_dict(dag)
    for text in (dag.dag_display_name, dag.description, *dag.tags):
        assert PRINTABLE.fullmatch(str(text))
    html = MarkdownIt("commonmark", {"html": True}).render(str(dag.doc_md))
    assert set(re.findall(r"<(/?\w+)", html)) <= {"p", "/p", "code", "/code"}
    told = ElementTree.fromstring(f"<x>{html}</x>").findall(".//code")  # noqa: S314 - made above
    assert told[0].text == shown(vm.selector.value)


@pytest.mark.parametrize("name", [NAMES["jinja"], "{{ conn.vcenter01.password }}", "{% raw %}"])
def test_what_a_person_is_asked_shows_a_name_and_obeys_none_of_it(tmp_path: Path, name: str) -> None:
    dag = build_dag(plan := plan_of(tmp_path, name, cutover={"strategy": "cold", "approval": {}}), plan.vms[0])
    context: Any = {"conn": SimpleNamespace(vcenter01=SimpleNamespace(password="secret"))}
    for task, question in (
        ("approve_shutdown", f"Shut down {name}?"),
        ("approve_start", f"Start {name} on KVM for good?"),
    ):
        asking: Any = dag.get_task(task)
        asking.render_template_fields(context)
        assert (asking.subject, asking.about, asking.body) == (question, question, None)


@NAME
def test_manifest_ovf_and_report_carry_the_name_as_it_is(name: str) -> None:
    vm = facts(name)
    manifest = build_manifest(vm, staged(), exported=datetime.now(UTC), job_id="dag/run")
    again = parse_manifest(canonical(manifest))
    assert again.source is not None
    assert again.source.vm_name == name
    ovf = ElementTree.fromstring(build_ovf(vm, staged()))  # noqa: S314 - made here
    found = ovf.findtext(f".//{{{OVF}}}VirtualSystem/{{{OVF}}}Name")
    assert found == re.sub("[\0-\x08\x0b\x0c\x0e-\x1f]", lambda match: f"\\u{ord(match[0]):04x}", name).replace(
        "\r", "\n"
    )
    report = build_report(
        run=Run(dag_id="d", run_id="r", plan="p", overrides={}),
        vm=ReportedVm.model_validate({"name": name, "slug": "s", "selector": name}),
        hosts=Hosts(vcenter="vc", kvm="kvm"),
        stages={},
        started=datetime.now(UTC),
        ended=datetime.now(UTC),
    )
    assert json.loads(json.dumps(report.to_document()))["vm"]["name"] == name


@NAME
def test_a_line_of_a_log_stays_one_line_that_reads_as_it_is_written(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Job("check").log(f"found {name}")
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert PRINTABLE.fullmatch(said.rstrip("\n"))
    trigger = JobTrigger(ssh_conn_id="kvm", program="p", job="j")
    with capture_logs() as lines:
        trigger._relay(b"2026-01-21T20:00:00Z found " + name.encode())
    (line,) = lines
    assert PRINTABLE.fullmatch(line["event"])
    assert PRINTABLE.fullmatch(shown(name))
    assert shown(shown(name)) == shown(name)


def test_a_name_that_is_plain_is_shown_as_it_is() -> None:
    for name in ("web01", "Größe 日本 (old) #3", "a_b*c"):
        assert shown(name) == name
    assert shown_in_markdown("web01") == "` web01 `"


def test_xml_in_an_annotation_stays_text() -> None:
    vm = facts("</ovf:Info><evil/>&lt;")
    ovf = build_ovf(vm, staged())
    assert "<evil/>" not in ovf
    assert ElementTree.fromstring(ovf).findall(".//evil") == []  # noqa: S314 - made here
