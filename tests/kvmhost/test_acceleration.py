"""How this host runs guests, found by running one."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hyperflow.kvmhost import acceleration
from hyperflow.kvmhost.stage import Job

EMULATOR = str(acceleration.find_emulator())


def test_the_boot_sector_speaks_in_a_guest() -> None:
    found = acceleration.try_kvm(EMULATOR, accelerator=acceleration.TCG)

    assert found == acceleration.Acceleration("tcg", "a guest ran with tcg")


def test_a_guest_that_does_nothing_is_given_up_at_the_limit() -> None:
    found = acceleration.try_kvm(EMULATOR, accelerator=acceleration.TCG, limit=0.001)

    assert found.kind == "tcg"
    assert "did nothing for" in found.reason


def test_an_accelerator_that_does_not_run_is_given_up_with_what_qemu_says() -> None:
    found = acceleration.try_kvm(EMULATOR, accelerator="no-such-accelerator")

    assert found.kind == "tcg"
    assert "no-such-accelerator" in found.reason


def test_a_kvm_with_which_a_guest_is_slower_than_without_is_not_used() -> None:
    """Seen inside a virtual machine whose KVM has no hardware below it: the word came, and Linux never did."""
    spoke = acceleration.Acceleration("kvm", "a guest ran with kvm")

    assert acceleration.judge(spoke, taken=12.0, without=0.3).kind == "tcg"
    assert "12.0 s" in acceleration.judge(spoke, taken=12.0, without=0.3).reason
    assert acceleration.judge(spoke, taken=0.4, without=0.3) == spoke


def test_the_answer_is_one_of_two_and_is_remembered_for_this_boot_of_the_host(tmp_path: Path) -> None:
    first = acceleration.explain(Job("test"), cache=tmp_path / "cache")

    assert first.kind in ("kvm", "tcg")
    record = json.loads((tmp_path / "cache/acceleration.json").read_text())
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() in record["key"]
    assert stat.S_IMODE((tmp_path / "cache/acceleration.json").stat().st_mode) == 0o600
    assert acceleration.explain(Job("test"), cache=tmp_path / "cache") == first


def remembered(folder: Path, **changes: object) -> Path:
    """Make a cache that claims KVM, which the tests can tell from what this host finds."""
    acceleration.explain(Job("test"), cache=folder)
    path = folder / "acceleration.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "kind": "tcg", "reason": "remembered", **changes}))
    return folder


def test_what_is_remembered_is_not_tried_again(tmp_path: Path) -> None:
    cache = remembered(tmp_path / "cache")

    assert acceleration.explain(Job("test"), cache=cache).reason == "remembered"


@pytest.mark.parametrize("changes", [{"key": "another boot"}, {"at": 0}, {"key": 5}], ids=["boot", "old", "torn"])
def test_an_answer_of_another_boot_or_an_old_no_is_asked_again(tmp_path: Path, changes: dict[str, object]) -> None:
    cache = remembered(tmp_path / "cache", **changes)

    assert acceleration.explain(Job("test"), cache=cache).reason != "remembered"


def test_a_cache_that_others_may_write_to_is_not_believed(tmp_path: Path) -> None:
    cache = remembered(tmp_path / "cache")
    cache.chmod(0o777)

    assert acceleration.explain(Job("test"), cache=cache).reason != "remembered"


def test_a_link_in_place_of_the_cache_is_not_believed(tmp_path: Path) -> None:
    remembered(tmp_path / "cache")
    os.symlink(tmp_path / "cache", tmp_path / "link")  # noqa: PTH211 - the same

    assert acceleration.explain(Job("test"), cache=tmp_path / "link").reason != "remembered"
