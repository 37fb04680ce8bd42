"""A TLS server that sends one file, held to a rate, as an ESXi host sends an export: run as a process of its own.

Arguments: certificate, file, bytes a second. Prints its port, and then serves until it is ended.
"""

from __future__ import annotations

import http.server
import mmap
import ssl
import sys
import time
from pathlib import Path

PIECE = 512 * 1024  # bytes sent between two looks at the clock
BURST = 0.05  # seconds that it may catch up after it was not let run


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each GET with the whole file."""

    protocol_version = "HTTP/1.1"
    content: memoryview
    rate: float

    def do_GET(self) -> None:
        """Send the file at the rate."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        due = time.monotonic()
        for start in range(0, len(self.content), PIECE):
            piece = self.content[start : start + PIECE]
            self.wfile.write(piece)
            now = time.monotonic()
            due = max(due + len(piece) / self.rate, now - BURST)
            if due > now:
                time.sleep(due - now)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main(certificate: str, path: str, rate: str) -> None:
    """Serve until ended."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Path(path).open("rb") as file:
        Handler.content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    Handler.rate = float(rate)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
