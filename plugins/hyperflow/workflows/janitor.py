"""The DAG that looks for what dead runs have left, every night and when somebody asks."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow.configuration import conf
from airflow.sdk import DAG, CronTriggerTimetable, Param, TriggerRule, chain

from hyperflow.operators.janitor import (
    HOSTS,
    PLACES,
    RESULT,
    SOURCES,
    CleanHostOperator,
    CleanSourceOperator,
    ListHostsOperator,
    ReportLeftoversOperator,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hyperflow.plans.plan import Plan

DAG_ID = "hyperflow_janitor"
KEEP_DAYS = 7  # how long a failed run keeps its staged disks; [hyperflow] janitor_keep_days in Airflow's configuration


def build_janitor(plans: Sequence[Plan]) -> DAG:
    """Build the DAG for the hosts and vCenters that the plans name, and the hosts that conversions have used.

    The hosts come first: they know of runs whose processes are alive, and what to ask the vCenters for.
    """
    keep_days = conf.getint("hyperflow", "janitor_keep_days", fallback=KEEP_DAYS)
    with DAG(
        DAG_ID,
        dag_display_name="Janitor: leftovers of dead runs",
        description="Find and remove what dead runs have left on hosts and at vCenters",
        # The first run is at the next midnight, not as soon as somebody installs Hyperflow. False would not say that:
        # Airflow 3.3.2 takes it for "when less than a tenth of the interval has passed".
        schedule=CronTriggerTimetable("@daily", timezone="UTC", run_immediately=timedelta(0)),
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        default_args={"retries": 1, "retry_delay": timedelta(seconds=10)},
        tags=["hyperflow"],
        render_template_as_native_obj=True,
        doc_md=__doc__,
        params={
            "dry_run": Param(False, type="boolean", title="Dry run", description="Say what would be removed"),
            "keep_days": Param(
                keep_days,
                type="number",
                minimum=0,
                title="Keep",
                description="Days for which a failed run keeps staged disks and overlays, to go on from",
            ),
        },
    ) as dag:
        asked = {"only_look": "{{ params.dry_run }}", "keep_days": "{{ params.keep_days }}"}
        whatever = TriggerRule.ALL_DONE  # a host that is down keeps nobody from looking at the vCenters
        places = ListHostsOperator(task_id=PLACES, hosts=hosts_of(plans))
        hosts = CleanHostOperator.partial(
            task_id=HOSTS, map_index_template="{{ task.host['connection'] }}", **asked
        ).expand(host=places.output)
        sources = CleanSourceOperator.partial(
            task_id=SOURCES, map_index_template="{{ task.vcenter }}", trigger_rule=whatever, **asked
        ).expand(vcenter=vcenters_of(plans))
        result = ReportLeftoversOperator(task_id=RESULT, vcenters=vcenters_of(plans), trigger_rule=whatever, **asked)
        chain(places, hosts, sources, result)
    return dag


def hosts_of(plans: Sequence[Plan]) -> list[dict[str, str]]:
    """List the hosts of all plans, each with each of its staging directories."""
    found = {
        (str(vm.settings.host.connection), str(vm.settings.host.staging_directory))
        for plan in plans
        for vm in plan.vms
        if vm.settings.host is not None
    }
    return [{"connection": connection, "staging_directory": staging} for connection, staging in sorted(found)]


def vcenters_of(plans: Sequence[Plan]) -> list[str]:
    """List the vCenter connections of all plans."""
    return sorted({plan.vcenter.connection for plan in plans})
