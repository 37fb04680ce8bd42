"""Where the pages of a run are, relative to Airflow's own address."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from airflow.configuration import conf

PREFIX = "/hyperflow"


def base_path() -> str:
    """Path of Airflow's setting ``[api] base_url``, without a slash at its end; empty when it has none."""
    return urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")


def page_of(dag_id: str, run_id: str, page: str = "") -> str:
    """Give the path of one of a run's pages.

    :param page: "" for the report, or ``console.log``, ``screenshot.png``, ``wave``
    """
    return f"{base_path()}{PREFIX}/runs/{quote(dag_id, safe='')}/{quote(run_id, safe='')}/{page}"


def airflow_page_of(dag_id: str, run_id: str) -> str:
    """Give the path of Airflow's own page of a run."""
    return f"{base_path()}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"
