"""A plan that is deleted or broken while a run of it works: the run's DAG stays until its end, and is the same."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
from hyperflow.operators.kept_plan import ENDED, FOLDER, GRACE, keep_plan, kept_plans, let_go_of_plan
from hyperflow.plans.survey import Survey, SurveyedVm, write_survey
from hyperflow.workflows.migration import build_dag
from hyperflow.workflows.plan_folder import read_plan_folder

PLAN = """
plan: autumn
vcenter: {connection: vc}
profile: kvm-migration
host: {connection: kvm01, staging_directory: /srv/staging, output_directory: /srv/images}
networks: {"*": default}
vms: [{name: web01}, {name: db01}]
waves: [{name: first, members: ["*"]}]
"""
RUN = "migrate.autumn.web01/manual__1"
WAVE_RUN = "wave.autumn.first/manual__1"
GOLD = SurveyedVm(
    name="x", inventory_path="/dc/vm/x", host=None, power_state="poweredOn", tags=["gold"], capacity_bytes=1
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan of which the DAG of web01 has a run that works."""
    path = tmp_path / "plans" / "autumn.yaml"
    path.parent.mkdir()
    path.write_text(PLAN)
    monkeypatch.setenv("AIRFLOW__HYPERFLOW__PLANS_FOLDER", str(path.parent))
    keep_plan(path, RUN)
    return path


def dags() -> dict[str, Any]:
    """The DAGs of VMs, as Airflow keeps them, but for the tag of their wave, which a copy of a run has not."""
    found = {
        vm.dag_id: DagSerialization.to_dict(build_dag(plan, vm)) for plan in read_plan_folder().plans for vm in plan.vms
    }
    for dag in found.values():
        dag["dag"]["tags"] = [tag for tag in dag["dag"]["tags"] if not tag.startswith("wave:")]
    return found


def made_by(file: str) -> dict[str, Any]:
    """What Airflow gets of a file of DAGs."""
    made = runpy.run_path(str(ROOT / "dags" / file))
    return {name: DagSerialization.to_dict(dag) for name, dag in made.items() if isinstance(dag, DAG)}


def spoil(plan: Path, what: str) -> None:
    """Have the plan deleted, broken, or read without what its run is of."""
    if what == "deleted":
        plan.unlink()
    elif what == "broken":
        plan.write_text(PLAN.replace("vms:", "vmz:"))
    else:
        plan.write_text(PLAN.replace("{name: web01}, ", "").replace("first", "second"))


@pytest.mark.parametrize("what", ["deleted", "broken", "without the VM"])
def test_the_dag_of_a_run_that_works_stays_as_it_was(plan: Path, what: str) -> None:
    before = dags()
    assert set(before) == {"migrate.autumn.web01", "migrate.autumn.db01"}
    spoil(plan, what)
    after = dags()
    assert after["migrate.autumn.web01"] == before["migrate.autumn.web01"]
    assert ("migrate.autumn.db01" in after) == (what == "without the VM")


@pytest.mark.parametrize("what", ["deleted", "broken", "without the VM"])
def test_a_plan_that_is_spoilt_while_a_vm_works_takes_no_wave_of_another_plan_away(plan: Path, what: str) -> None:
    (plan.parent / "winter.yaml").write_text(PLAN.replace("autumn", "winter").replace("01", "02"))
    spoil(plan, what)
    left = {"wave.winter.first"} | ({"wave.autumn.second"} if what == "without the VM" else set())
    assert set(made_by("migration_waves.py")) == left


@pytest.mark.parametrize("what", ["deleted", "broken", "without the VM"])
def test_a_wave_that_works_stays_as_it_was_and_the_dags_of_its_vms_with_it(plan: Path, what: str) -> None:
    keep_plan(plan, WAVE_RUN)
    before, vms = made_by("migration_waves.py"), dags()
    assert set(before) == {"wave.autumn.first"}
    spoil(plan, what)
    assert made_by("migration_waves.py")["wave.autumn.first"] == before["wave.autumn.first"]
    assert dags() == vms
    assert set(made_by("vm_migrations.py")) == set(vms)


def test_a_wave_that_works_keeps_the_members_that_its_survey_chose(plan: Path) -> None:
    """A new survey, of a plan that was changed meanwhile, need not know them."""
    plan.write_text(PLAN.replace('["*"]', "[{tag: gold}]"))
    survey = write_survey(plan, "autumn", Survey(vms={"web01": GOLD, "db01": GOLD}))
    keep_plan(plan, WAVE_RUN, survey)
    before = made_by("migration_waves.py")["wave.autumn.first"]
    write_survey(plan, "autumn", Survey(vms={"db01": GOLD.model_copy(update={"tags": []})}))
    assert made_by("migration_waves.py")["wave.autumn.first"] == before
    assert set(dags()) == {"migrate.autumn.web01", "migrate.autumn.db01"}


def test_what_is_wrong_with_a_wave_takes_no_dag_of_a_vm_that_works_away(plan: Path) -> None:
    plan.write_text(PLAN.replace('["*"]', "[{tag: gold}]"))  # and nobody has asked the vCenter
    keep_plan(plan, RUN)
    assert set(dags()) == {"migrate.autumn.web01"}


def test_the_vms_of_a_wave_that_works_are_those_of_their_good_plan(plan: Path) -> None:
    keep_plan(plan, WAVE_RUN)
    plan.write_text(PLAN.replace("first", "second").replace("/srv/images", "/srv/elsewhere"))
    assert "/srv/elsewhere" in str(made_by("vm_migrations.py")["migrate.autumn.db01"])


def test_the_dag_is_there_until_airflow_has_seen_the_end_and_then_goes_with_its_copy(plan: Path) -> None:
    plan.unlink()
    let_go_of_plan(plan, RUN)
    assert list(dags()) == ["migrate.autumn.web01"]
    ended = plan.parent / FOLDER / RUN / ENDED
    ended.write_text((datetime.now(UTC) - GRACE * 1.1).isoformat())
    assert dags() == {}
    assert not ended.parent.parent.exists()


def test_a_copy_that_another_reader_has_removed_meanwhile_is_passed_over(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = Path.iterdir

    def with_removed(folder: Path) -> Iterator[Path]:
        yield from below(folder)
        if folder.parent == plan.parent or folder.parent.name == FOLDER:
            yield folder / "gone"

    monkeypatch.setattr(Path, "iterdir", with_removed)
    assert [kept.dag for kept in kept_plans(plan.parent)] == ["migrate.autumn.web01"]


def test_a_run_that_is_gone_on_with_has_its_copy_for_itself_again(plan: Path) -> None:
    let_go_of_plan(plan, RUN)
    keep_plan(plan, RUN)
    assert not (plan.parent / FOLDER / RUN / ENDED).exists()


def test_a_folder_that_cannot_be_written_keeps_nothing_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = tmp_path / "plans" / "autumn.yaml"
    plan.parent.mkdir()
    plan.write_text(PLAN)
    (plan.parent / FOLDER).write_text("a file where the folder would be")
    keep_plan(plan, RUN)
    let_go_of_plan(plan, RUN)
    assert "do not delete or break it" in caplog.text
    assert list(kept_plans(plan.parent)) == []
