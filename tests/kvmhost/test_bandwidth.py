"""The bucket that the downloads of a host share: what it lets through, to whom, and what it survives."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hyperflow.kvmhost import bandwidth
from hyperflow.kvmhost.bandwidth import Bucket, Limit, RateFrom, Throttle, check_limit
from hyperflow.kvmhost.stage import BadRequest, StageError
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
RATE = 50_000_000
PIECE = RATE // 100
SECOND = 1_000_000_000


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    made = Bucket(tmp_path)
    yield made
    made.close()


def another(bucket: Bucket) -> Bucket:
    """The same bucket, as another job opens it."""
    return Bucket(bucket.path.parent)


class Clock:
    """The clocks of a host, in a test's hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, passed: float = 1000.0, wall: float = 0.0) -> None:
        self.passed = passed
        self.wall = wall
        self.at_sleep: Callable[[], None] = lambda: None
        monkeypatch.setattr(bandwidth, "time", self)

    def monotonic(self) -> float:
        return self.passed

    def monotonic_ns(self) -> int:
        return round(self.passed * SECOND)

    def time(self) -> float:
        return self.wall

    def sleep(self, seconds: float) -> None:
        self.passed += seconds
        self.at_sleep()


def seconds_ahead(paid: int) -> float:
    return (paid - time.monotonic_ns()) / SECOND


def python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Another process of the host."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "plugins")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_new_bucket_has_nothing_saved_up(bucket: Bucket) -> None:
    before = time.monotonic_ns()
    taken = bucket.take(RATE, RATE)
    assert before + SECOND <= taken.paid <= time.monotonic_ns() + SECOND
    assert not taken.remade


def test_what_is_taken_adds_up_to_the_rate_whoever_takes_it(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)  # it stands still: what nobody takes while the test is kept waiting would be lost
    jobs = [bucket, *(another(bucket) for _ in range(3))]
    first = bucket.take(0, RATE).paid
    last = [job.take(PIECE, RATE).paid for _ in range(100) for job in jobs][-1]
    assert last >= first + 4 * SECOND  # 4 x 100 pieces of a hundredth of a second
    assert last <= first + 4.1 * SECOND


def test_jobs_are_served_in_the_order_in_which_they_ask_so_none_gets_more_than_its_part(bucket: Bucket) -> None:
    jobs = [another(bucket) for _ in range(4)]
    waiting = [(job.take(PIECE, RATE).paid, number) for number, job in enumerate(jobs)]
    served = [0, 0, 0, 0]
    for _ in range(400):  # whoever has been paid for reads on, and is then behind the others
        waiting.sort()
        _, number = waiting.pop(0)
        served[number] += 1
        waiting.append((jobs[number].take(PIECE, RATE).paid, number))
    assert served == [100] * 4


def test_an_idle_bucket_saves_up_a_tenth_of_a_second_and_no_more(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.take(0, RATE)
    clock = Clock(monkeypatch, passed=time.monotonic() + 3600)
    assert bucket.take(RATE, RATE).paid == clock.monotonic_ns() + SECOND - SECOND // 10


def test_the_lowest_rate_that_is_asked_for_holds_for_all_until_that_job_leaves(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)  # who has not asked for some seconds is forgotten
    slow = another(bucket)
    assert bucket.take(0, RATE).rate == RATE
    assert slow.take(0, RATE // 5).rate == RATE // 5
    assert bucket.take(0, RATE).rate == RATE // 5
    slow.leave()
    assert bucket.take(0, RATE).rate == RATE


def test_a_job_that_died_counts_no_more_after_some_seconds(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    another(bucket).take(0, RATE // 5)
    Clock(monkeypatch, passed=time.monotonic() + 6)
    assert bucket.take(0, RATE).rate == RATE


def test_no_more_jobs_are_written_down_than_there_is_room_for(bucket: Bucket) -> None:
    for _ in range(bandwidth.ASKS + 50):
        job = another(bucket)
        job.take(0, RATE)
        job.close()
    assert bucket.path.stat().st_size <= bandwidth.FILE_LIMIT
    assert not bucket.take(0, RATE).remade


def test_a_holder_that_is_killed_gives_the_lock_back(bucket: Bucket) -> None:
    bucket.take(0, RATE)
    hold = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'r+b'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True); time.sleep(600)"
    )
    holder = python(hold, bucket.path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with bucket.path.open("r+b") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder.kill()
    holder.wait()
    assert not bucket.take(PIECE, RATE).remade


def test_a_lock_that_never_comes_back_ends_the_job_with_what_to_do(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.take(0, RATE)
    monkeypatch.setattr(bandwidth, "LOCK_LIMIT", 0.05)
    with bucket.path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StageError, match=r"bandwidth\..*: another process holds its lock.*end it"):
            bucket.take(0, RATE)


def test_jobs_that_are_killed_while_they_take_leave_a_bucket_that_is_sound(bucket: Bucket) -> None:
    taking = (
        "import sys; from pathlib import Path; from hyperflow.kvmhost.bandwidth import Bucket\n"
        "bucket = Bucket(Path(sys.argv[1])); bucket.take(0, 10**9); print('there', flush=True)\n"
        "while True: bucket.take(1, 10**9)"
    )
    for number in range(5):
        jobs = [python(taking, bucket.path.parent) for _ in range(2)]
        for job in jobs:
            assert job.stdout is not None
            assert job.stdout.readline() == "there\n"
        time.sleep(number / 100)
        for job in jobs:
            job.send_signal(signal.SIGKILL)
            job.wait()
        assert not bucket.take(1, 10**9).remade


def crafted(
    bucket: Bucket, paid: int, *asks: tuple[int, int, int], count: int | None = None, boot: bytes | None = None
) -> bytes:
    """A file whose sum is right, whatever it says."""
    head = struct.pack("<8s36sqI", bandwidth.MAGIC, boot or bucket._boot, paid, len(asks) if count is None else count)
    data = head + b"".join(struct.pack("<QQq", *ask) for ask in asks)
    return data + struct.pack("<I", zlib.crc32(data))


def hostile(bucket: Bucket) -> dict[str, bytes]:
    now = time.monotonic_ns()
    sound = crafted(bucket, now, (1, RATE // 5, now))
    return {
        "one byte": b"x",
        "zeros": bytes(10_000),
        "noise": os.urandom(5000),
        "huge": bytes(50_000_000),
        "torn": sound[: len(sound) // 2] + bytes(len(sound) // 2),
        "cut": sound[:-1],
        "a bit flipped": sound[:20] + bytes([sound[20] ^ 1]) + sound[21:],
        "of another boot": crafted(bucket, now, (1, 1, now), boot=b"0" * 36),
        "a year ahead": crafted(bucket, now + 365 * 86400 * SECOND),
        "before all time": crafted(bucket, -1),
        "a rate of 0": crafted(bucket, now, (1, 0, now)),
        "an absurd rate": crafted(bucket, now, (1, 2**63, now)),
        "asked in the future": crafted(bucket, now, (1, 1, now + 86400 * SECOND)),
        "more jobs than there are": crafted(bucket, now, (1, RATE, now), count=2),
        "more jobs than any": crafted(bucket, now, (1, RATE, now), count=2**32 - 1),
    }


@pytest.mark.parametrize("name", list(hostile(Bucket(Path("/nowhere")))))
def test_a_damaged_or_hostile_file_is_made_anew_and_stops_nobody(bucket: Bucket, name: str) -> None:
    bucket.take(0, RATE)
    bucket.path.write_bytes(hostile(bucket)[name])
    taken = bucket.take(PIECE, RATE)
    assert taken.remade
    assert taken.rate == RATE
    assert seconds_ahead(taken.paid) <= 0.01
    assert not another(bucket).take(0, RATE).remade


@given(st.binary(max_size=300))
def test_no_content_ends_in_a_traceback_or_a_long_wait(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    bucket = Bucket(tmp_path_factory.mktemp("bucket"))
    bucket.path.write_bytes(content)
    taken = bucket.take(PIECE, RATE)
    assert taken.remade is bool(content)
    assert seconds_ahead(taken.paid) <= 0.01
    bucket.close()


def test_an_empty_file_is_a_new_bucket(bucket: Bucket) -> None:
    bucket.path.touch()
    assert not bucket.take(0, RATE).remade


def test_a_link_in_its_place_is_removed_and_not_followed(bucket: Bucket, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for link in (bucket.path.symlink_to, bucket.path.hardlink_to):
        other.write_bytes(b"somebody else's")
        link(other)
        bucket.take(PIECE, RATE)
        assert other.read_bytes() == b"somebody else's"
        assert bucket.path.stat().st_size > 0
        bucket.close()
        bucket.path.unlink()


def test_a_pipe_in_its_place_is_removed(bucket: Bucket) -> None:
    os.mkfifo(bucket.path)
    bucket.take(PIECE, RATE)
    assert bucket.path.is_file()


def test_a_folder_in_its_place_is_named_with_what_to_do(bucket: Bucket) -> None:
    bucket.path.mkdir()
    with pytest.raises(StageError, match=r"bandwidth\..*: Is a directory; the bandwidth limit cannot be kept"):
        bucket.take(PIECE, RATE)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match=r"file/bandwidth.*the bandwidth limit cannot be kept"):
        Bucket(tmp_path / "file").take(PIECE, RATE)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_jobs_meet_again_when_the_file_was_taken_away(bucket: Bucket, how: str) -> None:
    other = another(bucket)
    bucket.take(0, RATE)
    other.take(0, RATE)
    bucket.path.unlink()
    if how == "replaced":
        bucket.path.touch()
    bucket.take(50 * RATE, RATE)
    assert seconds_ahead(other.take(0, RATE).paid) > 0.5, "of the fifty seconds that the first one has taken"


def test_only_its_owner_may_read_or_write_the_file(bucket: Bucket) -> None:
    bucket.take(0, RATE)
    assert bucket.path.stat().st_mode & 0o077 == 0


class Source:
    """Something that always has as many bytes as are asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, buffer: memoryview) -> int:
        self.asked.append(len(buffer))
        return len(buffer)


def throttle(
    folder: Path, *rates: tuple[float, int | None], now: float | None = None
) -> tuple[Throttle, list[str], list[str]]:
    lines: list[str] = []
    notes: list[str] = []
    return Throttle(Limit(folder, [RateFrom(*rate) for rate in rates]), now, lines.append, notes.append), lines, notes


def test_bytes_come_at_the_rate_and_the_wait_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    held, _, _ = throttle(tmp_path, (0, 10_000_000))
    read = held.reader(Source())
    buffer = memoryview(bytearray(1 << 20))
    started = clock.passed
    count = 0
    while count < 5_000_000:
        count += read(buffer)
    piece = 10_000_000 // 100
    assert clock.passed - started == pytest.approx((count - piece) / 10_000_000), "the last piece is not waited for"
    assert held.seconds == pytest.approx(clock.passed - started)


def test_pieces_are_small_so_that_a_slow_limit_is_no_long_silence(tmp_path: Path) -> None:
    source = Source()
    held, _, _ = throttle(tmp_path, (0, 1_000_000))
    read = held.reader(source)
    for _ in range(3):
        read(memoryview(bytearray(1 << 20)))
    assert source.asked == [16 << 10] * 3


def test_a_job_without_a_limit_takes_no_tokens_and_makes_no_file(tmp_path: Path) -> None:
    source = Source()
    held, lines, notes = throttle(tmp_path, (0, None))
    read = held.reader(source)
    for _ in range(100):
        read(memoryview(bytearray(1 << 20)))
    held.close()
    assert source.asked == [1 << 20] * 100
    assert list(tmp_path.iterdir()) == []
    assert held.seconds == 0
    assert lines == ["bandwidth: no limit"]
    assert notes == [""]


def test_the_limit_in_force_is_said_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)  # the slow one asks once, and is forgotten after some seconds
    held, lines, notes = throttle(tmp_path, (0, RATE))
    read = held.reader(Source())
    buffer = memoryview(bytearray(1 << 20))
    for _ in range(3):
        read(buffer)
    slow = Bucket(tmp_path)
    slow.take(0, 10_000_000)
    for _ in range(2):
        read(buffer)
    slow.leave()
    for _ in range(2):
        read(buffer)
    assert lines == [
        "bandwidth: at most 50 MB/s (47.7 MiB/s) for all downloads on this host together",
        "bandwidth: at most 10 MB/s (9.5 MiB/s) for all downloads on this host together: another job asks for less "
        "than the 50 MB/s (47.7 MiB/s) of this one",
        "bandwidth: at most 50 MB/s (47.7 MiB/s) for all downloads on this host together",
    ]
    assert notes == [f"limited to {rate} MiB/s for the host" for rate in ("47.7", "9.5", "47.7")]


def test_the_rate_changes_at_the_moment_of_the_plan_however_wrong_the_hosts_clock_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 1_800_000_000.0
    clock = Clock(monkeypatch, wall=asked - 3600)
    held, lines, _ = throttle(tmp_path, (0, 10_000_000), (asked + 60, None), (asked + 120, RATE), now=asked)
    source = Source()
    read = held.reader(source)
    buffer = memoryview(bytearray(1 << 20))
    sizes = []
    for passed in (0, 59.9, 60.1, 119.9, 120.1, 1e6):
        clock.passed = 1000 + passed
        read(buffer)
        sizes.append(source.asked[-1])
    assert sizes == [100_000, 100_000, 1 << 20, 1 << 20, 500_000, 500_000]
    assert lines == [
        "bandwidth: at most 10 MB/s (9.5 MiB/s) for all downloads on this host together, for the next 1 min 00 s by "
        "the plan",
        "bandwidth: no limit, for the next 1 min 00 s by the plan",
        "bandwidth: at most 50 MB/s (47.7 MiB/s) for all downloads on this host together",
    ]


def test_without_another_clock_the_hosts_own_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, wall=5000)
    held, lines, _ = throttle(tmp_path, (0, None), (4000, RATE), (6000, None))
    held.reader(Source())(memoryview(bytearray(10)))
    assert lines[0].startswith("bandwidth: at most 50 MB/s")


def test_an_hour_without_a_limit_frees_the_others_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    held, _, _ = throttle(tmp_path, (0, 10_000_000), (60, None))
    read = held.reader(Source())
    other = Bucket(tmp_path)
    for passed in (0, 59):
        clock.passed = 1000 + passed
        read(memoryview(bytearray(1000)))
    clock.passed = 1061
    assert other.take(0, RATE).rate == 10_000_000
    read(memoryview(bytearray(1000)))
    assert other.take(0, RATE).rate == RATE


def test_a_job_that_waits_long_stays_in_the_others_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    held, _, _ = throttle(tmp_path, (0, 1_000_000))
    read = held.reader(Source())
    read(memoryview(bytearray(1000)))
    other = Bucket(tmp_path)
    other.take(20_000_000, RATE)  # twenty seconds of the lower rate
    read(memoryview(bytearray(1000)))
    seen = []
    clock.at_sleep = lambda: seen.append(other.take(0, RATE).rate)
    read(memoryview(bytearray(1000)))
    assert clock.passed >= 1020
    assert len(seen) >= 20
    assert set(seen) == {1_000_000}


def test_a_job_that_ends_leaves_the_bucket_to_the_others(tmp_path: Path) -> None:
    held, _, _ = throttle(tmp_path, (0, 10_000_000))
    held.reader(Source())(memoryview(bytearray(10)))
    held.close()
    assert Bucket(tmp_path).take(0, RATE).rate == RATE


@pytest.mark.parametrize(
    ("rates", "fault"),
    [
        ([], "rates: found no rate"),
        ([RateFrom(0, 0)], r"rates\[0\].rate: found 0, expected bytes a second"),
        ([RateFrom(0, 1), RateFrom(1, -1)], r"rates\[1\].rate: found -1"),
        ([RateFrom(0, 2**70)], r"rates\[0\].rate: found 1180591620717411303424"),
        ([RateFrom(1, 1), RateFrom(0, 1)], "rates: found starts in disorder"),
        ([RateFrom(float("nan"), 1), RateFrom(0, 1)], "rates: found starts in disorder"),
        ([RateFrom(0, 1), RateFrom(float("inf"), 1)], "rates: found starts in disorder"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(tmp_path: Path, rates: list[RateFrom], fault: str) -> None:
    with pytest.raises(BadRequest, match=fault):
        check_limit(Limit(tmp_path, rates))
