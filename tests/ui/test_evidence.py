"""What a boot left for people reaches the run's records, most of all when the guest did not come up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hyperflow.hooks.kvmhost import KvmHostAway, KvmHostError
from hyperflow.manifest.report import BootProof, Hosts, Report, ReportedVm, Run
from hyperflow.manifest.report_builder import build_report
from hyperflow.operators.report import WriteReportOperator
from hyperflow.plans.load import load_plan
from hyperflow.plans.migration import effective

PLAN = """
plan: p
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms: [{name: web01}]
"""
BOOT = "/srv/images/web01/boot"
PNG = b"\x89PNG\r\n\x1a\nnot looked into"
BOTH = {f"{BOOT}/console.log": b"Kernel panic", f"{BOOT}/screenshot.png": PNG}
FAILED, PROVEN = BootProof(proven=False), BootProof(proven=True, console_log=f"{BOOT}/console.log")


class Host:
    """A KVM host that has some files, or is away."""

    def __init__(self, files: dict[str, bytes] | None) -> None:
        self.files = files

    @contextmanager
    def connected(self) -> Iterator[Host]:
        if self.files is None:
            raise KvmHostAway("no SSH session")
        yield self

    def fetch(self, client: Host, path: str, limit: int) -> bytes:
        assert self.files is not None
        if path not in self.files:
            raise KvmHostError(f"{path}: No such file or directory")
        return self.files[path][:limit]


@pytest.fixture
def operator(tmp_path: Path) -> Any:
    (tmp_path / "p.yaml").write_text(PLAN)
    plan = load_plan(tmp_path / "p.yaml")
    about = {"plan": "p", "plan_file": str(plan.path), "slug": "web01", "selector": "web01", "vcenter": "vc"}
    made = WriteReportOperator(task_id="report", host_connection="kvm01", **about)
    made.migration = effective(plan, plan.vm("web01")).model_dump(mode="json", by_alias=True)
    return made


def report(proof: BootProof | None) -> Report:
    now = datetime.now(UTC)
    about = {"run": Run(), "vm": ReportedVm(name="web01"), "hosts": Hosts(kvm="kvm01"), "stages": {}}
    return build_report(**about, started=now, ended=now, manifest=None, boot_proof=proof)  # type: ignore[arg-type]


def kept(operator: Any, files: dict[str, bytes] | None, proof: BootProof | None, folder: Path) -> dict[str, Any] | None:
    operator.__dict__["host"] = Host(files)
    told: dict[str, Any] = operator.with_evidence(report(proof), folder).to_document()
    return told["boot_proof"]  # type: ignore[no-any-return]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def test_a_guest_that_did_not_come_up_has_console_and_screen_in_its_report_and_records(
    operator: Any, tmp_path: Path
) -> None:
    proof = kept(operator, BOTH, FAILED, tmp_path / "run")
    assert proof == {
        "proven": False,
        "console_log": f"{BOOT}/console.log",
        "screenshot": f"{BOOT}/screenshot.png",
    }
    assert (tmp_path / "run/console.log").read_bytes() == b"Kernel panic"
    assert (tmp_path / "run/screenshot.png").read_bytes() == PNG


def test_the_report_names_only_what_was_there(operator: Any, tmp_path: Path) -> None:
    ended = {f"{BOOT}/console.log": b"Kernel panic", f"{BOOT}/screenshot.png": b"<script>"}
    for files in (ended, {f"{BOOT}/console.log": b"Kernel panic"}):
        assert kept(operator, files, FAILED, tmp_path / "run") == {
            "proven": False,
            "console_log": f"{BOOT}/console.log",
        }
        assert names(tmp_path / "run") == ["console.log"]


@pytest.mark.parametrize("proof", [FAILED, None], ids=["nothing-left", "not-booted"])
def test_what_an_earlier_try_of_the_run_left_is_not_shown_as_this_ones(
    operator: Any, tmp_path: Path, proof: BootProof | None
) -> None:
    kept(operator, BOTH, FAILED, tmp_path / "run")
    assert kept(operator, {}, proof, tmp_path / "run") == (proof and proof.to_document())
    assert names(tmp_path / "run") == []


def test_a_host_that_is_away_changes_nothing_in_the_report(operator: Any, tmp_path: Path) -> None:
    assert kept(operator, None, PROVEN, tmp_path / "run") == PROVEN.to_document()
    assert names(tmp_path / "run") == []


def test_a_run_that_booted_nothing_asks_no_host(operator: Any, tmp_path: Path) -> None:
    operator.migration = None  # it failed before its settings were known
    assert operator.with_evidence(report(None), tmp_path / "run").boot_proof is None
