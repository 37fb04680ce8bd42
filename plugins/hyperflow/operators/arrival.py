"""Tells other DAGs that a VM has arrived: an event of its asset, of a proven run only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.manifest.report import Report

GROUP = "hyperflow"


def asset_name(plan: str, slug: str) -> str:
    """Name of a VM's asset, and of the alias that its report task has as outlet."""
    return f"hyperflow/{plan}/{slug}"


def outlet(plan: str, slug: str) -> AssetAlias:
    """Make the outlet of a VM's report task.

    An alias: Airflow emits an event of a plain asset whenever the task succeeds, so also of a run without a proof.
    """
    return AssetAlias(asset_name(plan, slug), group=GROUP)


def tell_arrival(context: Context, plan: str, slug: str, report: Report, place: dict[str, Any]) -> None:
    """Emit the event of a VM that was proven; nothing for any other run.

    :param place: ``{"host", "path"}`` of the report
    """
    from hyperflow.operators.proven import PROVEN

    if report.summary.outcome != PROVEN or report.errors:
        return
    name = asset_name(plan, slug)
    context["outlet_events"][AssetAlias(name, group=GROUP)].add(
        Asset(name, group=GROUP),
        extra={
            "report": {"host": place["host"], "path": place["path"]},
            "images": [{"path": image.path, "sha256": image.sha256} for image in report.artifacts],
            "run": {"dag_id": context["dag"].dag_id, "run_id": context["run_id"]},
        },
    )
