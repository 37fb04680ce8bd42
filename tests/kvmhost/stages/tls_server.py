"""A real HTTPS server in this process that answers as it is told, also badly."""

from __future__ import annotations

import hashlib
import http.server
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every GET by the server's answer, and counts them."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.answer(self)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def start(self, length: int | None, status: int = 200, **headers: str) -> None:
        """Send status and headers."""
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        """Send a chunk of a chunked answer; an empty one ends it."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


class Server(http.server.ThreadingHTTPServer):
    """The server; ``answer`` may be changed at any time."""

    daemon_threads = True
    answer: Answer
    requests: list[str]
    context: ssl.SSLContext
    sha256: str
    sha1: str

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}/nfc/52d3-ticket-that-is-secret/disk-0.vmdk?t=also-secret"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what many tests are about."""


def make_certificate(folder: Path) -> Path:
    """A key and a certificate of its own making for 127.0.0.1, in one file."""
    target = folder / "server.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(target)]
    out = ["-out", str(folder / "certificate.pem")]
    subprocess.run(["openssl", "req", "-x509", "-days", "2", *key, *subject, *out], check=True, capture_output=True)
    with target.open("a") as file:
        file.write((folder / "certificate.pem").read_text())
    return target


@contextmanager
def serve(certificate: Path, answer: Answer) -> Iterator[Server]:
    """Serve on a port of its own while the context lasts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.answer = answer
    server.context = context
    server.requests = []
    der = ssl.PEM_cert_to_DER_cert((certificate.parent / "certificate.pem").read_text())
    server.sha256 = hashlib.sha256(der).hexdigest()
    server.sha1 = hashlib.sha1(der, usedforsecurity=False).hexdigest()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
