"""A process in a network of its own reaches a server on this machine's loopback, and gets all of the answer."""

from __future__ import annotations

import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.production.passage import Passages

pytestmark = pytest.mark.production

ANSWER = b"x" * 3_000_000


class Handler(BaseHTTPRequestHandler):
    """Answers with more than any buffer on the way holds."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(ANSWER)


def test_a_process_with_a_loopback_of_its_own_reaches_a_port_of_ours() -> None:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    alone = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 300"], stdout=-1
    )
    passages = Passages()
    try:
        assert alone.stdout is not None
        assert alone.stdout.readline() == b"up\n"
        passages.open(alone.pid, server.server_port)
        address = f"http://127.0.0.1:{server.server_port}/"
        inside = ["nsenter", "--net", "--target", str(alone.pid), "curl", "--silent", "--noproxy", "*", address]
        assert subprocess.run(inside, capture_output=True, check=True, timeout=60).stdout == ANSWER
    finally:
        passages.close()
        alone.kill()
        alone.wait()
        server.shutdown()
