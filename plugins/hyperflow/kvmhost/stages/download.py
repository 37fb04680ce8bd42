"""download: one disk, from the ESXi host or vCenter that exports it, straight onto this host."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hyperflow.kvmhost.bandwidth import Limit, Throttle, check_limit
from hyperflow.kvmhost.images import codecs, conversion, decoded, files, vmdk
from hyperflow.kvmhost.images.decoded import Decoding
from hyperflow.kvmhost.images.receive import Received, StagedFile, receive, receive_decoded
from hyperflow.kvmhost.progress import Progress, size
from hyperflow.kvmhost.stage import BadRequest, Job, StageError, TryAgain
from hyperflow.kvmhost.tls import PinnedConnection, read_thumbprints

RETRY_STATUSES = (408, 429, 500, 502, 503, 504)
LEASE_STATUSES = (401, 403, 404, 410)  # the URL's ticket counts no more; the next try has a lease of its own
MARGIN = 16 << 20  # bytes to leave on the file system
LEAST = 1 << 20  # bytes that come in PATIENCE, or the server is as good as silent: it holds lease and snapshot for ever
# Seconds without a byte. ESXi can be silent for long and well, as where it reads over much of a disk that is empty:
# others' exports were cut after 10 and 30 s of it (ansible/ansible#66580, #74101). The lease is kept alive meanwhile.
SILENCE = 300.0
PATIENCE = 600.0  # seconds spent waiting for the server; what is waited for the bandwidth limit is not counted


@dataclass(frozen=True)
class DecodeTo:
    """The image that convert will make of the disk, whose decoding can be done while the disk arrives.

    The other fields are convert's options of the same names.

    :param image: its path
    """

    image: Path
    format: str
    compress: bool = False
    compress_level: Optional[int] = None  # noqa: UP045 - read at run time, by Python 3.9 too
    compress_type: str = codecs.ZSTD


@dataclass(frozen=True)
class Options:
    """What ``download`` is asked to do.

    :param url: https; a ticket, so it is never logged
    :param target: where the VMDK goes
    :param thumbprints: fingerprints of which the server's certificate must have one; empty for the host's CAs
    :param capacity_bytes: size of the guest's disk
    :param source: what is exported, a disk at one moment, in one text. A staged file is taken over only when it is of
        the same source; one of another source is stale and is replaced
    :param vm_id: the VM whose disk it is; a staged file of another VM's is left alone. None where nobody knows
    :param expected_bytes: the file's size where somebody knows it, for the progress display only
    :param timeout_seconds: how long the server may send nothing
    :param decode: None to leave all decoding to convert, which a disk in grains below 64 KiB is left to in any case
    :param bandwidth: how fast the downloads of this host may be together; None for no limit
    :param now: seconds since 1970 when this was asked for, by the clock that ``bandwidth`` was made by; this host's
        clock counts when None
    """

    url: str
    target: Path
    disk_id: str
    thumbprints: list[str]
    capacity_bytes: int
    source: str
    vm_id: Optional[str] = None  # noqa: UP045 - as above
    expected_bytes: Optional[int] = None  # noqa: UP045 - as above
    timeout_seconds: float = SILENCE
    decode: Optional[DecodeTo] = None  # noqa: UP045 - as above
    bandwidth: Optional[Limit] = None  # noqa: UP045 - as above
    now: Optional[float] = None  # noqa: UP045 - as above


def run(options: Options, job: Job) -> dict[str, Any]:
    """Download the disk, or take over what an earlier run of ours downloaded.

    :raises BadRequest: wrong certificate, redirect, a file of somebody else's at the target, another capacity, no
        bandwidth at all
    :raises TryAgain: the connection failed, stalled, dripped or ended early
    """
    host, port, path = _split(options.url)
    if options.bandwidth is not None:
        check_limit(options.bandwidth)
    options.target.parent.mkdir(parents=True, exist_ok=True)
    replaced = os.path.lexists(options.target)
    held = files.state(options.target)
    if replaced:
        earlier = _require_ours(options)
        if earlier.get("source") == options.source:
            return _reuse(options, earlier, job)
        if not files.is_untouched(options.target, earlier):
            _require_unchanged(options, earlier, job)
        job.log(f"{options.target}: is of an earlier export ({earlier.get('source')}); replaced when this one is here")
    connection = PinnedConnection(host, port, read_thumbprints(options.thumbprints), options.timeout_seconds)
    job.log(f"download {options.disk_id} from {host}:{port} to {options.target}")
    try:
        received, inode, facts = _download(connection, path, options, job)
        if replaced:
            files.remove_earlier(options.target, held)
        note: dict[str, Any] = {"kind": "hyperflow-download", "disk_id": options.disk_id, "source": options.source}
        note.update(vm_id=options.vm_id, sha256=received.sha256, bytes=job.bytes_read)
        note.update(virtual_bytes=received.header.capacity_bytes)
        files.put_in_place(options.target, note, inode)
    except BaseException:
        files.remove_partial(options.target)
        raise
    finally:
        connection.close()
    return _observed(options, received.sha256, job.bytes_read, received.header.capacity_bytes, facts)


def _download(
    connection: PinnedConnection, path: str, options: Options, job: Job
) -> tuple[Received, int, dict[str, Any]]:
    """Bring the disk into the target's partial file.

    :return: what came, the file's inode, and what else was observed: what HTTP said, the seconds waited for the limit
    """
    endpoint = f"{connection.host}:{connection.port}"
    with _transport_faults(endpoint, lambda: job.bytes_read):
        response = _request(connection, path, _Pace(endpoint))
        job.creating("partial", files.partial_path(options.target))
        job.creating("staged-disk", options.target)
        with contextlib.ExitStack() as stack:
            descriptor = files.create_partial(options.target)
            stack.callback(os.close, descriptor)
            inode = os.fstat(descriptor).st_ino
            length = _check_response(response, endpoint, options)
            progress = job.progress(f"download {options.disk_id}", length or options.expected_bytes or 0)

            def advance(count: int) -> None:
                job.bytes_read += count
                progress.advance(count)

            staged = StagedFile(descriptor, files.partial_path(options.target))
            read = _reader(response, endpoint, length)
            throttle = _throttle(options, job, progress)
            if throttle is not None:
                stack.callback(throttle.close)
                read = throttle.reader(read)
            arriving = (
                read,
                staged,
                lambda header: _check_capacity(header, options),
                advance,
            )
            if options.decode is None:
                received = receive(*arriving)
            else:
                decoding = stack.enter_context(_decoding(options.decode, job))
                received = receive_decoded(*arriving, decoding)
            progress.finish()
            job.bytes_written += job.bytes_read
            _check_end(connection, response, length)
            staged.sync()
    http_facts = {
        "status": response.status,
        "content_length": length,
        "endpoint": endpoint,
        "certificate_sha256": connection.peer_sha256,
    }
    facts: dict[str, Any] = {"http": http_facts}
    if throttle is not None:
        facts["throttled_seconds"] = round(throttle.seconds, 3)
    return received, inode, facts


def _throttle(options: Options, job: Job, progress: Progress) -> Throttle | None:
    """Make what holds the download to its limit; None where it has none, so that nothing is asked for a piece then."""
    if options.bandwidth is None:
        return None

    def note(text: str) -> None:
        progress.note = text

    return Throttle(options.bandwidth, options.now, job.log, note)


def _decoding(wanted: DecodeTo, job: Job) -> Decoding:
    """Begin to make the image.

    :raises BadRequest: when there is no such form
    """
    if faults := conversion.check_form(wanted.format, wanted.compress, wanted.compress_level, wanted.compress_type):
        raise BadRequest("; ".join(f"options.decode.{fault}" for fault in faults))
    compression = conversion.Compression(wanted.compress_type, wanted.compress_level) if wanted.compress else None
    working, image_format = conversion.working_image(wanted.image, wanted.format)
    job.creating("partial", decoded.folder_of(working))
    return Decoding(working, image_format, compression, job)


def _split(url: str) -> tuple[str, int, str]:
    """Take a URL apart; messages never have it whole.

    :return: host, port, and path with query
    """
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or 443
    except ValueError as fault:
        raise BadRequest("url: found no URL, expected https://HOST[:PORT]/PATH") from fault
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        raise BadRequest(f"url: found one of scheme {parts.scheme!r}, expected https://HOST[:PORT]/PATH without a user")
    path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    if not path.isascii() or not path.isprintable() or " " in path:
        raise BadRequest("url: found characters that a URL cannot have, expected them percent-encoded")
    return parts.hostname, port, path


def _require_ours(options: Options) -> dict[str, Any]:
    """Read the note of the file at the target.

    :raises BadRequest: when it is somebody else's
    """
    target = options.target
    note = files.read_note(target)
    foreign = BadRequest(f"{target}: exists and is no download of ours; move it away or take another staging directory")
    if note is None or target.is_symlink() or not target.is_file():
        raise foreign
    if note.get("kind") != "hyperflow-download" or note.get("disk_id") != options.disk_id:
        raise foreign
    if files.is_of_another_vm(note, options.vm_id):
        raise BadRequest(
            f"{target}: exists and is of another VM ({note['vm_id']}), expected one of {options.vm_id}; take another "
            "staging directory or name for one of the two, or move it away when that VM is no more"
        )
    return note


def _require_unchanged(options: Options, note: dict[str, Any], job: Job) -> None:
    """Hold the file at the target to its note, which may lie beside somebody else's file by an accident.

    :raises BadRequest: when it is not what we downloaded
    """
    size_now = options.target.stat().st_size
    found: object = f"{size_now} bytes"
    if size_now == note.get("bytes"):
        progress = job.progress(f"verify the earlier download of {options.disk_id}", size_now)
        sha256, _ = files.hash_file(options.target, progress.advance)
        if sha256 == note.get("sha256"):
            return
        found = f"SHA-256 {sha256}"
    raise BadRequest(
        f"{options.target}: found {found}, expected {note.get('bytes')} bytes with SHA-256 {note.get('sha256')} of our "
        "earlier download; the file was changed: move it and its note away, then start again"
    )


def _reuse(options: Options, note: dict[str, Any], job: Job) -> dict[str, Any]:
    """Take over a finished download of the same source, when its bytes are what they were."""
    target = options.target
    _require_unchanged(options, note, job)
    virtual = note.get("virtual_bytes")
    if virtual != options.capacity_bytes:
        raise BadRequest(f"{target}: found a disk of {virtual} bytes, expected {options.capacity_bytes}")
    files.remove_partial(target)
    job.log(f"{target}: already downloaded, its SHA-256 holds")
    job.bytes_read = note["bytes"]
    return _observed(options, note["sha256"], note["bytes"], options.capacity_bytes, {"http": {"reused": True}})


def _observed(options: Options, sha256: str, count: int, virtual: int, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "disk_id": options.disk_id,
        "source": options.source,
        "path": str(options.target),
        "bytes": count,
        "sha256": sha256,
        "virtual_bytes": virtual,
        **facts,
    }


@contextlib.contextmanager
def _transport_faults(endpoint: str, received: Callable[[], int]) -> Iterator[None]:
    """Turn faults of the connection and of the format into errors that say how far the download came."""
    try:
        yield
    except vmdk.TruncatedVmdk as fault:
        raise TryAgain(f"{endpoint}: the export is cut after {received()} bytes: {fault}") from fault
    except codecs.CodecError as fault:
        raise TryAgain(f"{endpoint}: what arrives is damaged, after some {received()} bytes: {fault}") from fault
    except vmdk.VmdkError as fault:
        raise StageError(f"{endpoint}: what arrives is no streamOptimized VMDK: {fault}") from fault
    except (socket.timeout, TimeoutError) as fault:  # two types in Python 3.9
        raise TryAgain(f"{endpoint}: nothing came for too long; {received()} bytes so far") from fault
    except (ssl.SSLError, ConnectionError, http.client.HTTPException) as fault:
        what = type(fault).__name__ if isinstance(fault, http.client.HTTPException) else str(fault)
        raise TryAgain(f"{endpoint}: the connection failed after {received()} bytes: {what}") from fault
    except OSError as fault:
        if fault.filename is not None or received() or fault.errno is None:
            raise StageError(
                f"{fault.filename or 'the file'}: writing failed after {received()} bytes: {fault.strerror or fault}"
            ) from fault
        raise TryAgain(f"{endpoint}: {fault.strerror or fault}") from fault


class _Pace:
    """Sees that a server that sends a byte now and then, too often for the connection's timeout, is not waited for.

    :param endpoint: the server's name, for the message
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._waited = 0.0  # seconds, since there were LEAST bytes
        self._came = 0

    def count(self, came: int, waited: float) -> None:
        """Count what came in a read, and the seconds that it took.

        :raises TryAgain: too little for too long; never at the end, where nothing comes
        """
        self._came += came
        self._waited += waited
        if self._came >= LEAST:
            self._came, self._waited = 0, 0.0
        elif came and self._waited >= PATIENCE:
            raise TryAgain(
                f"{self._endpoint}: only {self._came} bytes came in the last {self._waited:.0f} s of waiting for them, "
                f"expected at least {LEAST} in {PATIENCE:.0f} s; see what slows the server or the network down"
            )


class _Paced(io.RawIOBase):
    """The bytes of a connection as they come, each read counted; below all buffers, which read until they are full.

    :param raw: is closed with this
    """

    def __init__(self, raw: io.RawIOBase, pace: _Pace) -> None:
        super().__init__()
        self._raw = raw
        self._pace = pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        started = time.monotonic()
        count = self._raw.readinto(buffer)
        self._pace.count(count or 0, time.monotonic() - started)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _request(connection: PinnedConnection, path: str, pace: _Pace) -> http.client.HTTPResponse:
    class Response(http.client.HTTPResponse):
        """One whose head and body are read at the pace."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.fp = io.BufferedReader(_Paced(self.fp.detach(), pace))

    connection.response_class = Response
    headers = {"Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close", "User-Agent": "hyperflow"}
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def _check_response(response: http.client.HTTPResponse, endpoint: str, options: Options) -> int | None:
    """Hold the answer to what an export is.

    :return: Content-Length; None where the server does not know
    """
    if 300 <= response.status < 400:
        location = urllib.parse.urlsplit(response.getheader("Location", "")).hostname or "nowhere"
        raise BadRequest(f"{endpoint}: redirects to {location}, which is not followed: its certificate is not known")
    if response.status in RETRY_STATUSES:
        raise TryAgain(f"{endpoint}: answers {response.status} {response.reason}")
    if response.status in LEASE_STATUSES:
        raise TryAgain(f"{endpoint}: answers {response.status} {response.reason}: the lease of this download is over")
    if response.status != 200:
        raise StageError(f"{endpoint}: answers {response.status} {response.reason}, expected 200")
    encoding = response.getheader("Content-Encoding", "identity")
    if encoding != "identity":
        raise StageError(f"{endpoint}: sends Content-Encoding {encoding!r}, expected the bytes as they are")
    if response.length is not None:
        files.require_space(options.target.parent, response.length + MARGIN, f"the download of {size(response.length)}")
    return response.length


def _reader(response: http.client.HTTPResponse, endpoint: str, length: int | None) -> Callable[[memoryview], int]:
    """Make the function that reads the body, to its last byte and not a byte more.

    It raises TryAgain where the body ends before it should.
    """
    left = length

    def read(buffer: memoryview) -> int:
        nonlocal left
        try:
            if left is None:
                return response.readinto(buffer)
            # not response.readinto(): it closes the connection with the last byte, before we see whether more comes
            count = response.fp.readinto(buffer[:left]) if left else 0
        except (socket.timeout, ssl.SSLError, ConnectionError):
            raise
        except OSError as fault:  # told from a fault of the file that is written
            raise ConnectionError(fault.strerror) from fault
        if left and not count:
            raise TryAgain(f"{endpoint}: the connection ended after {(length or 0) - left} of {length} bytes")
        left -= count
        return count

    return read


def _check_end(connection: PinnedConnection, response: http.client.HTTPResponse, length: int | None) -> None:
    """See that no more comes than was promised."""
    if length is None:
        return
    if connection.secure is not None:
        connection.secure.settimeout(1.0)
    with contextlib.suppress(OSError):  # a server that keeps the connection open has nothing more to say
        if response.fp.read(1):
            raise StageError(
                f"{connection.host}:{connection.port}: sends more than the {length} bytes of its Content-Length"
            )


def _check_capacity(header: vmdk.Header, options: Options) -> None:
    if header.capacity_bytes != options.capacity_bytes:
        raise BadRequest(
            f"disk {options.disk_id}: found a capacity of {header.capacity_bytes} bytes in the export, "
            f"expected {options.capacity_bytes}"
        )
