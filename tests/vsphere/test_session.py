"""Trust, login, relogin and logout."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hyperflow.vsphere.certificate import presented_thumbprint
from hyperflow.vsphere.errors import CertificateUntrusted, LoginFailed, Unreachable, VsphereError
from hyperflow.vsphere.inventory import list_vms
from hyperflow.vsphere.session import VERSIONS_PATH, connect

LOGIN = {"user": "hyperflow@vsphere.local", "password": "correct horse & <battery>"}

VERSIONS = (
    b'<?xml version="1.0"?><namespaces version="1.0"><namespace><name>urn:vim25</name>'
    b"<version>8.0.2.0</version><priorVersions><version>6.5</version></priorVersions>"
    b"</namespace></namespaces>"
)


class Recorder:
    """A TLS server that answers the first request with vCenter's versions and keeps every byte it is sent.

    :param certificates: one for each connection in turn, the last one for all that follow
    """

    def __init__(self, certificates: list[Path]) -> None:
        self.received: list[bytes] = []
        self.certificates = certificates
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it, so that all that was sent is in ``received``; may be called again."""
        if self._thread.is_alive():
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join(10)
            self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificates.pop(0) if len(self.certificates) > 1 else self.certificates[0])
            self.received.append(b"")
            try:
                plain.settimeout(10)
                with context.wrap_socket(plain, server_side=True) as secure:
                    while data := secure.recv(65536):
                        self.received[-1] += data
                        if self.received[-1].endswith(b"\r\n\r\n"):
                            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(VERSIONS)}\r\n\r\n"
                            secure.sendall(head.encode() + VERSIONS)
            except OSError:
                plain.close()


def make_certificate(path: Path, name: str) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    server = Recorder([make_certificate(tmp_path / f"{name}.pem", name) for name in ("first", "second")])
    yield server
    server.close()


def test_a_certificate_of_no_known_authority_is_refused_with_its_thumbprint(vcenter: Any) -> None:
    with pytest.raises(CertificateUntrusted) as raised:
        connect(vcenter.host, vcenter.port, **LOGIN)
    assert raised.value.thumbprint == presented_thumbprint(vcenter.host, vcenter.port, 10)
    assert f'{{"thumbprint": "{raised.value.thumbprint}"}}' in str(raised.value)
    assert vcenter.host in str(raised.value)


def test_localhost_is_no_exception(vcenter: Any) -> None:
    with pytest.raises(CertificateUntrusted):
        connect("localhost", vcenter.port, **LOGIN)


@pytest.mark.parametrize("digest", ["thumbprint", "thumbprint_sha1"])
@pytest.mark.parametrize("form", ["colons", "plain"])
def test_a_pinned_certificate_is_trusted(vcenter: Any, digest: str, form: str) -> None:
    thumbprint: str = getattr(vcenter, digest)
    if form == "plain":
        thumbprint = thumbprint.replace(":", "").lower()
    with connect(vcenter.host, vcenter.port, thumbprint=thumbprint, **LOGIN) as session:
        assert session.about["kind"] == "VirtualCenter"


def test_a_certificate_is_trusted_by_its_authority(vcenter: Any) -> None:
    with connect(vcenter.host, vcenter.port, ca_file=vcenter.certificate, **LOGIN) as session:
        assert list_vms(session)


def test_a_wrong_pin_sends_nothing_at_all(recorder: Recorder) -> None:
    with pytest.raises(CertificateUntrusted, match=r"not the pinned one.*No password was sent"):
        connect("127.0.0.1", recorder.port, thumbprint="00" * 32, timeout=10, **LOGIN)
    recorder.close()
    assert recorder.received == [b""]


def test_every_connection_is_checked_not_only_the_first(recorder: Recorder) -> None:
    # The second connection, which would carry the login, gets another certificate.
    first = x509.load_pem_x509_certificate(recorder.certificates[0].read_bytes())
    pin = first.fingerprint(hashes.SHA256()).hex()
    with pytest.raises(CertificateUntrusted, match="not the pinned one"):
        connect("127.0.0.1", recorder.port, thumbprint=pin, timeout=10, **LOGIN)
    recorder.close()
    assert len(recorder.received) == 2
    assert recorder.received[0].startswith(f"GET {VERSIONS_PATH}".encode())
    assert recorder.received[1] == b""


def test_an_unusable_pin_or_authority_is_refused_before_connecting(tmp_path: Path) -> None:
    with pytest.raises(VsphereError, match="expected the SHA-256"):
        connect("192.0.2.1", thumbprint="AB:CD", **LOGIN)
    with pytest.raises(VsphereError, match="ca_file"):
        connect("192.0.2.1", ca_file=tmp_path / "missing.pem", **LOGIN)


def test_a_wrong_password_is_a_clear_error_without_the_password(vcenter: Any, admin: Any) -> None:
    with pytest.raises(LoginFailed) as raised:
        connect(
            vcenter.host,
            vcenter.port,
            user=LOGIN["user"],
            password="s3cr3t-and-wrong",
            thumbprint=vcenter.thumbprint,
        )
    assert "will not be tried again" in str(raised.value)
    assert "s3cr3t" not in str(raised.value) + repr(raised.value.__cause__)
    assert admin.get("/sessions") == []


def test_a_port_where_nothing_listens_is_unreachable() -> None:
    with socket.socket() as bound:  # and it stays so: nobody else can listen there meanwhile
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(Unreachable, match=rf"127\.0\.0\.1:{port} can not be reached"):
            connect("127.0.0.1", port, **LOGIN)


def test_a_name_that_does_not_exist_is_unreachable() -> None:
    with pytest.raises(Unreachable, match=r"vcenter\.invalid:443"):
        connect("vcenter.invalid", **LOGIN)


def test_a_server_that_is_no_vcenter_is_told_apart(vcenter: Any) -> None:
    port = int(vcenter.admin_url.rsplit(":", 1)[1])
    with pytest.raises(Unreachable, match="does not speak TLS"):
        connect(vcenter.host, port, **LOGIN)


def test_the_session_is_ended_also_after_an_error(vcenter: Any, admin: Any) -> None:
    with (
        pytest.raises(RuntimeError),
        connect(vcenter.host, vcenter.port, thumbprint=vcenter.thumbprint, **LOGIN) as session,
    ):
        assert list_vms(session)
        assert len(admin.get("/sessions")) == 1
        raise RuntimeError
    assert admin.get("/sessions") == []


def test_a_session_that_vcenter_ended_is_opened_again_once_for_all_threads(vcenter: Any, admin: Any) -> None:
    with connect(vcenter.host, vcenter.port, thumbprint=vcenter.thumbprint, **LOGIN) as session:
        before = list_vms(session)
        admin.end_sessions()
        with ThreadPoolExecutor(4) as pool:
            for after in pool.map(lambda _: list_vms(session), range(4)):
                assert after == before
        assert len(admin.get("/sessions")) == 1
    assert admin.get("/sessions") == []


def test_no_text_form_of_a_session_holds_the_password(vcenter: Any) -> None:
    with connect(vcenter.host, vcenter.port, thumbprint=vcenter.thumbprint, **LOGIN) as session:
        assert LOGIN["password"] not in f"{session!r} {session}"
