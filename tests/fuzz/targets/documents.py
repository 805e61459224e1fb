"""Documents and names: manifests, configurations, references, answers of other registries, archives, users' tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import httpx

from pagepool.cli.credentials import _look_up
from pagepool.container.users import UserInvalidError, find_user
from pagepool.digest import Digest
from pagepool.errors import InvalidError, PagepoolError, UnauthorizedError
from pagepool.layout import open_sink, open_source, plan_copy, run_copy
from pagepool.oci import (
    Manifest,
    Platform,
    Reference,
    VerifyingReader,
    encode_index,
    encode_manifest,
    mediatypes,
    parse_config,
    parse_manifest,
    validate_repository,
    validate_tag,
)
from pagepool.oci.fields import load_object
from pagepool.transport.answers import parse_error_body
from pagepool.transport.auth import parse_challenges
from pagepool.transport.paging import next_link
from pagepool.transport.retry import parse_retry_after
from pagepool_service.routes.parameters import parse_reference
from tests.fuzz.target import Reader, Target, blocks
from tests.oci.samples import multi_platform, simple

if TYPE_CHECKING:
    from pagepool.layout import Format

_TYPES = (None, mediatypes.OCI_MANIFEST, mediatypes.OCI_INDEX, mediatypes.DOCKER_MANIFEST, "text/plain; a=b")
JSON_WORDS = (
    *(b"[" * 3000, b'{"a":' * 1500, b"null", b"1e999", b"-0", b"\\ud800", b"NaN", b'"mediaType":""', b"9" * 5000),
    *(b'"schemaVersion":2', b'"config":', b'"layers":[', b'"manifests":[', b'"subject":', b'"annotations":{'),
    *(b'"data":"YQ=="', b'"size":', b'"digest":"sha256:', b'"urls":["', b'"platform":{"os":"linux"}'),
)


def _manifest(data: bytes) -> None:
    """What is taken is the bytes that came, and what was understood of it can be written and read again."""
    how = Reader(data)
    said = _TYPES[how.byte() % len(_TYPES)]
    raw = how.rest()
    document = parse_manifest(raw, said)
    assert document.raw == raw
    more: dict[str, Any] = {"annotations": document.annotations, "subject": document.subject}
    if isinstance(document, Manifest):
        again = encode_manifest(document.config, document.layers, media_type=document.media_type, **more)
        read = parse_manifest(again.raw, document.media_type)
        assert isinstance(read, Manifest)
        assert (read.config, read.layers) == (document.config, document.layers)
    else:
        listed = parse_manifest(encode_index(document.manifests, media_type=document.media_type, **more).raw)
        assert not isinstance(listed, Manifest)
        assert listed.manifests == document.manifests


def _config(data: bytes) -> None:
    config = parse_config(data)
    again = {"rootfs": {"type": "layers", "diff_ids": []}, "config": config.run.to_json()}
    assert parse_config(json.dumps(again).encode()).run == config.run


def _names(data: bytes) -> None:
    """What is taken is written as it was read."""
    text = data.decode("utf-8", "surrogateescape")
    for parse in (Digest.parse, Reference.parse, Platform.parse, parse_reference):
        with suppress(InvalidError):
            found = parse(text)
            assert parse(str(found)) == found
            assert len(str(found)) < 2000
    for validate in (validate_repository, validate_tag):
        with suppress(InvalidError):
            assert validate(text) == text
            assert text.isascii()
            assert text.isprintable()
            assert ".." not in text.split("/")


def _answers(data: bytes) -> None:
    """What a registry answers, and what its client makes of it."""
    parts = [*Reader(data).blocks(4), b"", b"", b"", b""]
    code, words = parse_error_body(parts[0])
    assert len(code) < 1000
    assert "\n" not in words
    header = parts[1].decode("latin-1")
    parse_challenges([header])
    assert parse_retry_after(header) >= 0
    with suppress(UnicodeEncodeError):
        next_link(httpx.Response(200, headers={"Link": header}))
    fields = load_object(parts[2], "file", lambda field, reason: UnauthorizedError(f"{field} {reason}"))
    if not fields.has("credsStore") and not fields.has("credHelpers"):  # those run programs
        _look_up(fields, Path("file"), ["host"])


def _users(data: bytes) -> None:
    parts = [*Reader(data).blocks(3), b"", b"", b""]
    user = find_user(parts[0].decode("utf-8", "surrogateescape"), parts[1], parts[2])
    assert 0 <= user.uid < 1 << 31
    assert 0 <= user.gid < 1 << 31
    assert all(group >= 0 for group in user.groups)


def _archive(data: bytes) -> None:
    """An archive of either kind: everything in it is read, and is what its digest says."""
    with TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "archive.tar"
        path.write_bytes(data)
        source = open_source(path, None)
        try:
            for blob in plan_copy(source).blobs[:8]:
                if blob.size < 1 << 20:
                    with VerifyingReader(source.open_blob(blob), blob) as reader:
                        assert len(reader.read()) == blob.size
        finally:
            source.close()


def _manifests() -> Iterator[bytes]:
    for sample in (simple(), multi_platform()[0]):
        documents = [one for one in sample.content.values() if b"schemaVersion" in one]
        for number, document in enumerate(documents):
            yield bytes((0,)) + document
            yield bytes((1 + number % 2,)) + document
    yield b"\0" + b'{"schemaVersion":2,"config":' + b"[" * 4000


def _configs() -> Iterator[bytes]:
    for document in simple().content.values():
        if b"rootfs" in document:
            yield document
    run = {"User": "1:2", "Env": ["A=b"], "Cmd": ["sh"], "Entrypoint": ["/x"], "WorkingDir": "/w", "Labels": {"a": "b"}}
    more = {"ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}, "StopSignal": "SIGTERM"}
    config = {"architecture": "arm64", "variant": "v8", "os": "linux", "created": "2026-01-01T00:00:00Z"}
    yield json.dumps(config | {"config": run | more, "rootfs": {"type": "layers", "diff_ids": []}}).encode()


def _some_names() -> Iterator[bytes]:
    sha = "sha256:" + "ab" * 32
    for text in (
        sha,
        "sha512:" + "0" * 128,
        f"[::1]:5000/a/b_c:tag@{sha}",
        "app",
        "h.x/a--b/c.d:1",
        "linux/arm64/v8",
        f"h/a@{sha}",
    ):
        yield text.encode()


def _some_answers() -> Iterator[bytes]:
    error = json.dumps({"errors": [{"code": "DENIED", "message": "no", "detail": {}}]}).encode()
    bearer = b'Bearer realm="https://h/t",service="s",scope="repository:a:pull", Basic realm=x'
    login = json.dumps({"auths": {"host": {"auth": "YTpi"}}}).encode()
    yield blocks(error, bearer, login)
    yield blocks(b"<html>", b'</v2/_catalog?n=1&last=a>; rel="next"', b'{"auths":{"host":{"identitytoken":"t"}}}')
    yield blocks(b"{}", b"Wed, 21 Oct 2026 07:28:00 GMT", b"{}")


def _some_users() -> Iterator[bytes]:
    passwd, group = b"root:x:0:0:root:/root:/bin/sh\nu:x:1000:100::/home/u:\n#\n\n", b"users:x:100:u,v\nwheel:x:10:u\n"
    yield blocks(b"u", passwd, group)
    yield blocks(b"1000:wheel", passwd, group)
    yield blocks(b"", b":" * 9, b"a:b:c:d")


def _archives() -> Iterator[bytes]:
    forms: tuple[Format, ...] = ("oci-archive", "docker-archive")
    for form in forms:
        with TemporaryDirectory() as directory:
            path = Path(directory) / "x.tar"
            sink, sample = open_sink(path, form, "app:1"), simple(1, mediatypes.OCI_LAYER_GZIP)
            run_copy(plan_copy(sample), sample, sink)
            sink.close()
            yield _short(path)


def _short(path: Path) -> bytes:
    """An archive without the padding of its end, which is most of it."""
    return path.read_bytes().rstrip(b"\0") + bytes(512 + 1024)


TARGETS = (
    Target("manifest", _manifest, (InvalidError,), _manifests, JSON_WORDS),
    Target("config", _config, (InvalidError,), _configs, JSON_WORDS),
    Target("names", _names, (), _some_names, (b"@sha256:", b"/../", b"//", b"\n", b"\xd9\xa1", b":99999", b"[::")),
    Target("answers", _answers, (UnauthorizedError,), _some_answers, (*JSON_WORDS, b'rel="next"', b'="', b"\\")),
    Target("users", _users, (UserInvalidError,), _some_users, (b":", b"\n", b"99999999999999999999", b"\xc2\xb2")),
    Target(
        "archive",
        _archive,
        (PagepoolError,),
        _archives,
        (b"manifest.json", b"index.json", b"ustar\x0000", b"../", *JSON_WORDS[:3]),
    ),
)
