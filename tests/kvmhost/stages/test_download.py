"""The download of a disk, against a real TLS server that sends what it should, less, more, or something else."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperflow.kvmhost.bandwidth import Limit, RateFrom
from hyperflow.kvmhost.images import files
from hyperflow.kvmhost.stage import BadRequest, Job, StageError, TryAgain
from hyperflow.kvmhost.stages import download

from tests.kvmhost.images import images, vmdk_writer
from tests.kvmhost.stages import tls_server
from tests.kvmhost.stages.tls_server import Handler, Server
from tests.kvmhost.test_bandwidth import Clock

CAPACITY = 700 * 65536
SECRETS = ("ticket-that-is-secret", "also-secret")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls_server.make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def vmdk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Four MiB that do not compress: more than one read."""
    path = tmp_path_factory.mktemp("vmdk") / "disk.vmdk"
    return vmdk_writer.write(path, CAPACITY, [(n, images.noise(n)) for n in range(64)]).read_bytes()


def send(data: bytes, length: int | None = None, **headers: str) -> tls_server.Answer:
    def answer(handler: Handler) -> None:
        handler.start(len(data) if length is None else length, **headers)
        handler.wfile.write(data)

    return answer


@pytest.fixture
def server(certificate: Path, vmdk: bytes) -> Iterator[Server]:
    with tls_server.serve(certificate, send(vmdk)) as running:
        yield running


def options(server: Server, folder: Path, **changes: Any) -> download.Options:
    given: dict[str, Any] = {
        "url": server.url,
        "target": folder / "web01-disk1.vmdk",
        "disk_id": "disk-0",
        "thumbprints": [server.sha256],
        "capacity_bytes": CAPACITY,
        "source": "vm-1 snapshot-2 run-3",
        "timeout_seconds": 20.0,
    }
    return download.Options(**{**given, **changes})


def run(asked: download.Options) -> dict[str, Any]:
    return download.run(asked, Job("download"))


def refused(asked: download.Options, kind: type[StageError], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """The stage fails in that way, says so, tells no secret and leaves nothing."""
    before = set(asked.target.parent.iterdir()) if asked.target.parent.exists() else set()
    with pytest.raises(StageError) as fault:
        run(asked)
    assert type(fault.value) is kind, fault.value
    said = str(fault.value) + capsys.readouterr().out
    for word in words:
        assert word in said
    for secret in SECRETS:
        assert secret not in said
    assert set(asked.target.parent.iterdir()) == before


def test_the_disk_arrives_byte_for_byte(server: Server, tmp_path: Path, vmdk: bytes) -> None:
    observed = run(options(server, tmp_path / "new" / "folder"))

    target = tmp_path / "new" / "folder" / "web01-disk1.vmdk"
    assert target.read_bytes() == vmdk
    assert observed["path"] == str(target)
    assert observed["bytes"] == len(vmdk)
    assert observed["sha256"] == hashlib.sha256(vmdk).hexdigest()
    assert observed["virtual_bytes"] == CAPACITY
    assert observed["http"]["status"] == 200
    assert observed["http"]["content_length"] == len(vmdk)
    assert observed["http"]["certificate_sha256"] == server.sha256
    assert not any(secret in json.dumps(observed) for secret in SECRETS)
    assert sorted(path.name for path in target.parent.iterdir()) == [".web01-disk1.vmdk.json", "web01-disk1.vmdk"]


def test_no_secret_is_said_or_kept(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(options(server, tmp_path))

    kept = capsys.readouterr().out + (tmp_path / ".web01-disk1.vmdk.json").read_text()
    assert not any(secret in kept for secret in SECRETS)
    assert server.requests == ["/nfc/52d3-ticket-that-is-secret/disk-0.vmdk?t=also-secret"]


def test_a_disk_in_chunks_of_unknown_length_arrives(server: Server, tmp_path: Path, vmdk: bytes) -> None:
    def answer(handler: Handler) -> None:
        handler.start(None, Transfer_Encoding="chunked")
        for start in range(0, len(vmdk), 100_000):
            handler.chunk(vmdk[start : start + 100_000])
        handler.chunk(b"")

    server.answer = answer
    observed = run(options(server, tmp_path))

    assert observed["sha256"] == hashlib.sha256(vmdk).hexdigest()
    assert observed["http"]["content_length"] is None


def test_a_disk_that_ends_with_the_connection_arrives(server: Server, tmp_path: Path, vmdk: bytes) -> None:
    def answer(handler: Handler) -> None:
        handler.start(None)
        handler.wfile.write(vmdk)

    server.answer = answer

    assert run(options(server, tmp_path))["bytes"] == len(vmdk)


def test_a_disk_as_qemu_img_writes_it_arrives(server: Server, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(images.text(1) * 20 + images.noise(2))
    data = images.stream_optimized(raw, tmp_path / "disk.vmdk").read_bytes()
    server.answer = send(data)

    observed = run(options(server, tmp_path, capacity_bytes=21 * 65536))

    assert observed["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("form", ["sha256", "sha1", "colons", "capitals", "one of several"])
def test_any_form_of_the_right_fingerprint_is_taken(server: Server, tmp_path: Path, form: str) -> None:
    pairs = ":".join(server.sha1[at : at + 2] for at in range(0, 40, 2))
    prints = {
        "sha256": [server.sha256],
        "sha1": [server.sha1],
        "colons": [pairs.upper()],
        "capitals": [server.sha256.upper()],
        "one of several": ["0" * 64, "1" * 40, server.sha1],
    }

    assert run(options(server, tmp_path, thumbprints=prints[form]))["virtual_bytes"] == CAPACITY


@pytest.mark.parametrize("thumbprint", ["0" * 64, "0" * 40])
def test_another_certificate_is_refused_before_a_byte_is_sent(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], thumbprint: str
) -> None:
    refused(options(server, tmp_path, thumbprints=[thumbprint]), BadRequest, capsys, server.sha256, thumbprint)

    assert server.requests == []


def test_without_a_fingerprint_the_certificate_must_be_trusted(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(options(server, tmp_path, thumbprints=[]), BadRequest, capsys, "not trusted")

    assert server.requests == []


def test_without_a_fingerprint_a_trusted_certificate_is_taken(
    server: Server, tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.parent / "certificate.pem"))

    assert run(options(server, tmp_path, thumbprints=[]))["virtual_bytes"] == CAPACITY


def test_a_trusted_certificate_of_another_name_is_refused(
    server: Server,
    tmp_path: Path,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.parent / "certificate.pem"))
    url = server.url.replace("127.0.0.1", "localhost")

    refused(options(server, tmp_path, thumbprints=[], url=url), BadRequest, capsys, "localhost")


@pytest.mark.parametrize("thumbprint", ["", "abc", "zz" * 32, "0" * 63, "sha256:" + "0" * 64])
def test_what_is_no_fingerprint_is_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], thumbprint: str
) -> None:
    refused(options(server, tmp_path, thumbprints=[thumbprint]), BadRequest, capsys, "thumbprints")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/disk.vmdk",
        "ftp://127.0.0.1/also-secret",
        "https:///also-secret",
        "https://user:also-secret@127.0.0.1/disk.vmdk",
        "https://127.0.0.1:99999/also-secret",
        "https://127.0.0.1/also-secret disk.vmdk",
        "https://127.0.0.1/also-secret\r\nHost: other",
        "https://127.0.0.1/also-secret-\u00fc",
        "file:///etc/shadow",
        "",
    ],
)
def test_what_is_no_https_url_is_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    refused(options(server, tmp_path, url=url), BadRequest, capsys, "url: found")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["https://other.example/also-secret", "/also-secret", ""])
def test_a_redirect_is_refused_and_its_host_named(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, location: str
) -> None:
    server.answer = lambda handler: handler.start(0, status, Location=location)

    refused(options(server, tmp_path), BadRequest, capsys, "other.example" if "other" in location else "redirects")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [201, 206, 400, 405])
def test_an_answer_other_than_200_fails(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    server.answer = lambda handler: handler.start(0, status)

    refused(options(server, tmp_path), StageError, capsys, str(status))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    server.answer = lambda handler: handler.start(0, status)

    refused(options(server, tmp_path), TryAgain, capsys, str(status))


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_ticket_that_counts_no_more_asks_for_another_lease(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    server.answer = lambda handler: handler.start(0, status)

    refused(options(server, tmp_path), TryAgain, capsys, str(status), "the lease of this download is over")


def test_a_server_that_fails_once_serves_the_next_try(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes
) -> None:
    server.answer = lambda handler: handler.start(0, 500)
    refused(options(server, tmp_path), TryAgain, capsys, "500")

    server.answer = send(vmdk)

    assert run(options(server, tmp_path))["sha256"] == hashlib.sha256(vmdk).hexdigest()


def test_a_certificate_that_changes_between_two_disks_stops_the_second_before_a_byte_is_sent(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(options(server, tmp_path))
    (tmp_path / "new").mkdir()
    server.context.load_cert_chain(tls_server.make_certificate(tmp_path / "new"))

    second = options(server, tmp_path / "second", disk_id="disk-1")
    second.target.parent.mkdir()
    refused(second, BadRequest, capsys, server.sha256)

    assert len(server.requests) == 1


def decode_to(folder: Path) -> download.DecodeTo:
    return download.DecodeTo(folder / "images" / "disk-0.qcow2", "qcow2")


@pytest.mark.parametrize("place", [1_000_000, 3_000_000, -200_000])
def test_bytes_that_change_on_their_way_are_noticed_where_they_are_decoded_and_come_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes, place: int
) -> None:
    """By the Adler-32 of their grain; the staged file, its note and the image are not there then."""
    flipped = bytearray(vmdk)
    flipped[place] ^= 0xFF
    server.answer = send(bytes(flipped))
    (tmp_path / "images").mkdir()
    refused(options(server, tmp_path, decode=decode_to(tmp_path)), TryAgain, capsys, "damaged")
    assert list((tmp_path / "images").iterdir()) == []

    server.answer = send(vmdk)

    assert run(options(server, tmp_path, decode=decode_to(tmp_path)))["sha256"] == hashlib.sha256(vmdk).hexdigest()


def test_bytes_that_change_on_their_way_are_not_noticed_where_nothing_is_decoded(
    server: Server, tmp_path: Path, vmdk: bytes
) -> None:
    """The digest is of what came. It is convert that decodes then, and fails; a lease has no digest of its own."""
    flipped = bytearray(vmdk)
    flipped[1_000_000] ^= 0xFF
    server.answer = send(bytes(flipped))

    assert run(options(server, tmp_path))["sha256"] == hashlib.sha256(flipped).hexdigest()


@pytest.mark.parametrize("end", [0, 1, 511, 65536, 1_000_000, 4_000_000])
def test_a_connection_that_ends_early_is_tried_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes, end: int
) -> None:
    server.answer = send(vmdk[:end], length=len(vmdk))

    refused(options(server, tmp_path), TryAgain, capsys, f"after {end} of {len(vmdk)} bytes")


@pytest.mark.parametrize("end", [0, 300, 65536, 4_000_000])
def test_a_chunked_answer_that_ends_early_is_tried_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes, end: int
) -> None:
    """Some vCenters answer the second URL of a lease with an empty chunked 200."""

    def answer(handler: Handler) -> None:
        handler.start(None, Transfer_Encoding="chunked")
        if end:
            handler.chunk(vmdk[:end])
        handler.chunk(b"")

    server.answer = answer

    refused(options(server, tmp_path), TryAgain, capsys, "cut")


def test_a_chunked_answer_that_breaks_off_is_tried_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes
) -> None:
    def answer(handler: Handler) -> None:
        handler.start(None, Transfer_Encoding="chunked")
        handler.chunk(vmdk[:100_000])

    server.answer = answer

    refused(options(server, tmp_path), TryAgain, capsys)


def test_a_whole_answer_without_the_end_of_the_stream_is_tried_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes
) -> None:
    server.answer = send(vmdk[:-512])

    refused(options(server, tmp_path), TryAgain, capsys, "end-of-stream")


def test_more_than_was_promised_is_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes
) -> None:
    server.answer = send(vmdk + b"more", length=len(vmdk))

    refused(options(server, tmp_path), StageError, capsys, "more than the")


def test_more_than_the_stream_is_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes
) -> None:
    server.answer = send(vmdk + bytes(512))

    refused(options(server, tmp_path), StageError, capsys, "after the end of the stream")


@pytest.mark.parametrize("data", [b"<html>" * 200, b"COWD" + bytes(600), bytes(600), b"KDMV" + bytes(600)])
def test_what_is_no_vmdk_is_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    server.answer = send(data)

    refused(options(server, tmp_path), StageError, capsys, "no streamOptimized VMDK")


def test_a_disk_of_another_capacity_is_refused_at_once(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(options(server, tmp_path, capacity_bytes=CAPACITY + 512), BadRequest, capsys, str(CAPACITY + 512))


def test_a_compressed_answer_is_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes
) -> None:
    server.answer = send(vmdk, Content_Encoding="gzip")

    refused(options(server, tmp_path), StageError, capsys, "gzip")


def test_more_than_the_file_system_holds_is_refused_before_it_comes(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes
) -> None:
    server.answer = send(vmdk, length=1 << 60)

    refused(options(server, tmp_path), StageError, capsys, "free")


@pytest.mark.parametrize("sent", [0, 2_000_000])
def test_a_server_that_stalls_is_tried_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes, sent: int
) -> None:
    over = threading.Event()

    def answer(handler: Handler) -> None:
        if sent:
            handler.start(len(vmdk))
            handler.wfile.write(vmdk[:sent])
            handler.wfile.flush()
        over.wait(30)

    server.answer = answer
    refused(options(server, tmp_path, timeout_seconds=0.3), TryAgain, capsys, "too long", "bytes so far")
    over.set()


def test_a_server_that_reads_over_an_empty_part_of_a_large_disk_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 200 MB/s, 50 GB of it: the time that a read of the connection may take, where nobody says otherwise."""
    given: list[float | None] = []

    def connect(address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        given.append(timeout)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(TryAgain):
        run(options(server, tmp_path, timeout_seconds=download.Options.timeout_seconds))
    (seconds,) = given
    assert seconds is not None
    assert seconds * 200_000_000 > 50 * 10**9


def drip(handler: Handler, data: bytes, over: threading.Event) -> None:
    for place in range(len(data)):
        handler.wfile.write(data[place : place + 1])
        handler.wfile.flush()
        if over.wait(0.01):
            return


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PATIENCE", 0.5)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("form", ["body", "chunked", "chunk's length", "head"])
def test_a_server_that_drips_is_tried_again_whatever_its_drops_are_part_of(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes, form: str
) -> None:
    """Each byte comes in time for the timeout of the connection. It would hold the lease and the snapshot for ever."""
    over = threading.Event()

    def answer(handler: Handler) -> None:
        if form == "head":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            drip(handler, b"x" * 3_000, over)
            return
        if form == "body":
            handler.start(len(vmdk))
            handler.wfile.write(vmdk[:70_000])
        else:
            handler.start(None, Transfer_Encoding="chunked")
            handler.chunk(vmdk[:70_000])
            if form == "chunked":
                handler.wfile.write(b"300000\r\n")
        drip(handler, b"0" * 3_000, over)

    server.answer = answer
    refused(
        options(server, tmp_path, timeout_seconds=20.0),
        TryAgain,
        capsys,
        "bytes came in the last",
        "s of waiting for them, expected at least 1048576 in 0 s",
        f"127.0.0.1:{server.server_address[1]}",
    )
    over.set()


class Ticking:
    """A clock by which each read takes a hundredth of a second, whatever this machine does besides."""

    def __init__(self) -> None:
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.looks / 100


def test_a_server_that_is_slow_but_steady_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vmdk: bytes
) -> None:
    """Four MiB, in pieces of 16 KiB, in more than PATIENCE, each MiB of them in less."""
    monkeypatch.setattr(download, "PATIENCE", 2.0)
    monkeypatch.setattr(download, "time", clock := Ticking())

    assert run(options(server, tmp_path))["sha256"] == hashlib.sha256(vmdk).hexdigest()
    assert clock.looks / 2 / 100 > download.PATIENCE, "two looks for each read"


def test_time_that_is_waited_for_the_bandwidth_limit_is_not_the_servers(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vmdk: bytes
) -> None:
    """Four MiB at 4 MB/s, so that a MiB takes longer than PATIENCE; of time, nothing passes but what is waited so."""
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    monkeypatch.setattr(download, "time", Clock(monkeypatch))
    limit = Limit(tmp_path / "jobs", [RateFrom(0.0, 4_000_000)])

    observed = run(options(server, tmp_path, bandwidth=limit))

    assert observed["sha256"] == hashlib.sha256(vmdk).hexdigest()
    assert observed["throttled_seconds"] > 0.5


def test_the_end_is_waited_for_without_a_look_at_the_pace() -> None:
    pace = download._Pace("esxi1:443")
    pace.count(0, download.PATIENCE + 1)
    with pytest.raises(TryAgain, match="only 1 bytes came in the last 601 s"):
        pace.count(1, 0.0)


def test_a_server_that_speaks_no_tls_is_tried_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def talk() -> None:
            connection, _ = plain.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        url = f"https://127.0.0.1:{plain.getsockname()[1]}/also-secret"
        refused(options(server, tmp_path, url=url), TryAgain, capsys)
        thread.join()


def test_a_server_that_is_not_there_is_tried_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # so that nobody else listens there meanwhile
        port = taken.getsockname()[1]
        refused(options(server, tmp_path, url=f"https://127.0.0.1:{port}/also-secret"), TryAgain, capsys, str(port))


def test_a_name_that_nobody_knows_is_tried_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "https://no-such-host.invalid/also-secret"

    refused(options(server, tmp_path, url=url), TryAgain, capsys, "no-such-host.invalid")


def test_a_second_run_takes_the_first_ones_file(server: Server, tmp_path: Path) -> None:
    first = run(options(server, tmp_path))
    second = run(options(server, tmp_path))

    assert len(server.requests) == 1
    assert second["http"] == {"reused": True}
    assert {**second, "http": None} == {**first, "http": None}


def test_a_file_of_an_earlier_export_is_replaced_when_the_new_one_is_complete(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes
) -> None:
    run(options(server, tmp_path))
    newer = vmdk_writer.write(tmp_path / "newer", CAPACITY, [(1, images.text(1))]).read_bytes()
    server.answer = send(newer[:-512])
    refused(options(server, tmp_path, source="vm-1 snapshot-9"), TryAgain, capsys)
    assert (tmp_path / "web01-disk1.vmdk").read_bytes() == vmdk

    server.answer = send(newer)
    run(options(server, tmp_path, source="vm-1 snapshot-9"))

    assert (tmp_path / "web01-disk1.vmdk").read_bytes() == newer


def test_the_disk_of_another_vm_is_never_replaced(server: Server, tmp_path: Path, vmdk: bytes) -> None:
    run(options(server, tmp_path, vm_id="vm-1"))

    with pytest.raises(BadRequest, match=re.escape("is of another VM (vm-1), expected one of vm-2")):
        run(options(server, tmp_path, vm_id="vm-2", source="vm-2 snapshot-9 run-1"))

    assert (tmp_path / "web01-disk1.vmdk").read_bytes() == vmdk
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["file", "empty", "link", "dangling", "folder", "fifo"])
def test_somebody_elses_file_is_never_touched(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    target = tmp_path / "web01-disk1.vmdk"
    other = tmp_path / "other"
    other.write_text("precious")
    if kind in ("file", "empty"):
        target.write_text("precious" if kind == "file" else "")
    elif kind in ("link", "dangling"):
        target.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    elif kind == "folder":
        target.mkdir()
    else:
        os.mkfifo(target)

    refused(options(server, tmp_path), BadRequest, capsys, "no download of ours")
    assert other.read_text() == "precious"
    assert server.requests == []


def test_our_own_file_that_was_changed_is_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(options(server, tmp_path))
    with (tmp_path / "web01-disk1.vmdk").open("r+b") as file:
        file.seek(100_000)
        file.write(b"changed")

    refused(options(server, tmp_path), BadRequest, capsys, "the file was changed")


@pytest.mark.parametrize(
    "note", ["", "{", "[]", "null", '{"kind": "hyperflow-image"}', '{"kind": "hyperflow-download"}']
)
def test_a_note_that_says_something_else_makes_no_file_ours(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], note: str
) -> None:
    run(options(server, tmp_path))
    (tmp_path / ".web01-disk1.vmdk.json").write_text(note)

    refused(options(server, tmp_path), BadRequest, capsys, "no download of ours")


def test_what_a_killed_run_left_is_removed_and_never_written_into(server: Server, tmp_path: Path, vmdk: bytes) -> None:
    target = tmp_path / "web01-disk1.vmdk"
    precious = tmp_path / "precious"
    precious.write_text("precious")
    os.link(precious, files.partial_path(target))  # as a kill while the file got its name leaves it

    run(options(server, tmp_path))

    assert precious.read_text() == "precious"
    assert target.read_bytes() == vmdk
    assert not files.partial_path(target).exists()


def test_a_file_that_appears_meanwhile_is_not_overwritten(server: Server, tmp_path: Path, vmdk: bytes) -> None:
    target = tmp_path / "web01-disk1.vmdk"

    def answer(handler: Handler) -> None:
        target.write_text("precious")
        send(vmdk)(handler)

    server.answer = answer
    with pytest.raises(BadRequest, match="appeared"):
        run(options(server, tmp_path))

    assert target.read_text() == "precious"


def hard_links_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has none."""

    def link(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(source), None, str(target))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("moment", ["while the disk comes", "behind the last look"])
def test_a_file_that_appeared_meanwhile_is_never_taken_for_ours_by_a_later_run(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    vmdk: bytes,
    moment: str,
    has_links: bool,
) -> None:
    target = tmp_path / "web01-disk1.vmdk"
    precious = b"precious" * 1000
    if not has_links:
        hard_links_fail(monkeypatch)
    write = files.write_atomically

    def write_then_appear(path: Path, text: str) -> None:
        write(path, text)
        target.write_bytes(precious)

    def answer(handler: Handler) -> None:
        target.write_bytes(precious)
        send(vmdk)(handler)

    if moment == "while the disk comes":
        server.answer = answer
    else:
        monkeypatch.setattr(files, "write_atomically", write_then_appear)
    with pytest.raises(BadRequest, match="appeared"):
        run(options(server, tmp_path))
    assert list(tmp_path.iterdir()) == [target]
    monkeypatch.setattr(files, "write_atomically", write)

    for source in ("vm-1 snapshot-2 run-3", "vm-1 snapshot-9 run-4"):
        refused(options(server, tmp_path, source=source), BadRequest, capsys, "no download of ours")
    assert target.read_bytes() == precious


@pytest.mark.parametrize("length", [8000, None])
def test_a_file_beside_which_our_note_lies_by_accident_is_never_replaced(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], vmdk: bytes, length: int | None
) -> None:
    """As a run leaves it that was killed before it gave its file the name; somebody's file got that name then."""
    target = tmp_path / "web01-disk1.vmdk"
    run(options(server, tmp_path))
    target.unlink()
    precious = (b"precious" * len(vmdk))[: length or len(vmdk)]
    target.write_bytes(precious)
    requests = list(server.requests)

    for source in ("vm-1 snapshot-2 run-3", "vm-1 snapshot-9 run-4"):
        refused(options(server, tmp_path, source=source), BadRequest, capsys, "the file was changed", "move it")

    assert target.read_bytes() == precious
    assert server.requests == requests


def test_a_file_that_takes_the_place_of_an_earlier_download_meanwhile_is_not_removed(
    server: Server, tmp_path: Path, vmdk: bytes
) -> None:
    target = tmp_path / "web01-disk1.vmdk"
    run(options(server, tmp_path))

    def answer(handler: Handler) -> None:
        target.unlink()
        target.write_text("precious")
        send(vmdk)(handler)

    server.answer = answer
    with pytest.raises(BadRequest, match="was changed while the work ran"):
        run(options(server, tmp_path, source="vm-1 snapshot-9 run-4"))

    assert target.read_text() == "precious"


def test_an_earlier_download_is_known_by_its_file_and_one_that_came_back_from_a_backup_by_its_bytes(
    server: Server, tmp_path: Path
) -> None:
    target = tmp_path / "web01-disk1.vmdk"
    run(options(server, tmp_path))
    assert files.is_untouched(target, json.loads(files.note_path(target).read_text()))
    shutil.copy(target, tmp_path / "backup")
    (tmp_path / "backup").replace(target)
    assert not files.is_untouched(target, json.loads(files.note_path(target).read_text()))

    run(options(server, tmp_path, source="vm-1 snapshot-9 run-4"))

    assert len(server.requests) == 2
    assert files.is_untouched(target, json.loads(files.note_path(target).read_text()))


@pytest.mark.parametrize("decode", [False, True])
def test_a_write_that_fails_on_its_way_to_the_disk_is_told_with_the_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, decode: bool
) -> None:
    """The kernel is sure to tell it to the descriptor that was written by, and may tell it to no other one."""
    partial = files.partial_path(tmp_path / "web01-disk1.vmdk")
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        is_written = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if is_written and Path(f"/proc/self/fd/{descriptor}").readlink() == partial:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    (tmp_path / "images").mkdir()
    asked = options(server, tmp_path, decode=decode_to(tmp_path) if decode else None)
    refused(asked, StageError, capsys, str(partial), "writing failed", "Input/output error")
    assert list((tmp_path / "images").iterdir()) == []


@pytest.mark.parametrize("change", [{"expected_bytes": 5}, {"expected_bytes": None}])
def test_what_the_lease_guesses_of_the_size_is_for_the_display_only(
    server: Server, tmp_path: Path, change: dict[str, Any]
) -> None:
    assert run(options(server, tmp_path, **change))["virtual_bytes"] == CAPACITY
