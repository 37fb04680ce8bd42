"""The docs' figures are those that were measured, and every measure has its line."""

from __future__ import annotations

from bench.__main__ import MEASURES
from bench.page import MEANINGS, page
from bench.results import PAGE


def test_the_page_is_what_was_measured_last() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run 'PYTHONPATH=plugins:. python -m bench.page'"


def test_every_measure_is_on_the_page() -> None:
    assert list(MEANINGS) == list(MEASURES)
