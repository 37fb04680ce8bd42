"""What the tests of the host's stages share: a libvirt that runs, and the stages as the host runs them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import kvmhost


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kvmhost.KvmHost]:
    """The lab's KVM host; a libvirt that already runs on this machine is used and left."""
    state = tmp_path_factory.mktemp("kvmhost")
    yield kvmhost.start(state)
    kvmhost.stop(state)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that libvirt's QEMU, another user, may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="hyperflow-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
