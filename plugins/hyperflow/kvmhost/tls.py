"""HTTPS to a server whose certificate is known by its fingerprint.

ESXi hosts and vCenters mostly have certificates of their own making; the lease names each host's fingerprint. It is
compared after the handshake and before the first byte of the request, because the request's URL is a ticket.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import re
import socket
import ssl

from hyperflow.kvmhost.stage import BadRequest

_HEX = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})")  # SHA-1 as vSphere's API names it, or SHA-256


class PinnedConnection(http.client.HTTPConnection):
    """An HTTPS connection that is only used when the server has one of the known certificates.

    :param thumbprints: of :func:`read_thumbprints`; empty for the usual check against the host's CAs and the name
    :param timeout: seconds that any one read or write may take
    :raises BadRequest: from :meth:`connect`, when it is another certificate
    """

    default_port = 443

    def __init__(self, host: str, port: int, thumbprints: list[str], timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._thumbprints = thumbprints
        self.peer_sha256 = ""
        self.secure: ssl.SSLSocket | None = None  # stays when http.client has let go of it

    def connect(self) -> None:
        """Connect, shake hands, and look at the certificate."""
        plain = socket.create_connection((self.host, self.port), self.timeout)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock = self.secure = self._shake_hands(plain)
        except BaseException:
            plain.close()
            raise

    def _shake_hands(self, plain: socket.socket) -> ssl.SSLSocket:
        try:
            secure = _context(pinned=bool(self._thumbprints)).wrap_socket(plain, server_hostname=self.host)
        except ssl.SSLCertVerificationError as fault:
            raise BadRequest(
                f"{self.host}:{self.port}: the certificate is not trusted: {fault.verify_message}; "
                "name its SHA-256 fingerprint, or install the CA on the host"
            ) from fault
        der = secure.getpeercert(binary_form=True) or b""
        self.peer_sha256 = hashlib.sha256(der).hexdigest()
        found = (self.peer_sha256, hashlib.sha1(der, usedforsecurity=False).hexdigest())
        known = [hmac.compare_digest(pin, have) for pin in self._thumbprints for have in found]
        if self._thumbprints and not any(known):
            secure.close()
            raise BadRequest(
                f"{self.host}:{self.port}: found a certificate with SHA-256 {self.peer_sha256}, "
                f"expected {' or '.join(self._thumbprints)}; nothing was sent"
            )
        return secure


def _context(*, pinned: bool) -> ssl.SSLContext:
    """Make what a connection is made by; the host's CAs are read, which takes a while, only where they count."""
    if not pinned:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint is the check
    return context


def read_thumbprints(values: list[str]) -> list[str]:
    """Bring fingerprints into one form.

    :param values: SHA-256 or SHA-1 in hex, colons and capitals optional
    :raises BadRequest: when one is neither
    """
    found = [value.replace(":", "").strip().lower() for value in values]
    for given, value in zip(values, found):
        if not _HEX.fullmatch(value):
            raise BadRequest(f"thumbprints: found {given!r}, expected a SHA-256 or SHA-1 fingerprint in hex")
    return found
