"""Waves, run by an Airflow with a database of its own: each wave is the real one, the runs of its VMs are played.

A test calls :func:`run`; what is in ``__main__`` works in the process that it starts, in the Airflow's home.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.api_fastapi.app import create_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api.datamodels.hitl import UpdateHITLDetailPayload
from airflow.api_fastapi.core_api.routes.public.hitl import update_hitl_detail
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dagrun import DagRun
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseOperator
from airflow.utils import timezone
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from hyperflow.operators import wave_vm
from hyperflow.operators.proven import remember_proven
from hyperflow.plans.load import load_plan
from hyperflow.plans.plan import Plan
from hyperflow.workflows.wave import build_wave
from sqlalchemy.orm import joinedload

from tests import own_airflow

LOOK = 0.2  # seconds between looks at what is to be played
LONGEST = 1800  # seconds for all waves of a story
AT_WORK = ["scheduled", "queued", "running", "deferred"]
QUESTION = joinedload(TaskInstance.hitl_detail)
ALICE = SimpleAuthManagerUser(username="alice", role="ADMIN")
# How a VM's run may end: what its report's task tells.
ENDS: dict[str, dict[str, Any]] = {
    "migrated": {"outcome": "migrated"},
    "rehearsed": {"outcome": "rehearsed"},
    "failed": {"outcome": "failed", "errors": [{"stage": "boot", "message": "it does not come up"}]},
    "deleted": {"outcome": "deleted"},  # by a person, in the middle of it
    "drifted": {"outcome": "failed", "drifted": True, "errors": [{"stage": "snapshot", "message": "it drifted"}]},
}


@dataclass(frozen=True)
class Story:
    """What happens around the waves.

    :param waves: the waves that are run, one after the other, each with its run's conf
    :param ends: slug -> how its runs end, a word of ENDS each, in their order; all others are migrated
    :param answers: ``wave.task`` -> what alice answers there, in turn. Of questions that are open together the first
        here is answered first, and the next when what came of that has been done. Others nobody answers in time
    :param proven: slugs of VMs that a run has proven before
    :param paused: slugs of VMs whose DAGs somebody has paused
    """

    waves: list[tuple[str, dict[str, Any]]]
    ends: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    proven: list[str] = field(default_factory=list)
    paused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Told:
    """What came of one run of a wave.

    :param report: ``wave-report.json``
    :param runs: slug -> conf of each run that the wave has started
    :param questions: task -> what it asked, as Airflow has kept it
    """

    report: dict[str, Any]
    runs: dict[str, list[dict[str, Any]]]
    questions: dict[str, dict[str, Any]]

    def outcomes(self) -> dict[str, str]:
        """What became of each VM."""
        return {vm["slug"]: vm["outcome"] for vm in self.report["vms"]}

    def reason(self, slug: str) -> str:
        """Why a VM failed, or was not started."""
        (vm,) = (vm for vm in self.report["vms"] if vm["slug"] == slug)
        return str(vm["reason"])


def run(home: Path, plan: str, story: Story) -> list[Told]:
    """Run waves in an Airflow of their own; what came of each.

    :param home: an empty folder
    :param plan: text of the plan file
    """
    (home / "plans").mkdir()
    (home / "plans/plan.yaml").write_text(plan)
    (home / "story.json").write_text(json.dumps(asdict(story)))
    (home / "wave_runs.py").write_text(Path(__file__).read_text())
    environment = own_airflow.make(home)
    environment["PYTHONPATH"] += f":{own_airflow.ROOT}"
    output = own_airflow.run(home / "wave_runs.py", environment)
    told = [json.loads(line.removeprefix("TOLD ")) for line in output.splitlines() if line.startswith("TOLD ")]
    assert len(told) == len(story.waves), output[-5000:]
    return [Told(**one) for one in told]


# In the Airflow


class Remember(BaseOperator):
    """In place of the reports of earlier runs: remembers that VMs were proven."""

    def __init__(self, *, dags: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dags = dags

    def execute(self, context: Any) -> None:
        for dag_id in self.dags:
            summary = {"outcome": "migrated", "dag_id": dag_id, "run_id": "earlier", "slug": dag_id.rpartition(".")[2]}
            remember_proven(dag_id, "earlier", summary)


def play(story: Story, over: threading.Event) -> None:
    """Do what other processes and people do, until the waves are over."""
    ended: Counter[str] = Counter()
    answers = {task: list(those) for task, those in story.answers.items()}
    sweeper = SchedulerJobRunner(job=Job())
    end = time.monotonic() + LONGEST
    while not over.wait(LOOK):
        if time.monotonic() > end:
            raise TimeoutError(f"the waves are not over after {LONGEST} seconds")
        with create_session() as session:
            end_runs(session, story, ended)
        with create_session() as session:
            answer(session, answers)
            sweeper.check_awaiting_input_timeouts(session=session)


def end_runs(session: Any, story: Story, ended: Counter[str]) -> None:
    """End the VMs' runs that have begun, with what their reports tell."""
    for found in session.query(DagRun).filter(DagRun.dag_id.like("migrate.%"), DagRun.state == "queued"):
        slug = found.dag_id.rpartition(".")[2]
        ends = story.ends.get(slug, [])
        told = ENDS[ends[ended[slug]] if ended[slug] < len(ends) else "migrated"]
        ended[slug] += 1
        if told["outcome"] == "deleted":
            session.delete(found)
            continue
        summary = {"dag_id": found.dag_id, "run_id": found.run_id, "slug": slug, **told}
        where = {"task_id": "report", "dag_id": found.dag_id, "run_id": found.run_id}
        XComModel.set(key="summary", value=summary, serialize=False, session=session, **where)
        found.state = DagRunState.FAILED if told["outcome"] == "failed" else DagRunState.SUCCESS


def answer(session: Any, answers: dict[str, list[str]]) -> None:
    """Answer a question, or let the time for it be over, once nothing but questions is left to go on with.

    That is over too for what was answered: Airflow's sweep then goes on with the answer, also where the test's loop has
    written "it waits" over what the answer did.

    :param answers: as a story has them; what is given is taken out
    """
    if session.query(TaskInstance).filter(TaskInstance.state.in_(AT_WORK)).count():
        return
    waiting = session.query(TaskInstance).filter(TaskInstance.state == "awaiting_input").options(QUESTION)
    asking = {f"{ti.dag_id.rpartition('.')[2]}.{ti.task_id}": ti for ti in waiting}
    name = next((name for name in (*answers, *asking) if name in asking), None)
    if name is None:
        return
    ti = asking[name]
    if answers.get(name) and not ti.hitl_detail.response_received:
        payload = UpdateHITLDetailPayload(chosen_options=[answers[name].pop(0)])
        update_hitl_detail(ti.dag_id, ti.run_id, ti.task_id, payload, ALICE, session)
    else:
        ti.trigger_timeout = timezone.utcnow() - timedelta(seconds=1)


def tell(home: Path, dag_id: str, run_id: str) -> Told:
    """Look at what came of a run of a wave."""
    (report,) = (path for path in home.glob("hyperflow/*/*/wave-report.json") if run_id_of(path) == run_id)
    with create_session() as session:
        runs: dict[str, list[dict[str, Any]]] = {}
        for found in session.query(DagRun).filter(DagRun.run_id.like(f"{run_id}.%")).order_by(DagRun.id):
            runs.setdefault(found.dag_id.rpartition(".")[2], []).append(found.conf)
        asking = session.query(TaskInstance).filter_by(dag_id=dag_id, run_id=run_id).join(HITLDetail).options(QUESTION)
        return Told(json.loads(report.read_text()), runs, {ti.task_id: asked(ti.hitl_detail) for ti in asking})


def run_id_of(report: Path) -> str:
    """The run that a report is of."""
    return str(json.loads(report.read_text())["run_id"])


def asked(detail: HITLDetail) -> dict[str, Any]:
    """A question as Airflow has kept it."""
    return {
        "subject": detail.subject,
        "body": detail.body,
        "options": detail.options,
        "defaults": detail.defaults,
        "of": [user["id"] for user in detail.assigned_users],
    }


def give_up(died: threading.ExceptHookArgs) -> None:
    """End the whole program where its player has died: the waves would wait for it for ever."""
    traceback.print_exception(died.exc_value)
    os._exit(1)


def dags_of(plan: Plan, story: Story) -> Iterator[DAG]:
    """The plan's waves; for each of its VMs a DAG of that name; and one that remembers what was proven before."""
    for wave in plan.waves:
        yield build_wave(plan, wave)
    for vm in plan.vms:
        with DAG(vm.dag_id, schedule=None, is_paused_upon_creation=vm.slug in story.paused) as dag:
            EmptyOperator(task_id="report")
        yield dag
    with DAG("before", schedule=None) as dag:
        Remember(task_id="remember", dags=[plan.vm(slug).dag_id for slug in story.proven])
    yield dag


HOME = Path(__file__).parent
wave_vm.POLL = 1  # second: the runs end as soon as they have begun
for file in HOME.glob("plans/*.yaml"):  # none beside the tests
    STORY = Story(**json.loads((HOME / "story.json").read_text()))
    DAGS = {dag.dag_id: dag for dag in dags_of(load_plan(file), STORY)}
    globals().update(DAGS)  # where Airflow looks for them

if __name__ == "__main__":
    create_auth_manager()
    threading.excepthook = give_up
    DAGS["before"].test()
    done = threading.Event()
    player = threading.Thread(target=play, args=(STORY, done))
    player.start()
    try:
        for name, conf in STORY.waves:
            (dag_id,) = (one for one in DAGS if one.startswith("wave.") and one.endswith(f".{name}"))
            print("TOLD", json.dumps(asdict(tell(HOME, dag_id, DAGS[dag_id].test(run_conf=conf).run_id))), flush=True)
    finally:
        done.set()
        player.join()
