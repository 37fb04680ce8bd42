"""Download of an export: the stage, against curl, from a server that is as fast as a good NFC stream."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import data, stages
from bench.results import Result, of_pair, of_values

ROUNDS = 5
RATE = 200_000_000  # bytes a second
GOALS = {"download": 1.05, "download_decoded": 1.10}
LIMIT = 50_000_000  # bytes a second, of all downloads on a host
TOGETHER = 4
OFF = 5.0  # percent


def measure(name: str, disk: data.Disk, folder: Path) -> Result:
    """Download by both ways in turns; the files are the same, or it is an error."""
    expected = stages.digest(disk.path)
    ours, peer, cpu = [], [], []
    target, other = folder / "staging" / "disk-1.vmdk", folder / "curl.vmdk"
    curl: list[str | Path] = ["curl", "--silent", "--fail", "--cacert", folder / "certificate.pem", "-o", other]
    with serve(disk.path, folder, RATE) as (url, thumbprint):
        for _ in range(ROUNDS):
            ran = download(name, (url, thumbprint), disk, target, folder)
            ours.append(ran.seconds)
            cpu.append(ran.cpu_seconds)
            peer.append(stages.timed([*curl, url]))
            for path in (target, other):
                if stages.digest(path) != expected:
                    raise stages.BenchError(f"{path}: is not what the server has")
            other.unlink()
            shutil.rmtree(target.parent)
    notes = {
        "server_bytes_per_second": RATE,
        "bytes": disk.path.stat().st_size,
        "cpu_seconds": round(statistics.median(cpu), 3),
    }
    return of_pair(name, ours, peer, GOALS[name], notes)


def measure_limit(disk: data.Disk, folder: Path) -> Result:
    """Let four downloads, each a process of its own, share a limit; how far off it their rate is, in percent."""
    off = []
    limit = {"folder": str(folder / ".hyperflow"), "rates": [{"start": 0.0, "rate": LIMIT}]}
    with serve(disk.path, folder, 1 << 40) as server, ThreadPoolExecutor(TOGETHER) as pool:
        for _ in range(ROUNDS):
            targets = [folder / f"staging-{number}" / "disk-1.vmdk" for number in range(TOGETHER)]
            for target in targets:
                target.parent.mkdir()
            begun = time.monotonic()
            list(pool.map(lambda to: download("download", server, disk, to, to.parent, bandwidth=limit), targets))
            rate = TOGETHER * disk.path.stat().st_size / (time.monotonic() - begun)
            off.append(abs(rate / LIMIT - 1) * 100)
            for target in targets:
                shutil.rmtree(target.parent)
    notes = {"limit_bytes_per_second": LIMIT, "downloads": TOGETHER, "bytes_of_each": disk.path.stat().st_size}
    return of_values("bandwidth_off_percent", off, OFF, "%", notes)


def download(
    name: str,
    server: tuple[str, str],
    disk: data.Disk,
    target: Path,
    folder: Path,
    *,
    watch: bool = False,
    bandwidth: dict[str, Any] | None = None,
) -> stages.Ran:
    """Run the stage.

    :param server: what :func:`serve` gave
    :param bandwidth: its limit, as the stage's option
    """
    decode = {"image": str(target.with_name("disk-0.qcow2")), "format": "qcow2"}
    options: dict[str, Any] = {
        "url": server[0],
        "target": str(target),
        "disk_id": "disk-0",
        "thumbprints": [server[1]],
        "capacity_bytes": disk.virtual_bytes,
        "source": "bench",
        "decode": decode if name == "download_decoded" else None,
        "bandwidth": bandwidth,
    }
    return stages.run("download", options, folder, watch=watch)


@contextlib.contextmanager
def serve(path: Path, folder: Path, rate: int) -> Iterator[tuple[str, str]]:
    """Run the server while the context lasts.

    :param rate: bytes a second
    :return: URL and fingerprint
    """
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-nodes", "-days", "2"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    stages.timed(["openssl", "req", *kind, *subject, "-keyout", key, "-out", certificate])
    both = folder / "server.pem"
    both.write_text(key.read_text() + certificate.read_text())
    command = ["openssl", "x509", "-in", str(certificate), "-noout", "-fingerprint", "-sha256"]
    thumbprint = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("=")[1].strip()
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.server", both, path, str(rate)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=stages.ROOT,
    )
    try:
        assert server.stdout is not None  # noqa: S101 - a pipe was asked for
        yield f"https://127.0.0.1:{server.stdout.readline().strip()}/disk.vmdk", thumbprint
    finally:
        server.terminate()
        server.wait()
