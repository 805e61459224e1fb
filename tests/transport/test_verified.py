"""Downloads that are verified by their ETag, over connections that break, and from servers that lie."""

from __future__ import annotations

import io

import pytest
import zstandard

from pagepool.digest import Digest
from pagepool.errors import DigestMismatchError, LimitError, TreeUnknownError, UnreachableError
from pagepool.transport.answers import Subject
from pagepool.transport.http import Call
from pagepool.transport.verified import download_verified
from tests.transport.scripted import Reply, Script, scripted_server, session

DATA = bytes(range(256)) * 4000
CODED = zstandard.ZstdCompressor().compress(DATA)
TAG = f'"{Digest.of(DATA, "blake3")}"'
CODED_HEADERS = {"ETag": f'{TAG[:-1]}+zstd"', "Content-Encoding": "zstd"}


def download(script: Script, *, limit: int = 1 << 30) -> bytes:
    """What is written behind what was there; nothing is left of a download that failed."""
    out = io.BytesIO(b"before")
    out.seek(6)
    call = Call("GET", "/thing", Subject(TreeUnknownError, "it"))
    with scripted_server(script) as server, session(server.url) as connection:
        try:
            assert download_verified(connection, call, out, limit=limit) == Digest.of(DATA, "blake3")
        except BaseException:
            assert out.getvalue() == b"before"
            raise
    return out.getvalue()


@pytest.mark.parametrize(
    "reply",
    [Reply(body=DATA, headers={"ETag": TAG}), Reply(body=CODED, headers=CODED_HEADERS)],
    ids=["plain", "coded"],
)
def test_is_plain_in_the_end(reply: Reply) -> None:
    """Whatever it came as."""
    assert download(lambda _: reply) == b"before" + DATA


def test_begins_again_when_the_connection_breaks() -> None:
    """And keeps nothing of what came before."""
    cuts = iter([0, 1000, len(DATA) - 1, None])
    assert download(lambda _: Reply(body=DATA, headers={"ETag": TAG}, cut=next(cuts))) == b"before" + DATA


def test_gives_up() -> None:
    """When it breaks again and again."""
    with pytest.raises(UnreachableError):
        download(lambda _: Reply(body=CODED, headers=CODED_HEADERS, cut=100))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=DATA[:-1] + b"x", headers={"ETag": TAG}),
        Reply(body=CODED[:-10], headers=CODED_HEADERS),
        Reply(body=DATA, headers=CODED_HEADERS),
        Reply(body=b"", headers={"ETag": TAG}),
    ],
    ids=["other", "torn", "not zstd", "empty"],
)
def test_what_is_something_else_is_refused(reply: Reply) -> None:
    """And not tried again."""
    answers = iter([reply])
    with pytest.raises(DigestMismatchError):
        download(lambda _: next(answers))


@pytest.mark.parametrize("tag", ["", '"sha256:' + "0" * 64 + '"', "W/x"])
def test_an_answer_without_its_digest_is_refused(tag: str) -> None:
    """There is nothing to verify it by."""
    with pytest.raises(UnreachableError, match="ETag"):
        download(lambda _: Reply(body=DATA, headers={"ETag": tag}))


def test_bombs_are_limited() -> None:
    """By plain bytes."""
    with pytest.raises(LimitError):
        download(lambda _: Reply(body=CODED, headers=CODED_HEADERS), limit=len(DATA) - 1)
