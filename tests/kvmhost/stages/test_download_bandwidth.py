"""Downloads with a limit, from a real TLS server: held by four together, told, measured, and no stall of the server."""

from __future__ import annotations

import json
import re
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost.bandwidth import Bucket
from hyperflow.kvmhost.progress import Progress
from hyperflow.kvmhost.stage import BadRequest, Job, parse_options
from hyperflow.kvmhost.stages import download
from hyperflow.operators.export import ExportDiskOperator
from hyperflow.plans.load import load_plan
from hyperflow.plans.migration import effective
from hyperflow.triggers.export import PERCENT

from tests.kvmhost.images import images, vmdk_writer
from tests.kvmhost.stages import running, tls_server
from tests.kvmhost.stages.tls_server import Handler, Server

PROFILES = Path(__file__).resolve().parents[3] / "include" / "profiles"
LIMIT = 50_000_000  # bytes a second
DOWNLOADS = 4
ROUNDED = 1 - 1e-6  # each piece is counted in whole nanoseconds
SLOW = LIMIT // 5  # what a busy machine comes to in any case, so that it is the limit that is waited for
GRAINS = 96  # of 64 KiB that do not compress: 6 MB a disk, two seconds of the slow limit for four of them
SMALL = 64


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on tmpfs, so that no disk is measured."""
    with tempfile.TemporaryDirectory(prefix="hyperflow-bandwidth-", dir="/dev/shm") as folder:
        yield Path(folder)


def disk(grains: int) -> bytes:
    stream = vmdk_writer.Stream(grains * 128)
    for number in range(grains):
        stream.add(number, b"", compressed=zlib.compress(images.noise(number), 0))
    return stream.finish()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls_server.make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def small() -> bytes:
    return disk(SMALL)


@pytest.fixture
def server(certificate: Path, small: bytes) -> Iterator[Server]:
    with tls_server.serve(certificate, send(small)) as running_server:
        yield running_server


def send(data: bytes) -> tls_server.Answer:
    def answer(handler: Handler) -> None:
        handler.start(len(data))
        handler.wfile.write(data)

    return answer


def options(server: Server, folder: Path, grains: int = SMALL, name: str = "disk1", **more: Any) -> dict[str, Any]:
    return {
        "url": server.url,
        "target": str(folder / f"{name}.vmdk"),
        "disk_id": "disk-0",
        "thumbprints": [server.sha256],
        "capacity_bytes": grains * 65536,
        "source": "vm-1 snapshot-2 run-3",
        "timeout_seconds": 20.0,
        **more,
    }


def limited(folder: Path, rate: int) -> dict[str, Any]:
    return {"folder": str(folder / ".hyperflow"), "rates": [{"start": 0.0, "rate": rate}]}


def run(asked: dict[str, Any]) -> dict[str, Any]:
    return download.run(parse_options(download.Options, json.dumps(asked)), Job("download"))


def paid(folder: Path, rate: int) -> float:
    """Up to when the bucket has been paid for, in seconds: what its jobs take moves it on."""
    bucket = Bucket(folder / ".hyperflow")
    try:
        return bucket.take(0, rate).paid / 1e9
    finally:
        bucket.leave()
        bucket.close()


def test_four_downloads_together_pay_for_every_byte_of_all(server: Server, memory: Path) -> None:
    """Each is a process of its own, as on a host; how near to the limit they come is measured by ``make bench``."""
    data = disk(GRAINS)
    server.answer = send(data)
    before = paid(memory, SLOW)
    asked = [
        options(server, memory, GRAINS, f"disk{each}", bandwidth=limited(memory, SLOW)) for each in range(DOWNLOADS)
    ]
    processes = [running.start("download", each, memory / f"result{number}.json") for number, each in enumerate(asked)]
    logs = [process.communicate()[0] for process in processes]

    assert [process.returncode for process in processes] == [0] * DOWNLOADS, logs
    assert paid(memory, SLOW) - before >= DOWNLOADS * len(data) / SLOW * ROUNDED
    for number in range(DOWNLOADS):
        assert json.loads((memory / f"result{number}.json").read_text())["observed"]["throttled_seconds"] > 0


def test_a_download_without_a_limit_asks_no_bucket_and_observes_no_wait(server: Server, memory: Path) -> None:
    observed = run(options(server, memory))
    assert "throttled_seconds" not in observed
    assert sorted(path.name for path in memory.iterdir()) == [".disk1.vmdk.json", "disk1.vmdk"]


def test_waiting_for_the_limit_is_no_stall_of_the_server(server: Server, memory: Path, small: bytes) -> None:
    """Another job takes seven seconds' worth as the disk begins to come; the server may be silent for three."""

    def answer(handler: Handler) -> None:
        Bucket(memory / ".hyperflow").take(7 * LIMIT, LIMIT)
        send(small)(handler)

    server.answer = answer
    observed = run(options(server, memory, bandwidth=limited(memory, LIMIT), timeout_seconds=3.0))
    assert observed["bytes"] == (memory / "disk1.vmdk").stat().st_size
    assert observed["throttled_seconds"] > 3.0


def test_the_limit_holds_while_the_disk_is_decoded_and_the_image_is_the_same(
    server: Server, memory: Path, small: bytes
) -> None:
    decode = {"image": str(memory / "disk-0.qcow2"), "format": "qcow2"}
    before = paid(memory, 4_000_000)
    observed = run(options(server, memory, decode=decode, bandwidth=limited(memory, 4_000_000)))
    assert paid(memory, 4_000_000) - before >= len(small) / 4_000_000 * ROUNDED
    assert (memory / "disk1.vmdk").read_bytes() == small
    assert observed["throttled_seconds"] > 0
    assert (memory / ".disk-0.qcow2.decoded.partial" / "image").stat().st_size > SMALL * 65536


def test_the_limit_in_force_is_in_the_log_and_in_the_line_of_progress(
    server: Server, memory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(options(server, memory, bandwidth=limited(memory, 20_000_000)))
    lines = capsys.readouterr().out.splitlines()
    assert "bandwidth: at most 20 MB/s (19.1 MiB/s) for all downloads on this host together" in lines
    progress = [line for line in lines if line.startswith("progress: ")]  # every five seconds, and the last one
    assert progress
    assert all(line.endswith(", limited to 19.1 MiB/s for the host") for line in progress)


def test_the_lease_reads_its_percent_from_a_line_that_also_tells_the_limit() -> None:
    lines: list[str] = []
    progress = Progress("download disk-0", 200, lines.append)
    progress.note = "limited to 47.7 MiB/s for the host"
    progress.done = 84
    progress.finish()
    (found,) = PERCENT.findall(f"2026-11-24T05:00:00.000000Z {lines[0]}\n".encode())
    assert found == b"42"


@pytest.mark.parametrize("rates", [[], [{"start": 0.0, "rate": 0}], [{"start": 1.0}, {"start": 0.0}]])
def test_a_limit_that_makes_no_sense_is_refused_before_the_server_is_asked(
    server: Server, memory: Path, rates: list[dict[str, Any]]
) -> None:
    with pytest.raises(BadRequest, match=re.escape("options.bandwidth.rates")):
        run(options(server, memory, bandwidth={"folder": str(memory), "rates": rates}))
    assert server.requests == []
    assert list(memory.iterdir()) == []


def test_a_bucket_that_cannot_be_written_ends_the_download_and_is_named(server: Server, memory: Path) -> None:
    (memory / ".hyperflow").touch()
    result = running.run("download", options(server, memory, bandwidth=limited(memory, LIMIT)))
    assert result["exit_status"] == 1
    assert ".hyperflow/bandwidth." in result["error"]["message"]
    assert "take the limit out of the plan" in result["error"]["message"]
    assert [path.name for path in memory.iterdir()] == [".hyperflow"]


def test_what_the_plan_says_is_what_the_host_is_asked(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "plan: web\nvcenter: {connection: vcenter}\nprofile: kvm-migration\n"
        "host: {connection: kvm01, staging_directory: /staging, output_directory: /images}\n"
        "limits: {bandwidth: 400 Mbit/s}\nvms: [{name: web01}, {name: web02, limits: {bandwidth: unlimited}},\n"
        "  {name: web03, limits: {bandwidth: {time_zone: Europe/Berlin, default: unlimited, hours: [{from: 08:00,\n"
        "  to: 18:00, rate: 50 MB/s}]}}}]\n"
    )
    asked = []
    for vm in (loaded := load_plan(plan, PROFILES)).vms:
        operator = ExportDiskOperator(task_id="export", disk={}, snapshot={})
        operator.migration = effective(loaded, vm).model_dump(mode="json")
        asked.append(operator.bandwidth_limit())
    assert asked[:2] == [{"folder": "/staging/.hyperflow", "rates": [{"start": 0.0, "rate": LIMIT}]}, None]
    assert len(asked[2]["rates"]) in range(60, 64)
    more = {"url": "", "target": "/a", "disk_id": "", "thumbprints": [], "capacity_bytes": 1, "source": "", "now": 1.0}
    for bandwidth in asked:
        parse_options(download.Options, json.dumps({**more, "bandwidth": bandwidth}))
