"""The whole lab, once for all tests that need it; it fails, and does not skip, when it cannot start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import running


@pytest.fixture(scope="session")
def running_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[running.RunningLab]:
    """The lab, up."""
    with running.running_lab(tmp_path_factory.mktemp("lab")) as bench:
        yield bench
