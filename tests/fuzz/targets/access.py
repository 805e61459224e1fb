"""Who asks and what he may do: files of users, tokens and rights, and the headers that credentials come in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from pagepool_service.auth.basic import parse_basic
from pagepool_service.auth.bearer import verify
from pagepool_service.auth.errors import CredentialsError, FileInvalidError
from pagepool_service.auth.htpasswd import load_htpasswd
from pagepool_service.auth.keys import KeyRing
from pagepool_service.auth.patterns import Pattern
from pagepool_service.auth.rights import load_rights
from pagepool_service.auth.scopes import decode_access, encode_access, parse_scopes
from pagepool_service.auth.tokens import load_tokens
from tests.fuzz.target import Reader, Target, blocks

_HASH = b"$2b$05$" + b"a" * 53
_HASHED = b"ab" * 32


def _files(data: bytes) -> None:
    """Files that an administrator writes: taken, or refused with the line."""
    how = Reader(data)
    load = (load_htpasswd, load_rights, load_tokens)[how.byte() % 3]
    body = how.rest()
    if b"$16$" in body or b"$15$" in body or b"$14$" in body or b"$13$" in body or b"$12$" in body or b"$11$" in body:
        return  # a cost that is rightly paid
    with TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "file"
        path.write_bytes(body)
        load(path)


def _headers(data: bytes) -> None:
    """Credentials, tokens and scopes, from anybody; no token that we did not sign is good."""
    parts = [*Reader(data).blocks(3), b"", b"", b""]
    texts = [part.decode("latin-1") for part in parts[:3]]
    with suppress(CredentialsError):
        parse_basic(texts[0])
    with TemporaryDirectory(dir="/dev/shm") as directory:
        keys = KeyRing(Path(directory))
        keys.prepare()
        assert verify(keys, "http://service", texts[1]) is None
    scope = parse_scopes(texts[2].split(" "))
    again = decode_access(encode_access(scope))
    assert again.catalog == scope.catalog
    assert dict(again.repositories) == {name: actions for name, actions in scope.repositories.items() if actions}


def _patterns(data: bytes) -> None:
    """Patterns of repositories: compared within bounds of time with whatever name."""
    parts = [*Reader(data).blocks(2), b"", b""]
    pattern = Pattern(parts[0].decode("latin-1"))
    pattern.matches(parts[1].decode("latin-1")[:255])


def _some_files() -> Iterator[bytes]:
    yield b"\0# users\nada:" + _HASH + b"\n\ngrace:" + _HASH.replace(b"2b", b"2y") + b"\n"
    yield (
        b'\1admins = ["ada"]\n[groups]\nteam = ["grace"]\n[[rules]]\nwho = ["team"]\nrepositories = ["team/**"]\n'
        b'actions = ["pull", "push"]\n'
    )
    yield b"\1"
    yield b'\2[ci]\nuser = "ada"\nsha256 = "' + _HASHED + b'"\nexpires = 2027-01-31\n'


def _some_headers() -> Iterator[bytes]:
    yield blocks(b"YWRhOnNlY3JldA==", b"a.b.c", b"repository:team/app:pull,push registry:catalog:*")
    token = b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEifQ."
    yield blocks(b"OjpvOg==", token, b"repository:[::1]:5000/a:pull repository(plugin):a:*")


TARGETS = (
    Target(
        "access-files",
        _files,
        (FileInvalidError,),
        _some_files,
        (b"[" * 1000, b"$2b$05$", b"repositories", b"actions", b"who", b'"""', b"sha256 = ", b"9999-99-99", b"\xff"),
    ),
    Target("access-headers", _headers, (), _some_headers, (b"eyJ", b"..", b":", b"repository:", b"=" * 4, b"*")),
    Target(
        "access-patterns",
        _patterns,
        (ValueError,),
        lambda: (blocks(b"team/**/a*", b"team/x/ab"),),
        (b"**/", b"*", b"/"),
    ),
)
