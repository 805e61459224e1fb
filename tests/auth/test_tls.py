"""TLS: versions, a renewed certificate, what is said of files that cannot be used, and who clients believe."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pagepool.cli.app import run as run_program
from pagepool.errors import UnreachableError
from pagepool.transport import RegistryClient, Session
from pagepool.transport.retry import RetryPolicy
from pagepool.transport.trust import AuthorityInvalidError, _system, explain
from pagepool_service.settings import SettingInvalidError
from pagepool_service.tls import Certificate
from tests.support.certificates import TestAuthority
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    """Who vouches for the service."""
    return TestAuthority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, authority: TestAuthority) -> Iterator[Service]:
    """A service with TLS, and without users."""
    certificate, key = authority.issue("server")
    options = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    with running_service(tmp_path_factory.mktemp("service") / "data", *options) as running:
        yield running


def _serial(service: Service, authority: TestAuthority) -> int:
    """The serial number of the certificate that a new connection is shown."""
    from cryptography import x509

    host, _, port = service.host.partition(":")
    context = ssl.create_default_context(cafile=authority.path)
    with (
        socket.create_connection((host, int(port)), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        raw = secure.getpeercert(binary_form=True)
        assert raw is not None
        return x509.load_der_x509_certificate(raw).serial_number


def test_a_renewed_certificate_is_taken_up(service: Service, authority: TestAuthority) -> None:
    """Without a restart, and without an end of what is open; half a renewal changes nothing."""
    first = _serial(service, authority)
    with httpx.Client(base_url=service.url, verify=ssl.create_default_context(cafile=authority.path)) as http:
        assert http.get("/healthz").status_code == 200
        certificate = authority.path.parents[1] / "server.pem"
        whole = certificate.read_bytes()
        certificate.write_bytes(whole[:100])
        deadline = time.monotonic() + 30
        while "connections go on with the certificate from before" not in service.log():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert _serial(service, authority) == first
        authority.issue("renewed", replacing=certificate)
        while _serial(service, authority) == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert http.get("/readyz").status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_who_sends_a_request_without_tls_is_told(service: Service, method: str) -> None:
    """Also with a body; and what is neither gets nothing."""
    with httpx.Client(timeout=20) as http:
        answer = http.request(method, f"http://{service.host}/v2/", content=b"x" * 1000 if method == "POST" else None)
    assert answer.status_code == 400
    assert "https://" in answer.json()["errors"][0]["message"]
    host, _, port = service.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(b"\0" * 100)
        with suppress(ConnectionError):
            assert not raw.recv(100).startswith(b"HTTP")


def test_handshakes_that_do_not_end(tmp_path: Path, authority: TestAuthority) -> None:
    """They take neither all descriptors nor the places of others."""
    certificate, key = authority.issue("handshakes")
    options = ("--workers", "1", "--tls-certificate", str(certificate), "--tls-key", str(key))
    service = Service(tmp_path / "data", options, prefix=("prlimit", "--nofile=128:128"))
    service.start()
    try:
        host, _, port = service.host.partition(":")
        with ExitStack() as stack:
            for data in 60 * (b"", b"\x16\x03"):
                silent = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
                silent.sendall(data)
            context = ssl.create_default_context(cafile=authority.path)
            deadline = time.monotonic() + 90
            while True:
                try:
                    assert httpx.get(f"{service.url}/readyz", verify=context, timeout=20).status_code == 200
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline
        assert "Too many open files" not in service.log()
    finally:
        service.stop()


def test_old_versions_are_refused(service: Service) -> None:
    host, _, port = service.host.partition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection((host, int(port)), timeout=20) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname=host)


@pytest.mark.parametrize("reason", ["Missing Authority Key Identifier", "CA cert does not include key usage extension"])
def test_what_newer_pythons_want_of_certificates_is_explained(reason: str) -> None:
    """In OpenSSL's words, as Python 3.13 has them: curl and docker take such a certificate."""
    said = explain(f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {reason} (_ssl.c:1020)")
    assert said.startswith(f"its certificate is refused: {reason}; from version 3.13 on Python wants")


def test_clients_believe_whom_they_are_told_to(
    service: Service,
    authority: TestAuthority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Session(service.url, verify=str(authority.path)) as session:
        RegistryClient(session).ping()
    with Session(service.url, verify=False) as session:
        RegistryClient(session).ping()
    with Session(service.url) as session, pytest.raises(UnreachableError) as caught:
        RegistryClient(session).ping()
    assert "its certificate is refused" in str(caught.value)
    assert "--ca-certificate" in str(caught.value)
    plain = Session(service.url.replace("https", "http"), retry=RetryPolicy(attempts=1))
    with plain as session, pytest.raises(UnreachableError, match="this port speaks TLS: its address is https://"):
        RegistryClient(session).ping()
    (tmp_path / "none.pem").write_text("none")
    for path in (tmp_path / "none.pem", tmp_path / "away.pem"):
        with pytest.raises(AuthorityInvalidError, match=path.name):
            Session(service.url, verify=str(path))

    for name in ("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def tags(*options: str) -> str:
        assert run_program(["tags", "--server", service.url, *options, "a"]) != 0
        return capsys.readouterr().err

    unknown = "repository a is unknown"
    assert "--ca-certificate" in tags()
    assert unknown in tags("--ca-certificate", str(authority.path))
    directory = tmp_path / ".config" / "containers" / "certs.d" / service.host
    directory.mkdir(parents=True)
    (directory / "ca.crt").symlink_to(authority.path)
    assert unknown in tags()
    (directory / "ca.crt").unlink()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    _system.cache_clear()
    try:
        assert unknown in tags()
    finally:
        _system.cache_clear()


def test_files_that_cannot_be_used(authority: TestAuthority, tmp_path: Path) -> None:
    certificate, key = authority.issue("one")
    _, other = authority.issue("two")
    bad = tmp_path / "bad"
    bad.write_text("no certificate")
    locked = tmp_path / "locked.key"
    from cryptography.hazmat.primitives import serialization

    private = serialization.load_pem_private_key(key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"x")
    locked.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    for pair, says in (
        ((certificate, other), "is not the certificate of the key"),
        ((certificate, None), "has no PEM certificate and key in it"),
        ((bad, key), "cannot be loaded"),
        ((tmp_path / "away", key), "cannot be read: No such file"),
        ((certificate, locked), "has a password"),
    ):
        with pytest.raises(SettingInvalidError) as caught:
            Certificate(*pair)
        assert says in str(caught.value)
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    assert Certificate(both, None).context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("name", [None, "localhost"])
def test_the_context_that_listens_is_not_loaded_again(
    authority: TestAuthority, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """Between its certificate and its key it would have no two that fit together, and refuse whoever comes then."""
    path, key = authority.issue("listening")
    certificate = Certificate(path, key)
    loaded: list[ssl.SSLContext] = []
    load = ssl.SSLContext.load_cert_chain

    def noted(context: ssl.SSLContext, *arguments: Any, **options: Any) -> None:
        loaded.append(context)
        load(context, *arguments, **options)

    before = _handshake(certificate.context, authority, name)
    authority.issue("again", replacing=path)
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", noted)
    certificate.refresh()
    assert len(loaded) == 1
    assert certificate.context not in loaded
    after = _handshake(certificate.context, authority, name)
    assert before != after
    assert after == ssl.PEM_cert_to_DER_cert(path.read_text()[: path.read_text().index("-----END") + 26])


def _handshake(context: ssl.SSLContext, authority: TestAuthority, name: str | None) -> bytes | None:
    """The certificate that a client is shown."""
    theirs = ssl.create_default_context(cafile=authority.path)
    theirs.check_hostname = name is not None
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(down, up, server_hostname=name)
    server = context.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return client.getpeercert(binary_form=True)
