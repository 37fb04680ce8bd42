"""Every input that a fuzzer once found interesting, and new ones around them, end well."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.corpus import crafting, targets

HERE = Path(__file__).parent
VMDKS = sorted((HERE / "vmdk").iterdir())
MANIFESTS = sorted((HERE / "manifest").iterdir())
OUTCOMES = ("refused", "decoded", "converted")
QUIET = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def outcome(told: str) -> str:
    return told.split(":", maxsplit=1)[0]


def test_the_corpus_is_small_and_has_every_outcome(tmp_path: Path) -> None:
    """Each VMDK is refused in our words, or shows what qemu-img shows."""
    told = {path.name: outcome(targets.vmdk_file(path.read_bytes(), tmp_path)) for path in VMDKS}
    assert set(told.values()) >= {"refused", "decoded"}
    assert sum(path.stat().st_size for path in (*VMDKS, *MANIFESTS)) < 2 << 20


def test_every_manifest_of_the_corpus_is_read_alike_by_both_planes(tmp_path: Path) -> None:
    told = {targets.manifest(path.read_bytes(), tmp_path) for path in MANIFESTS}
    assert told == {"accepted", "refused"}


@pytest.mark.parametrize("seed", range(0, 48, 2))
def test_a_sound_vmdk_of_either_layout_is_decoded_to_what_qemu_img_shows(tmp_path: Path, seed: int) -> None:
    expected = "converted" if seed % 8 == 6 else "decoded"  # grains below 64 KiB
    assert targets.vmdk_file(crafting.craft(seed), tmp_path) == expected


@settings(QUIET, max_examples=60)
@given(st.integers(0, 1 << 30).map(lambda number: 2 * number + 1))
@example(217)  # where the words of the refusal depended on the size of the windows
def test_a_vmdk_with_a_fault_or_two_is_refused_or_read_as_qemu_img_reads_it(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    told = targets.vmdk_file(crafting.craft(seed), tmp_path_factory.getbasetemp())
    assert outcome(told) in OUTCOMES


@settings(QUIET, max_examples=150)
@given(
    st.sampled_from(VMDKS).map(Path.read_bytes),
    st.lists(st.tuples(st.integers(0, 1 << 14), st.binary(max_size=12)), min_size=1, max_size=4),
)
def test_bytes_written_over_a_vmdk_of_the_corpus_break_nothing(data: bytes, changes: list[tuple[int, bytes]]) -> None:
    spoiled = bytearray(data)
    for place, text in changes:
        spoiled[place : place + len(text)] = text
    assert targets.scan(bytes(spoiled), 1 << 20) == targets.scan(bytes(spoiled), 700)


@settings(QUIET, max_examples=100)
@given(
    st.sampled_from(MANIFESTS).map(Path.read_bytes),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=3),
)
def test_bytes_written_into_a_manifest_of_the_corpus_break_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    spoiled = bytearray(data)
    for place, length, text in changes:
        spoiled[place : place + length] = text
    assert targets.manifest(bytes(spoiled), tmp_path_factory.getbasetemp()) in ("accepted", "refused")
