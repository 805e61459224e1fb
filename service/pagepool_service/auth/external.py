"""Tokens that another server signs, whose public keys we have: RS256, ES256 and the like, never a shared secret.

What such a token says is what its bearer may do: the other server has its own users and rights, and ours are not
asked. Keys come from a file, as a JSON Web Key Set or as PEM public keys or certificates, and are read again with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from pagepool_service.auth.errors import FileInvalidError
from pagepool_service.auth.scopes import decode_access

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool_service.auth.principals import Scope

_ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
_SMALLEST_RSA = 2048
# RecursionError: of JSON that is nested deeply, by earlier releases of PyJWT. InvalidKeyError is no InvalidTokenError:
# it comes where a token names an algorithm that is of another curve than the key.
_NOT_VALID = (jwt.PyJWTError, KeyError, TypeError, ValueError, RecursionError)
_LEEWAY_S = 60


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key to verify with: its id ("" for any), and the algorithms that it is for."""

    id: str
    algorithms: tuple[str, ...]
    key: Any


@dataclass(frozen=True, slots=True)
class TokenServer:
    """Another server that signs tokens for this one.

    Args:
        realm: its address, which clients are sent to.
        issuer: what its tokens say of their maker.
        audience: what they say of this service.
        keys: its own.
    """

    realm: str
    issuer: str
    audience: str
    keys: tuple[PublicKey, ...]

    def verify(self, token: str) -> tuple[str, Scope, float] | None:
        """Who and what a token is for, and until when (Unix time), if it is one of that server's."""
        try:
            identity = str(jwt.get_unverified_header(token).get("kid", ""))
        except _NOT_VALID:
            return None
        fitting = [key for key in self.keys if key.id == identity] or [key for key in self.keys if not key.id]
        for key in fitting or self.keys:
            try:
                claims = jwt.decode(
                    token,
                    key.key,
                    algorithms=list(key.algorithms),
                    audience=self.audience,
                    issuer=self.issuer,
                    leeway=_LEEWAY_S,
                    options={"require": ["exp", "aud", "iss"], "verify_sub": False},
                )
                scope = decode_access(claims.get("access") or [])
                return str(claims.get("sub") or ""), scope, float(claims["exp"])
            except _NOT_VALID:
                continue
        return None


def load_public_keys(path: Path) -> tuple[PublicKey, ...]:
    """Read a file of keys.

    Raises:
        FileInvalidError: it cannot be read, or has none that can be used.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise FileInvalidError(str(path), error.strerror or str(error)) from None
    try:
        found = _parse_pem(raw) if b"-----BEGIN" in raw else _parse_set(raw)
    except (*_NOT_VALID, AttributeError, UnsupportedAlgorithm) as error:
        raise FileInvalidError(str(path), f"has no public keys: {error}") from None
    if not found:
        raise FileInvalidError(str(path), "has no public keys")
    return tuple(found)


def _parse_set(raw: bytes) -> list[PublicKey]:
    document = json.loads(raw)
    entries = document.get("keys", [document])
    found = []
    for entry in entries:
        algorithms = _ALGORITHMS.get(str(entry.get("kty")))
        if algorithms is None:
            raise ValueError(f"a key of type {entry.get('kty')!r} is no public key for signatures")
        key = jwt.PyJWK(entry, algorithm=entry.get("alg") or algorithms[0])
        if entry.get("alg") and entry["alg"] not in algorithms:
            raise ValueError(f"{entry['alg']!r} is no algorithm of {entry['kty']} keys")
        _check(key.key)
        found.append(PublicKey(str(entry.get("kid", "")), (entry["alg"],) if entry.get("alg") else algorithms, key.key))
    return found


def _parse_pem(raw: bytes) -> list[PublicKey]:
    found = []
    for part in raw.split(b"-----BEGIN ")[1:]:
        text = b"-----BEGIN " + part
        if part.startswith(b"CERTIFICATE"):
            key: Any = x509.load_pem_x509_certificate(text).public_key()
        else:
            key = load_pem_public_key(text)
        found.append(PublicKey("", _ALGORITHMS[_check(key)], key))
    return found


def _check(key: object) -> str:
    """The type of a public key.

    Raises:
        ValueError: it is not one that can be relied on.
    """
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _SMALLEST_RSA:
            raise ValueError(f"an RSA key of {key.key_size} bits is too short")
        return "RSA"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "EC"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "OKP"
    raise ValueError(f"{type(key).__name__} is no public key of RSA, an elliptic curve, or Ed25519")
