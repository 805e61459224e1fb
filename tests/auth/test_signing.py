"""Signed tokens: keys that are shared and change, what a token says, and what is refused."""

from __future__ import annotations

import base64
import json
import stat
import time
from typing import TYPE_CHECKING

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pagepool.errors import CorruptError, ReadOnlyError
from pagepool_service.auth import FileInvalidError, bearer, keys
from pagepool_service.auth.external import TokenServer, load_public_keys
from pagepool_service.auth.keys import KeyRing
from pagepool_service.auth.principals import Scope
from pagepool_service.auth.scopes import parse_scopes

if TYPE_CHECKING:
    from pathlib import Path

SCOPE = Scope({"team/app": frozenset(("pull", "push"))}, catalog=True)
PUBLIC = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

# On secp112r1, which OpenSSL's command line knows.
ODD_CURVE = b"""-----BEGIN PUBLIC KEY-----
MDIwEAYHKoZIzj0CAQYFK4EEAAYDHgAEId4+EoB4CZ7wkCAoSP+WarrRtuoUp5NY
wXMLug==
-----END PUBLIC KEY-----
"""


def _sign(ring: KeyRing, **changes: object) -> str:
    options: dict[str, object] = {"use": "access", "life_s": 60, "stamp": "s", "scope": SCOPE} | changes
    return bearer.sign(ring, "here", "alice", **options)  # type: ignore[arg-type]


def test_a_token_says_what_it_was_given(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "auth")
    claims = bearer.verify(ring, "here", _sign(ring))
    assert claims is not None
    assert (claims.subject, claims.use, claims.scope, claims.stamp) == ("alice", "access", SCOPE, "s")
    assert time.time() < claims.expires_s < time.time() + 61


def test_what_is_refused(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "auth")
    token = _sign(ring)
    head, body, signature = token.split(".")
    forged = base64.urlsafe_b64encode(json.dumps({"sub": "root", "aud": "here", "iss": "pagepool"}).encode()).decode()
    plain = jwt.encode({"sub": "root", "aud": "here", "iss": "pagepool"}, "", algorithm="none")
    for bad in (
        _sign(ring, life_s=-60),
        _sign(KeyRing(tmp_path / "other")),
        f"{head}.{forged.rstrip('=')}.{signature}",
        f"{head}.{body}.",
        plain,
        "",
        "a.b.c",
        "x" * 10000,
        base64.urlsafe_b64encode(b"[" * 9000).decode() + ".e30.x",
    ):
        assert bearer.verify(ring, "here", bad) is None
    assert bearer.verify(ring, "elsewhere", token) is None
    assert bearer.verify(ring, "here", token) is not None


def test_keys_are_private_and_shared(tmp_path: Path) -> None:
    directory = tmp_path / "auth"
    ring = KeyRing(directory)
    ring.prepare()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "keys.json").stat().st_mode) == 0o600
    assert bearer.verify(KeyRing(directory), "here", _sign(ring)) is not None


def test_keys_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest signs, older ones verify; another worker finds the new one; the file's removal ends all."""
    ring, other = KeyRing(tmp_path), KeyRing(tmp_path)
    first = _sign(ring, life_s=1000)
    other.prepare()
    monkeypatch.setattr(keys, "ROTATE_S", -1.0)
    second = _sign(ring, life_s=1000)
    monkeypatch.undo()
    assert jwt.get_unverified_header(first)["kid"] != jwt.get_unverified_header(second)["kid"]
    for one in (ring, other):
        assert bearer.verify(one, "here", first) is not None
        assert bearer.verify(one, "here", second) is not None
    assert not ring.reread()
    (tmp_path / "keys.json").unlink()
    assert ring.reread()
    assert bearer.verify(ring, "here", second) is None


def test_keys_that_may_not_be_written(tmp_path: Path) -> None:
    """A read-only service signs with its own, and takes what was signed before."""
    before = _sign(KeyRing(tmp_path / "auth"), life_s=1000)
    written = (tmp_path / "auth" / "keys.json").read_bytes()
    for directory in (tmp_path / "auth", tmp_path / "nowhere"):
        ring = KeyRing(directory, writable=False)
        assert bearer.verify(ring, "here", _sign(ring)) is not None
        assert (bearer.verify(ring, "here", before) is not None) == (directory.name == "auth")
    assert (tmp_path / "auth" / "keys.json").read_bytes() == written
    assert not (tmp_path / "nowhere").exists()


def test_a_key_that_cannot_be_kept_signs_nothing(tmp_path: Path) -> None:
    """Nobody else would know it: another worker, or this service when it is started again."""
    (tmp_path / ".keys.json").mkdir()
    ring = KeyRing(tmp_path)
    with pytest.raises(ReadOnlyError, match=r"keys\.json"):
        ring.prepare()
    (tmp_path / ".keys.json").rmdir()
    assert bearer.verify(KeyRing(tmp_path), "here", _sign(ring)) is not None


def test_old_keys_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing(tmp_path)
    token = _sign(ring, life_s=10**9)
    monkeypatch.setattr(keys, "KEEP_S", -1.0)
    assert bearer.verify(ring, "here", token) is None


def test_keys_outlive_a_clock_that_was_wrong_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was made ten years ahead does not sign for ten years, and ends no token that was signed before."""
    ring = KeyRing(tmp_path)
    before = _sign(ring, life_s=1000)
    ahead_s = time.time() + 10 * 365 * 86400
    with monkeypatch.context() as wrong:
        wrong.setattr(time, "time", lambda: ahead_s)
        meanwhile = _sign(ring, life_s=1000)
    after = _sign(ring, life_s=1000)
    assert len({jwt.get_unverified_header(token)["kid"] for token in (before, meanwhile, after)}) == 3
    for one in (ring, KeyRing(tmp_path)):
        assert bearer.verify(one, "here", before) is not None
        assert bearer.verify(one, "here", after) is not None
    for _ in range(20):
        with monkeypatch.context() as wrong:
            wrong.setattr(keys, "ROTATE_S", -1.0)
            _sign(ring)
    assert len(json.loads((tmp_path / "keys.json").read_bytes())["keys"]) < 10


def test_a_damaged_file_of_keys(tmp_path: Path) -> None:
    for text in ("", "{}", '{"keys": [{"id": "a", "secret": "00", "created": 1}]}'):
        (tmp_path / "keys.json").write_text(text)
        with pytest.raises(CorruptError) as caught:
            KeyRing(tmp_path).prepare()
        assert str(tmp_path / "keys.json") in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "repositories", "catalog"),
    [
        ([], {}, False),
        (["repository:a/b:pull,push"], {"a/b": {"pull", "push"}}, False),
        (["repository:a:pull repository:b:push"], {"a": {"pull"}, "b": {"push"}}, False),
        (["repository:a:pull", "repository:a:push"], {"a": {"pull", "push"}}, False),
        (["repository:a:*"], {"a": {"pull", "push", "delete"}}, False),
        (["registry:catalog:*"], {}, True),
        (["registry:catalog:pull"], {}, False),
        (["repository(plugin):a:pull", "nonsense", "repository:a", "repository:a:PULL", "repository::pull"], {}, False),
        (["repository:host:5000/a:pull"], {"host:5000/a": {"pull"}}, False),
        (["repository:a:fly"], {"a": set()}, False),
    ],
)
def test_scopes(texts: list[str], repositories: dict[str, set[str]], catalog: bool) -> None:
    found = parse_scopes(texts)
    assert ({name: set(actions) for name, actions in found.repositories.items()}, found.catalog) == (
        repositories,
        catalog,
    )


def test_scopes_without_end() -> None:
    assert len(parse_scopes([f"repository:a{n}:pull" for n in range(1000)]).repositories) == 64


def test_another_server(tmp_path: Path) -> None:
    """Its tokens count by its public keys, whatever form these come in; others do not, and no shared secret does."""
    private, curve = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
    pem = private.public_key().public_bytes(*PUBLIC)
    (tmp_path / "keys.pem").write_bytes(pem + curve.public_key().public_bytes(*PUBLIC))
    entry = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key())) | {"kid": "k", "alg": "RS256"}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [entry]}))
    access = [{"type": "repository", "name": "a", "actions": ["pull"]}]
    claims = {"iss": "them", "aud": "here", "sub": "zoe", "exp": int(time.time()) + 60, "access": access}

    def server(name: str) -> TokenServer:
        return TokenServer("https://them/token", "them", "here", load_public_keys(tmp_path / name))

    by_rsa = jwt.encode(claims, private, algorithm="RS256", headers={"kid": "k"})
    by_curve = jwt.encode(claims, curve, algorithm="ES256")
    for name, token in (("keys.pem", by_rsa), ("keys.pem", by_curve), ("keys.json", by_rsa)):
        found = server(name).verify(token)
        assert found is not None
        assert found[:2] == ("zoe", Scope({"a": frozenset(("pull",))}))
    assert server("keys.json").verify(by_curve) is None
    # A public key is no secret: a token that was signed with its text as one must not count.
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    import hashlib
    import hmac

    mac = base64.urlsafe_b64encode(hmac.digest(pem, head + b"." + body, hashlib.sha256)).rstrip(b"=")
    assert server("keys.pem").verify(b".".join((head, body, mac)).decode()) is None
    for change in ({"iss": "others"}, {"aud": "there"}, {"exp": int(time.time()) - 600}, {"access": "x"}):
        assert server("keys.pem").verify(jwt.encode(claims | change, private, algorithm="RS256")) is None


def test_a_key_of_another_server_is_found_by_its_id(tmp_path: Path) -> None:
    """While it changes its keys there are several, of any curve, with no word of the algorithm; a token may lack it."""
    made = {"old": ec.generate_private_key(ec.SECP384R1()), "new": ec.generate_private_key(ec.SECP256R1())}
    entries = [json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) for key in made.values()]
    named = [entry | {"kid": name} for entry, name in zip(entries, made, strict=True)]
    (tmp_path / "named").write_text(json.dumps({"keys": named}))
    (tmp_path / "unnamed").write_text(json.dumps({"keys": entries}))
    claims = {"iss": "them", "aud": "here", "sub": "zoe", "exp": int(time.time()) + 60, "access": None}

    def is_taken(file: str, signer: str, headers: dict[str, str]) -> bool:
        server = TokenServer("https://them/token", "them", "here", load_public_keys(tmp_path / file))
        algorithm = "ES384" if signer == "old" else "ES256"
        found = server.verify(jwt.encode(claims, made[signer], algorithm=algorithm, headers=headers))
        return found is not None and found[:2] == ("zoe", Scope())

    for name in made:
        for file in ("named", "unnamed"):
            assert is_taken(file, name, {"kid": name})
            assert is_taken(file, name, {})
            assert is_taken(file, name, {"kid": "one that only the server knows"})
    assert not is_taken("named", "old", {"kid": "new"})
    nested = base64.urlsafe_b64encode(b"[" * 9000).decode() + ".e30.x"
    assert TokenServer("", "them", "here", load_public_keys(tmp_path / "named")).verify(nested) is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b'{"keys": []}',
        b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}',
        b"-----BEGIN X-----\n",
        pytest.param(ODD_CURVE, id="a curve that is not supported"),
    ],
)
def test_no_public_keys(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "keys").write_bytes(text)
    with pytest.raises(FileInvalidError):
        load_public_keys(tmp_path / "keys")


def test_private_and_short_keys_are_refused(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    (tmp_path / "keys").write_text(json.dumps({"keys": [json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key))]}))
    with pytest.raises(FileInvalidError):
        load_public_keys(tmp_path / "keys")
    short = rsa.generate_private_key(65537, 1024)
    (tmp_path / "keys").write_bytes(short.public_key().public_bytes(*PUBLIC))
    with pytest.raises(FileInvalidError, match="too short"):
        load_public_keys(tmp_path / "keys")
