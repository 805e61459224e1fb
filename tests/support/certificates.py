"""Certificates for tests: an authority, and servers' certificates that it signed."""

from __future__ import annotations

import datetime
import ipaddress
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class TestAuthority:
    """An authority of its own; `path` is its certificate, which clients are to trust."""

    __test__ = False

    def __init__(self, directory: Path) -> None:
        # In a directory of its own: podman takes every key that it finds beside it for a client's.
        self.path = directory / "ca" / "ca.crt"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
        made = self._builder(self._name, self._key.public_key())
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        made = made.add_extension(_SIGNS, critical=True)
        self._write(self.path, made.sign(self._key, hashes.SHA256()))

    def issue(self, name: str, *, replacing: Path | None = None) -> tuple[Path, Path]:
        """A new certificate for this machine's own addresses, and its key.

        Args:
            name: in its subject, to tell it from others.
            replacing: the older certificate, whose files it takes.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = self._builder(subject, key.public_key())
        builder = builder.add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        certificate = replacing or self._directory / f"{name}.pem"
        private = certificate.with_suffix(".key")
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        for path, data in ((private, text), (certificate, None)):
            part = path.with_suffix(".part")
            if data is None:
                self._write(part, builder.sign(self._key, hashes.SHA256()))
            else:
                part.write_bytes(data)
            part.chmod(0o600)
            part.rename(path)
        return certificate, private

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            # Python 3.13 asks for both.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )

    def _write(self, path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
