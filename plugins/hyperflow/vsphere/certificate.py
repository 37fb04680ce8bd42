"""Trust in a vCenter's certificate: by certificate authority, or pinned by its thumbprint.

pyVmomi's own ``thumbprint`` argument is not used, because it does not pin (9.1.1, ``SoapAdapter._Connect``):
the thumbprint is only looked at when the ordinary check has failed, so any certificate of any trusted
authority passes; after the first such failure the shared context is switched to CERT_NONE and later
connections are not checked at all; and for localhost the check is off from the start (``getSslContext``).
Here every connection of a context is checked, at the end of its handshake, before a byte of a request leaves.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
import ssl
from pathlib import Path

from hyperflow.vsphere.errors import CertificateUntrusted, VsphereError

_DIGEST_OF_LENGTH = {40: "sha1", 64: "sha256"}


def normalized_thumbprint(thumbprint: str) -> str:
    """A thumbprint as lower-case hex without colons or blanks.

    :raises VsphereError: when it is no SHA-1 (40 digits) or SHA-256 (64 digits)
    """
    digits = re.sub(r"[\s:]", "", thumbprint).lower()
    if len(digits) not in _DIGEST_OF_LENGTH or not re.fullmatch(r"[0-9a-f]+", digits):
        raise VsphereError(
            f"thumbprint: found {thumbprint!r}, expected the SHA-256 (64 hex digits) or SHA-1 (40) of the "
            "server's certificate, with or without colons"
        )
    return digits


def thumbprint_of(certificate: bytes) -> str:
    """SHA-256 of a DER certificate as upper-case hex pairs with colons, as ``openssl x509 -fingerprint``
    shows it.
    """
    return _pairs(hashlib.sha256(certificate).digest())


def certificate_matches(certificate: bytes | None, thumbprint: str) -> bool:
    """Whether a DER certificate has the (normalized) thumbprint."""
    if not certificate:
        return False
    found = hashlib.new(_DIGEST_OF_LENGTH[len(thumbprint)], certificate).hexdigest()
    return hmac.compare_digest(found, thumbprint)


def trust_context(thumbprint: str | None, ca_file: Path | str | None) -> ssl.SSLContext:
    """A TLS context that trusts one pinned certificate, or else the authorities in ``ca_file`` or the
    system's.

    :raises VsphereError: when the thumbprint or the file is not usable
    """
    if thumbprint is not None:
        return _pinned_context(normalized_thumbprint(thumbprint))
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as fault:
        raise VsphereError(f"ca_file: {ca_file} holds no readable PEM certificate: {fault}") from fault


def untrusted(host: str, port: int, reason: str, found: str | None) -> CertificateUntrusted:
    """The error for a certificate that no trusted authority vouches for."""
    shown = found or "(could not be read)"
    return CertificateUntrusted(
        f"the certificate of {host}:{port} is not trusted: {reason}. Its SHA-256 thumbprint is {shown}. "
        "Compare it with the one the vCenter's administrator gives you (docs/vcenter.md shows how to read "
        "it). When it is the same, put "
        f'{{"thumbprint": "{found or "..."}"}} into the extra field of the connection; or give the file of '
        "the "
        'authority that signed it as {"ca_file": "/path/ca.pem"}. No password was sent',
        found,
    )


def presented_thumbprint(host: str, port: int, timeout: float) -> str | None:
    """SHA-256 thumbprint of whatever certificate the server presents; nothing is sent. None when it can not
    be had.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            certificate = secure.getpeercert(binary_form=True)
    except OSError:
        return None
    return thumbprint_of(certificate) if certificate else None


def _pinned_context(expected: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    class PinnedSocket(ssl.SSLSocket):
        """A TLS socket whose handshake only succeeds with the pinned certificate."""

        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            certificate = self.getpeercert(binary_form=True)
            if not certificate_matches(certificate, expected):
                found = thumbprint_of(certificate) if certificate else None
                self.close()
                raise CertificateUntrusted(_mismatch(self.server_hostname, expected, found), found)

    context.sslsocket_class = PinnedSocket
    return context


def _mismatch(host: object, expected: str, found: str | None) -> str:
    return (
        f"the certificate of {host} is not the pinned one: expected the thumbprint "
        f"{_pairs(bytes.fromhex(expected))}, found one whose SHA-256 is {found}. Either the certificate was "
        "renewed (then compare with the administrator's "
        'and put the new value into the "thumbprint" of the connection\'s extra field) or something answers '
        "in the server's place. No password was sent"
    )


def _pairs(digest: bytes) -> str:
    return digest.hex(":").upper()
