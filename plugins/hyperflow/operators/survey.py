"""Asks a vCenter what the VMs of a plan are, for the waves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from hyperflow.hooks.vsphere import VsphereHook
from hyperflow.manifest.shown import shown
from hyperflow.operators.preflight import plan_location

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.plans.plan import Plan
    from hyperflow.plans.survey import Survey


class SurveyOperator(BaseOperator):
    """Finds every VM of a plan at its vCenter, and keeps what waves need to know of it beside the plan.

    Returns the survey (``plans.survey.Survey`` as JSON). A VM that is not found is told in ``missing``, and keeps the
    entry that it had: one that was finalized since has another name, and the waves it is in must stay what they are.

    :param plan: the plan's name; templated
    :param folder: of the plans
    """

    template_fields = ("plan",)
    ui_color = "#e8f1fa"

    def __init__(self, *, plan: str, folder: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan = plan
        self.folder = folder

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask, keep, return."""
        from hyperflow.plans.survey import write_survey
        from hyperflow.vsphere.errors import VsphereError

        try:
            plan = self.read()
            survey = with_earlier(self.ask(plan), plan)
            path = write_survey(plan.path, plan.name, survey)
        except VsphereError as fault:
            self.tell(context, fault)
            raise (AirflowException if fault.temporary else AirflowFailException)(shown(str(fault))) from fault
        except (AirflowFailException, OSError) as fault:
            self.tell(context, fault)
            raise
        found = len(survey.vms.keys() - survey.missing.keys())
        self.log.info("%d VM(s) found, %d not; kept in %s", found, len(survey.missing), path)
        return survey.model_dump(mode="json")

    def tell(self, context: Context, fault: Exception) -> None:
        """Keep why it failed, for whoever asked on a terminal."""
        context["ti"].xcom_push(key="failure", value={"stage": self.task_id, "message": shown(str(fault))})

    def read(self) -> Plan:
        """Find the plan, whose waves may be wrong for want of this very survey.

        :raises AirflowFailException: no plan goes by that name, or it is bad
        """
        from hyperflow.plans.load import discover, load_plan
        from hyperflow.plans.plan import PlanError

        unreadable = []
        try:
            for path in discover(plan_location(self.folder)):
                try:
                    plan = load_plan(path, waves=False)
                except PlanError as fault:  # another one's faults keep nobody from this one
                    unreadable.append(str(fault))
                    continue
                if plan.name == self.plan:
                    return plan
        except PlanError as fault:
            raise AirflowFailException(str(fault)) from fault
        told = "".join(f"; {one}" for one in unreadable)
        raise AirflowFailException(
            f"plan: found none called {self.plan!r} in {self.folder}, expected the name of one{told}"
        )

    def ask(self, plan: Plan) -> Survey:
        """Ask the vCenter about each VM."""
        from hyperflow.plans.survey import Survey, SurveyedVm
        from hyperflow.vsphere.errors import VsphereError
        from hyperflow.vsphere.inventory import find_vm
        from hyperflow.vsphere.placement import read_placements

        vms, missing = {}, {}
        with VsphereHook(plan.vcenter.connection).session() as session:
            morefs = {}
            for vm in plan.vms:
                value, kind = vm.selector.value, vm.selector.kind
                try:
                    morefs[vm.slug] = find_vm(session, value, kind=kind, datacenter=plan.vcenter.datacenter)
                except VsphereError as fault:
                    if fault.temporary:
                        raise
                    missing[vm.slug] = shown(str(fault))
            placements = read_placements(session, list(dict.fromkeys(morefs.values())))
            vms = {slug: SurveyedVm.model_validate(placements[moref]) for slug, moref in morefs.items()}
        return Survey(asked=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), vms=vms, missing=missing)


def with_earlier(survey: Survey, plan: Plan) -> Survey:
    """Add what the survey before knew of VMs that are missing now; nothing where that one cannot be read."""
    from hyperflow.plans.plan import PlanError
    from hyperflow.plans.survey import read_survey

    try:
        earlier = read_survey(plan.path, plan.name).vms
    except PlanError:
        return survey
    kept = {slug: earlier[slug] for slug in survey.missing if slug in earlier}
    return survey.model_copy(update={"vms": {**kept, **survey.vms}})
